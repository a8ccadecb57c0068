"""Collections made by version 0.1 open, search, and take changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cbir_faiss.base.filters import parse_where
from cbir_faiss.collection import Collection

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())


@pytest.fixture(params=sorted(EXPECTED))
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / str(request.param)
    shutil.copytree(FIXTURES / str(request.param), folder)
    return folder


def test_it_opens_and_finds_what_it_found(stored: Path) -> None:
    expected = EXPECTED[stored.name]
    with Collection.open(stored) as collection:
        assert collection.verify() == []
        assert len(collection) == expected["items"]
        found = collection.search_ids(expected["ids"], 5)
    for now, then in zip(found, expected["found"], strict=True):
        assert [match.id for match in now] == [item for item, _ in then]
        np.testing.assert_allclose([match.distance for match in now], [far for _, far in then], atol=2e-5)


def test_it_takes_additions_and_deletions(stored: Path) -> None:
    with Collection.open(stored) as collection:
        items, dim = len(collection), collection.manifest.dim
        vectors = np.random.default_rng(0).normal(size=(3, dim)).astype(np.float32)
        ids = collection.add_vectors(vectors, [{"path": f"new/{i}", "label": "new"} for i in range(3)])
        assert [hits[0].id for hits in collection.search(vectors, 1)] == ids.tolist()
        assert collection.delete(where='label = "new"') == 3
        assert len(collection) == items
    with Collection.open(stored) as again:
        assert again.verify() == []
        assert len(again) == items


def test_nearly_all_can_be_deleted(stored: Path) -> None:
    """Of an index with lists, too, that could not learn from what is left."""
    with Collection.open(stored) as collection:
        ids = [item for item in range(collection.manifest.next_id) if collection._store.holds(np.array([item]))[0]]
        assert collection.delete(ids[2:]) == len(ids) - 2
        assert [match.id for match in collection.search_ids(ids[:1], 9)[0]] == [ids[1]]
        assert collection.delete(ids[:2]) == 2
        assert collection.verify() == []


def test_filters_and_counts_are_those_of_the_documents(stored: Path) -> None:
    with Collection.open(stored) as collection:
        records = dict(collection._store.records())
        labels = {str(record.document["label"]) for record in records.values() if "label" in record.document}
        for label in labels:
            wanted = {item for item, record in records.items() if record.document.get("label") == label}
            found = collection._store.select(parse_where({"label": label}))
            assert set(found.tolist()) == wanted
            assert collection.info()["labels"][label] == len(wanted)
        item, record = next(iter(records.items()))
        assert collection._store.select(parse_where({"path": record.path})).tolist() == [item]
