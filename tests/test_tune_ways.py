"""What a setting is worth among more items than there are, of indexes that are then filled with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.config import Choice
from cbir_faiss.tuning.data import Data, naming_of_source, open_data
from cbir_faiss.tuning.grown import Encoded, Grown
from cbir_faiss.tuning.predict import Interval
from cbir_faiss.tuning.space import Space, Structure
from cbir_faiss.tuning.target import Target
from cbir_faiss.tuning.ways import Judge, Setting, Stores

RECALL = Target("knn_recall", 10, 0.0)
SMALL, GROWTH = 2_000, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """8,000 items near a curved sheet of 10 dimensions in 48, and queries of the same."""
    place, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    z = rng.standard_normal((10_000, 10)) @ rng.standard_normal((10, 48))
    np.save(place / "x.npy", (np.tanh(0.4 * z) + 0.05 * rng.standard_normal(z.shape)).astype(np.float32))
    naming = naming_of_source({"name": "vectors", "file": str(place / "x.npy")})
    return open_data(naming, "l2", place / "data", cache=None)


def foretold_and_found(data: Data, codec: Any, backend: Any, settings: list[Setting], place: Path) -> Any:
    """Of each setting the interval from a quarter of the items, and what the same queries find among all of them."""
    structure = Structure(Choice("codecs", **codec), Choice("backends", **backend), (Choice("rescorers", "none"),))
    grown = Grown(structure.backend, Encoded(structure.codec, data.items, data.labels), place)
    judged: list[list[Any]] = []
    for n in (SMALL, SMALL * GROWTH):
        grown.grow(n)
        judge = Judge(data, data.tuning, structure, grown, Stores(data, n), [RECALL], Space(), most=300)
        small = n == SMALL
        judged.append([
            judge.predicted(s, 10, GROWTH, 0.02) if small else float(judge.values(s, RECALL).mean()) for s in settings
        ])  # fmt: skip
    grown.remove()
    return list(zip(*judged, strict=True))


def check(told: Interval, found: float, within: float) -> None:
    assert told.low <= found <= told.high
    assert told.value == pytest.approx(found, abs=within)


def test_a_walk_in_a_graph_has_to_be_wider_among_more(data: Data, tmp_path: Path) -> None:
    settings = [Setting(0, {"ef": ef}) for ef in (20, 40, 160)]
    graph = {"name": "faiss-hnsw", "options": {"m": 4, "ef_construction": 20}}
    for told, found in foretold_and_found(data, {"name": "raw"}, graph, settings, tmp_path / "g"):
        check(told, found, 0.08)


@pytest.mark.parametrize("bits", [1, 4])
def test_codes_in_lists(data: Data, tmp_path: Path, bits: int) -> None:
    settings = [Setting(0, {"nprobe": nprobe}) for nprobe in (2, 8, 64)]
    lists = {"name": "faiss-eden", "options": {"bits": bits, "nlist": 64}}
    for told, found in foretold_and_found(data, {"name": "raw"}, lists, settings, tmp_path / "g"):
        check(told, found, 0.05)
