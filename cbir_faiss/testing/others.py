"""The contracts of sources and rescorers."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from cbir_faiss.base import Rescorer, Source
from cbir_faiss.errors import ConfigError, CorruptCollection
from cbir_faiss.testing._contract import Contract, floats
from cbir_faiss.types import MISSING_ID, Hits, Ids


class SourceContract(Contract):
    """Subclass it with ``plugin`` and ``place_options``, which prepares a few items in a folder and returns options."""

    plugin: ClassVar[type[Source]]

    def place_options(self, place: Path) -> Mapping[str, Any]:
        """Options of a source with at least three items; write what it needs below ``place``."""
        return {}

    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        return self.plugin(**self.place_options(tmp_path))

    def test_declares_itself(self, tmp_path: Path) -> None:
        """Troubleshooting: set ``name`` and ``yields`` on the class."""
        assert self.plugin.name
        assert self.plugin.yields in ("image", "vector")
        with pytest.raises(ConfigError, match="no_such_option"):
            self.plugin(**{**self.place_options(tmp_path), "no_such_option": 1})

    def test_items(self, source: Source) -> None:
        """Troubleshooting: sorted by path, each path once, labels are texts, the same at every call."""
        items = source.items()
        paths = [item.path for item in items]
        assert len(items) >= 3
        assert paths == sorted(paths)
        assert len(set(paths)) == len(paths)
        assert all(isinstance(label, str) for item in items for label in item.labels)
        assert [item.path for item in source.items()] == paths

    def test_read(self, source: Source) -> None:
        """Troubleshooting: an RGB ``PIL.Image`` or a float32 vector, also from several threads."""
        n = min(len(source.items()), 8)
        with ThreadPoolExecutor(4) as pool:
            things = list(pool.map(source.read, range(n)))
        for index, thing in enumerate(things):
            again = np.asarray(source.read(index))
            if source.yields == "image":
                assert isinstance(thing, Image.Image)
                assert thing.mode == "RGB"
            else:
                assert (thing.dtype, thing.ndim) == (np.dtype(np.float32), 1)
            assert np.array_equal(np.asarray(thing), again)

    def test_content_key(self, source: Source) -> None:
        """Troubleshooting: the key depends on the content alone."""
        keys = [source.content_key(index) for index in range(len(source.items()))]
        assert all(isinstance(key, bytes) and key for key in keys)
        assert keys == [source.content_key(index) for index in range(len(keys))]
        assert len(set(keys)) > 1


class RescorerContract(Contract):
    """Subclass it with ``plugin`` and ``options``; ``items`` x ``dim`` embeddings, ``bits`` sign codes of them."""

    plugin: ClassVar[type[Rescorer]]
    options: ClassVar[Mapping[str, Any]] = {}
    items: ClassVar[int] = 50
    dim: ClassVar[int] = 16

    def make(self) -> Rescorer:
        return self.plugin(**self.options)

    def columns(self, n: int, seed: int = 0) -> dict[str, Any]:
        x = floats(n, self.dim, seed)
        odds = np.exp(4 * x[:, :5])  # of five classes, one of which is mostly the likely one
        probs = odds / odds.sum(axis=1, keepdims=True)
        phash = np.random.default_rng(seed).integers(0, 256, (n, 8), dtype=np.uint8)
        return {"embedding": x, "projection": x, "code": np.packbits(x > 0, axis=1), "probs": probs, "phash": phash}

    @pytest.fixture
    def database(self) -> dict[str, Any]:
        """The columns of the items; item n has id ``10 * n``."""
        return self.columns(self.items)

    def run(self, rescorer: Rescorer, database: Mapping[str, Any], hits: Hits, k: int) -> Hits:
        extracted = {name: column for name, column in database.items() if name != "code"}
        stored = {"code": database["code"], **rescorer.pack(extracted)}

        def fetch(ids: Ids, column: str) -> Any:
            assert (ids >= 0).all(), "a missing hit was fetched"
            assert column in rescorer.needs_items, f"'{column}' is not declared in needs_items"
            return stored[column][ids // 10]

        queries = {name: self.columns(len(hits), seed=1)[name] for name in rescorer.needs_queries}
        return rescorer.rescore(queries, hits, fetch, k)

    def hits(self, k: int = 20, missing: int = 0) -> Hits:
        """Three queries with ``k`` candidates each, the last ``missing`` of them not there."""
        rng = np.random.default_rng(2)
        ids = np.stack([rng.permutation(self.items)[:k] * 10 for _ in range(3)]).astype(np.int64)
        distances = np.tile(np.arange(k, dtype=np.float32), (3, 1))
        if missing:
            ids[:, -missing:], distances[:, -missing:] = MISSING_ID, np.inf
        return Hits(ids, distances)

    @pytest.fixture
    def rescorer(self, database: dict[str, Any]) -> Rescorer:
        return self.make().fit({name: database[name] for name in self.plugin.needs_items}, None)

    def test_declares_itself(self) -> None:
        """Troubleshooting: set ``name``; name in ``needs_items`` and ``needs_queries`` each column that is read."""
        assert self.plugin.name
        with pytest.raises(ConfigError, match="no_such_option"):
            self.plugin(**{**self.options, "no_such_option": 1})

    @pytest.mark.parametrize("missing", [0, 4, 20])
    def test_form(self, missing: int, rescorer: Rescorer, database: dict[str, Any]) -> None:
        """Troubleshooting: k columns, nearest first, only ids that were candidates, missing ones last."""
        hits = self.hits(missing=missing)
        again = self.run(rescorer, database, hits, 5)
        assert again.ids.shape == again.distances.shape == (3, 5)
        assert [again.ids.dtype, again.distances.dtype] == [np.dtype(np.int64), np.dtype(np.float32)]
        assert np.array_equal(again.ids == MISSING_ID, np.isinf(again.distances))
        assert bool((again.distances[:, 1:] >= again.distances[:, :-1]).all())
        for before, after in zip(hits.ids, again.ids, strict=True):
            found = after[after != MISSING_ID]
            assert set(found.tolist()) <= set(before.tolist())
            assert len(set(found.tolist())) == len(found)

    def test_order_of_candidates_does_not_matter(self, rescorer: Rescorer, database: dict[str, Any]) -> None:
        """Troubleshooting: a candidate's new distance depends on the query and the item only."""
        if not self.plugin.needs_items:
            pytest.skip("keeps the order of the first stage")
        hits = self.hits()
        turned = Hits(np.ascontiguousarray(hits.ids[:, ::-1]), hits.distances)
        first, second = self.run(rescorer, database, hits, 5), self.run(rescorer, database, turned, 5)
        np.testing.assert_allclose(first.distances, second.distances, rtol=1e-4, atol=1e-4)

    def test_saved_state(self, rescorer: Rescorer, database: dict[str, Any], tmp_path: Path) -> None:
        """Troubleshooting: all that ``_fit`` learns is in ``self.state``."""
        rescorer.save(tmp_path / "rescorer")
        again = self.make().restore(tmp_path / "rescorer")
        first, second = self.run(rescorer, database, self.hits(), 5), self.run(again, database, self.hits(), 5)
        assert np.array_equal(first.ids, second.ids)
        assert np.array_equal(first.distances, second.distances)
        content = (tmp_path / "rescorer").read_bytes()
        (tmp_path / "rescorer").write_bytes(content[:-3])
        with pytest.raises(CorruptCollection):
            self.make().restore(tmp_path / "rescorer")
