"""The contract of an extractor: declared columns, the same answer every time, a frozen copy that agrees."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from PIL import Image

from cbir_faiss.base import Extractor
from cbir_faiss.base.options import parse_options
from cbir_faiss.base.registry import load
from cbir_faiss.errors import BadImage, ConfigError, InputError
from cbir_faiss.testing._contract import Contract, floats


class ExtractorContract(Contract):
    """Subclass it with ``plugin`` and ``options``. An extractor of vectors is given ``(dim,)`` float32 items."""

    plugin: ClassVar[type[Extractor]]
    options: ClassVar[Mapping[str, Any]] = {}
    dim: ClassVar[int] = 16
    tolerance: ClassVar[float] = 1e-3
    """Largest difference between a batch and single items, relative to the largest value."""

    def make(self) -> Extractor:
        return self.plugin(**self.options)

    def items(self) -> list[Any]:
        """Four images of different sizes and contents (or vectors), the last equal to the first."""
        if self.plugin.reads == "vector":
            vectors = list(floats(3, self.dim))
            return [*vectors, vectors[0]]
        rng = np.random.default_rng(0)
        sizes = [(48, 64), (80, 40), (33, 33)]
        pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
        return [*pictures, pictures[0]]

    @pytest.fixture
    def extractor(self) -> Extractor:
        return self.make()

    def test_declares_itself(self, extractor: Extractor) -> None:
        """Troubleshooting: ``outputs`` names every column with width and dtype; embeddings are float32 columns."""
        assert self.plugin.name
        assert extractor.outputs
        assert extractor.embeddings
        assert all(extractor.outputs[name][1] == "float32" for name in extractor.embeddings)
        with pytest.raises(ConfigError, match="no_such_option"):
            self.plugin(**{**self.options, "no_such_option": 1})

    def test_columns(self, extractor: Extractor) -> None:
        """Troubleshooting: all columns, of the declared width and dtype, finite, one row an item."""
        columns = extractor(self.items())
        assert list(columns) == list(extractor.outputs)
        for name, (width, dtype) in extractor.outputs.items():
            assert (columns[name].shape, columns[name].dtype) == ((4, width), np.dtype(dtype))
            assert columns[name].dtype.kind != "f" or np.isfinite(columns[name]).all()

    def test_tells_images_apart(self, extractor: Extractor) -> None:
        """Troubleshooting: equal items give equal rows, different items different ones."""
        first = extractor(self.items())[extractor.embeddings[0]]
        np.testing.assert_allclose(first[3], first[0], rtol=0, atol=self._slack(first))
        assert not np.allclose(first[1], first[0], rtol=0, atol=self._slack(first))

    def test_batch_gives_what_single_items_give(self, extractor: Extractor) -> None:
        """Troubleshooting: put the model in evaluation mode; batch statistics must not enter."""
        items = self.items()
        batch = extractor(items)
        for name in extractor.embeddings:
            single = np.concatenate([extractor([item])[name] for item in items])
            np.testing.assert_allclose(single, batch[name], rtol=0, atol=self._slack(single))

    def test_prepares_in_threads(self, extractor: Extractor) -> None:
        """Troubleshooting: ``_prepare`` must not keep state between images."""
        items = self.items() * 4
        with ThreadPoolExecutor(4) as pool:
            threaded = list(pool.map(extractor.prepare, items))
        for item, got in zip(items, threaded, strict=True):
            np.testing.assert_array_equal(got, extractor.prepare(item))

    def test_small_and_narrow_images(self, extractor: Extractor) -> None:
        """Troubleshooting: a picture of one pixel, or one 200 times as wide as high, is embedded or is a BadImage."""
        if self.plugin.reads == "vector":
            pytest.skip("takes vectors")
        for size in ((1, 1), (400, 2)):
            try:
                row = extractor([Image.new("RGB", size, (200, 30, 90))])[extractor.embeddings[0]]
            except BadImage:
                continue
            assert np.isfinite(row).all()

    def test_empty_batch(self, extractor: Extractor) -> None:
        """Troubleshooting: the base class checks; do not override ``extract`` itself."""
        prepared = extractor.prepare(self.items()[0])
        with pytest.raises(InputError):
            extractor.extract(np.empty((0, *prepared.shape), prepared.dtype))

    def test_fingerprint(self, extractor: Extractor) -> None:
        """Troubleshooting: it depends on plugin, options and weights, and on nothing else."""
        assert extractor.fingerprint() == self.make().fingerprint()

    def test_frozen_copy_agrees(self, extractor: Extractor, tmp_path: Path) -> None:
        """Troubleshooting: ``freeze`` writes all it needs into the folder; its path options are relative to that."""
        name, options = extractor.freeze(tmp_path)
        plugin = self.plugin if name == self.plugin.name else cast("type[Extractor]", load("extractors", name))
        found = parse_options(plugin.Options, options, folder=str(tmp_path))
        frozen = plugin(**found.model_dump(mode="json"))
        items = self.items()
        for column in extractor.embeddings:
            expected, got = extractor(items)[column], frozen(items)[column]
            np.testing.assert_allclose(got, expected, rtol=0, atol=self._slack(expected))

    def _slack(self, values: Any) -> float:
        return self.tolerance * max(float(np.abs(values).max()), 1e-6)
