"""A network's own output, or what modules inside it give, as vectors by column."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch

from cbir_faiss.errors import ConfigError
from cbir_faiss.extractors._models import near_names
from cbir_faiss.nets.layers import Pool, pooled

_NOTED: ContextVar[dict[str, Any] | None] = ContextVar("noted", default=None)


class Tapped(torch.nn.Module):  # type: ignore[misc]
    """Normalised images ``(n, 3, h, w)`` to pooled outputs ``(n, width)`` by column.

    run: the network; a call gives its output. layers: by column, the modules inside ``inside`` whose outputs are taken;
    none: the output of ``run`` is the column ``embedding``. channels_last: maps are ``(n, h, w, c)``.

    Raises:
        ConfigError: no such module.
    """

    def __init__(
        self, run: Any, inside: Any, layers: Mapping[str, str], pool: Pool, *, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.run, self.layers, self.pool, self.channels_last = run.eval(), dict(layers), pool, channels_last
        known = dict(inside.named_modules())
        for column, name in layers.items():
            if not name or name not in known:
                near = near_names(name, known) or f"; there are: …, {', '.join(list(known)[-5:])}"
                raise ConfigError(f"the model has no module '{name}'{near}", path="layer")
            known[name].register_forward_hook(partial(_note, column))

    def forward(self, x: Any) -> dict[str, Any]:
        noted: dict[str, Any] = {}
        token = _NOTED.set(noted)  # of this call alone, whatever other threads run
        try:
            whole = self.run(x)
        finally:
            _NOTED.reset(token)
        found = noted if self.layers else {"embedding": whole}
        return {column: self._pooled(column, found.get(column)) for column in self.layers or found}

    def _pooled(self, column: str, output: Any) -> Any:
        x = _tensor(output)
        if x is None or x.ndim not in (2, 3, 4):
            met = "nothing" if x is None else str(tuple(x.shape))
            what = f"'{self.layers[column]}'" if self.layers else "the model"
            raise ConfigError(f"{what} gives {met}, not vectors, tokens or maps", path="layer")
        return pooled(x.permute(0, 3, 1, 2) if self.channels_last and x.ndim == 4 else x, self.pool)


class Directions(torch.nn.Module):  # type: ignore[misc]
    """The columns of ``columns``, each row of length 1."""

    def __init__(self, columns: Any) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, x: Any) -> dict[str, Any]:
        return {name: torch.nn.functional.normalize(found, dim=-1) for name, found in self.columns(x).items()}


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block, torch draws with ``seed``; afterwards it goes on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _note(column: str, module: Any, given: Any, output: Any) -> None:
    noted = _NOTED.get()
    if noted is not None:
        noted[column] = output


def _tensor(output: Any) -> Any:
    """The first tensor of what a module gives: itself, or the first of a tuple or of named outputs."""
    while output is not None and not torch.is_tensor(output):
        parts = list(output.values()) if isinstance(output, Mapping) else list(output)
        output = parts[0] if parts else None
    return output
