"""The contract of a codec: shapes and packing, the same answer every time, state in a file, bad input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from cbir_faiss.base import Codec
from cbir_faiss.errors import CbirError, ConfigError, CorruptCollection, DimensionMismatch, InputError
from cbir_faiss.testing._contract import Contract, floats
from cbir_faiss.types import Floats


class CodecContract(Contract):
    """Subclass it with ``plugin`` and ``options`` (the data: ``items`` x ``dim`` in 4 labelled clusters)."""

    plugin: ClassVar[type[Codec]]
    options: ClassVar[Mapping[str, Any]] = {}
    items: ClassVar[int] = 200
    dim: ClassVar[int] = 32

    def make(self) -> Codec:
        return self.plugin(**self.options)

    def data(self, n: int = 0, seed: int = 0) -> Floats:
        """float32 ``(n, dim)``: four clusters, one after the other, and not centred on zero."""
        n = n or self.items
        centres = floats(4, self.dim, seed=99) * 3 + 1
        return floats(n, self.dim, seed) + centres[self.labels(n)]

    def labels(self, n: int = 0) -> NDArray[np.int64]:
        return np.arange(n or self.items, dtype=np.int64) % 4

    @pytest.fixture
    def fitted(self) -> Codec:
        return self.make().fit(self.data(), self.labels())

    def test_declares_itself(self) -> None:
        """Troubleshooting: set ``name`` and ``kind`` on the class; a binary codec has a ``bits`` option or property."""
        assert self.plugin.name
        assert self.plugin.kind in ("float", "binary")
        with pytest.raises(ConfigError, match="no_such_option"):
            self.plugin(**{**self.options, "no_such_option": 1})

    def test_shape_and_packing(self, fitted: Codec) -> None:
        """Troubleshooting: ``_project`` is float32 ``(n, bits)``; a bit is 1 where it is > 0, first bit highest."""
        x = self.data(7, seed=1)
        projected, codes = fitted.project(x), fitted.encode(x)
        assert projected.dtype == np.float32
        assert np.isfinite(projected).all()
        if fitted.kind == "float":
            assert fitted.bits is None
            assert (codes.dtype, codes.shape) == (np.dtype(np.float32), (7, fitted.width))
            return
        assert fitted.bits is not None
        assert fitted.width % 8 == 0
        assert fitted.width - 8 < fitted.bits <= fitted.width
        assert projected.shape == (7, fitted.bits)
        assert (codes.dtype, codes.shape) == (np.dtype(np.uint8), (7, fitted.width // 8))
        assert np.array_equal(np.unpackbits(codes, axis=1)[:, : fitted.bits], projected > 0)
        assert not np.unpackbits(codes, axis=1)[:, fitted.bits :].any(), "bits beyond the code's length are zero"

    def test_same_answer_every_time(self, fitted: Codec) -> None:
        """Troubleshooting: seed every random choice from the options."""
        x = self.data(20, seed=1)
        other = self.make().fit(self.data(), self.labels())
        assert np.array_equal(fitted.encode(x), other.encode(x))
        assert np.array_equal(fitted.encode(x), fitted.encode(x))

    def test_batch_gives_what_single_vectors_give(self, fitted: Codec) -> None:
        """Troubleshooting: nothing may be computed over the batch (a mean, say)."""
        x = self.data(20, seed=1)
        single = np.concatenate([fitted.project(x[i : i + 1]) for i in range(20)])
        np.testing.assert_allclose(single, fitted.project(x), rtol=1e-3, atol=1e-3)
        assert len(fitted.encode(x[:0])) == 0
        assert fitted.encode(x[:0]).shape[1] == fitted.encode(x).shape[1]

    def test_neighbours_stay_neighbours(self, fitted: Codec) -> None:
        """Troubleshooting: items of one cluster must be nearer to each other than to another cluster."""
        codes, labels = fitted.encode(self.data(40, seed=1)), self.labels(40)
        if fitted.kind == "binary":
            differing = np.bitwise_xor(codes[:, None], codes[None])
            apart = np.unpackbits(differing, axis=2).sum(axis=2, dtype=np.float64)
        else:
            apart = ((codes[:, None].astype(np.float64) - codes[None]) ** 2).sum(axis=2)
        same = labels[:, None] == labels[None]
        assert apart[same].mean() < 0.9 * apart[~same].mean()

    def test_leaves_its_input_alone(self) -> None:
        """Troubleshooting: centre and normalise into a copy."""
        x, labels = self.data(), self.labels()
        kept = x.copy(), labels.copy()
        self.make().fit(x, labels).encode(x)
        assert np.array_equal(x, kept[0])
        assert np.array_equal(labels, kept[1])

    def test_float64_is_float32(self, fitted: Codec) -> None:
        """Troubleshooting: the base class converts; do not override ``encode``."""
        x = self.data(20, seed=1)
        assert np.array_equal(fitted.encode(x.astype(np.float64)), fitted.encode(x))

    def test_saved_state(self, fitted: Codec, tmp_path: Path) -> None:
        """Troubleshooting: all that ``_fit`` learns is in ``self.state``; derive the rest in ``_ready``."""
        fitted.save(tmp_path / "codec")
        again = self.make().restore(tmp_path / "codec")
        x = self.data(20, seed=1)
        assert np.array_equal(again.encode(x), fitted.encode(x))
        assert again.width == fitted.width
        again.save(tmp_path / "again")
        assert np.array_equal(self.make().restore(tmp_path / "again").encode(x), fitted.encode(x))

    def test_damaged_state_is_refused(self, fitted: Codec, tmp_path: Path) -> None:
        """Troubleshooting: leave saving to the base class: its file carries a digest."""
        path = tmp_path / "codec"
        fitted.save(path)
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 0x10
        for damaged in (content[:-3], content[:10], b"", bytes(changed)):
            path.write_bytes(damaged)
            with pytest.raises(CorruptCollection):
                self.make().restore(path)
        path.unlink()
        with pytest.raises(CorruptCollection):
            self.make().restore(path)

    def test_not_fitted(self) -> None:
        """Troubleshooting: the base class checks."""
        codec = self.make()
        with pytest.raises(InputError, match="not fitted"):
            codec.encode(self.data(3))
        with pytest.raises(InputError, match="not fitted"):
            codec.project(self.data(3))

    def test_bad_vectors(self, fitted: Codec) -> None:
        """Troubleshooting: the base class checks; do not override ``fit`` and ``encode`` themselves."""
        x = self.data(20)
        broken = x.copy()
        broken[3, 2] = np.nan
        with pytest.raises(DimensionMismatch):
            fitted.encode(x[:, :-1])
        for bad in (broken, x[0], x.astype(np.int32), x.tolist()):
            with pytest.raises(InputError):
                fitted.encode(bad)  # type: ignore[arg-type]
            with pytest.raises(InputError):
                self.make().fit(bad, self.labels(20))  # type: ignore[arg-type]
        with pytest.raises(InputError):
            self.make().fit(self.data(), self.labels()[:-1])
        with pytest.raises(InputError):
            self.make().fit(x[:0], self.labels(20)[:0])
        if self.make().needs_labels:
            with pytest.raises(InputError, match="labels"):
                self.make().fit(self.data())

    def test_constant_vectors(self) -> None:
        """Troubleshooting: no variance: one clear error, or codes that are finite and all equal; never NaN."""
        x = np.full((self.items, self.dim), 0.25, np.float32)
        try:
            codec = self.make().fit(x, self.labels())
        except CbirError:
            return
        assert np.isfinite(codec.project(x)).all()
        assert (codec.encode(x) == codec.encode(x)[0]).all()
