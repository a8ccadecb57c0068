"""How large an index will be, of all that tuning chooses from, against what is then built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cbir_faiss.pipeline.fill import fill
from cbir_faiss.tuning.sizes import folder_bytes, index_bytes, learnt_from
from cbir_faiss.tuning.space import Facts, Structure, space_of

DIM = 160
BACKENDS = sorted({s.backend.name for s in space_of(Facts(20_000, DIM, "cosine", True)).structures})


def vectors(n: int) -> np.ndarray:
    """Items of lists that are of very different lengths."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, DIM), np.float32)
    share = rng.dirichlet(np.full(50, 2.0))
    return centres[rng.choice(50, n, p=share)] + rng.standard_normal((n, DIM), np.float32)


def built(structure: Structure, x: np.ndarray, place: Path) -> int:
    taught = x[:4_000]  # not what it is foretold by; more make better codes, of the same size
    codec = structure.codec.make().fit(taught, [()] * len(taught))
    backend = structure.backend.make()
    codes = codec.encode(x)
    fill(backend, [(np.arange(len(x)), codes, None)], kind=codec.kind, width=codec.width, sample=lambda: codes)
    backend.save(place)
    backend.close()
    return folder_bytes(place)


def foretold(structure: Structure, x: np.ndarray, items: int, place: Path) -> float:
    some = x[: learnt_from(structure.backend, items)]
    codec = structure.codec.make().fit(some, [()] * len(some))
    found = index_bytes(structure.backend, codec.encode(some), codec.kind, items, place)
    assert not place.exists()
    return found.per_item(items)


def check(items: int, backend: str, place: Path) -> None:
    x = vectors(items)
    structures = [s for s in space_of(Facts(items, DIM, "cosine", True)).structures if s.backend.name == backend]
    # Of several code lengths over one structure the shortest and the longest say enough.
    for structure in {s.codec.name: s for s in [*structures, *reversed(structures)]}.values():
        told = foretold(structure, x, items, place / "small")
        assert told == pytest.approx(built(structure, x, place / structure.key) / items, rel=0.05), structure.title


@pytest.mark.parametrize("backend", ["faiss-binary-ivf", "faiss-pq", "faiss-rabitq", "rabitq"])
def test_bytes_of_lists_are_those_of_what_is_built(backend: str, tmp_path: Path) -> None:
    if backend not in BACKENDS:
        pytest.skip(f"'{backend}' is not installed")
    check(5_000, backend, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_bytes_are_those_of_what_is_built_of_the_whole_space(backend: str, tmp_path: Path) -> None:
    check(20_000, backend, tmp_path)
