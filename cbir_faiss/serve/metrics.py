"""What Prometheus reads at ``/metrics``, in its text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator

_LIMITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Requests by route and status, and how long they took. Used from one event loop."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self.in_flight = 0

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests[method, route, status] += 1
        self._seconds.setdefault(route, [0] * (len(_LIMITS) + 1))[bisect_left(_LIMITS, seconds)] += 1
        self._sums[route] = self._sums.get(route, 0.0) + seconds

    def text(self, items: Iterable[tuple[str, int | None]]) -> str:
        """All of it; ``items`` are collections by name and how many items each has, None where it is not ready."""
        return "\n".join([*self._lines(list(items)), ""])

    def _lines(self, items: list[tuple[str, int | None]]) -> Iterator[str]:
        yield "# TYPE cbir_requests_total counter"
        for (method, route, status), count in sorted(self._requests.items()):
            yield f'cbir_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}'
        yield "# TYPE cbir_request_seconds histogram"
        for route, counts in sorted(self._seconds.items()):
            below = 0
            for limit, count in zip([*map(str, _LIMITS), "+Inf"], counts, strict=True):
                below += count
                yield f'cbir_request_seconds_bucket{{route="{route}",le="{limit}"}} {below}'
            yield f'cbir_request_seconds_sum{{route="{route}"}} {self._sums[route]:.6f}'
            yield f'cbir_request_seconds_count{{route="{route}"}} {below}'
        yield "# TYPE cbir_requests_in_flight gauge"
        yield f"cbir_requests_in_flight {self.in_flight}"
        yield "# TYPE cbir_collection_ready gauge"
        for name, there in items:
            yield f'cbir_collection_ready{{collection="{_escaped(name)}"}} {int(there is not None)}'
        yield "# TYPE cbir_collection_items gauge"
        for name, there in items:
            yield f'cbir_collection_items{{collection="{_escaped(name)}"}} {there or 0}'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
