"""Every codec that is installed, through the contract; and what is particular to LSH."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cbir_faiss.base import Codec, registry
from cbir_faiss.codecs.lsh import LSH
from cbir_faiss.errors import ConfigError, CorruptCollection
from cbir_faiss.testing import CodecContract

# What a codec needs to be told for 200 vectors of 32 dimensions; one that is not named here takes its defaults, or
# 16 bits where it has to be told how many.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "lsh": [
        {"bits": 64},
        {"bits": 16, "center": False, "normalise": True},
        {"bits": 72, "projection": "orthogonal"},
        {"bits": 72, "projection": "hadamard"},
    ],
    "pca": [{"dim": 12}, {"dim": 32, "rotate": True, "normalise": True}],
    "rotate": [{}, {"rotation": "pca"}, {"rotation": "hadamard"}],
}


def _cases() -> list[Any]:
    cases: list[Any] = []
    for name in registry.names("codecs"):
        plugin = registry.load("codecs", name)
        bits = plugin.Options.model_fields.get("bits")
        told = OPTIONS.get(name, [{"bits": 16} if bits is not None and bits.is_required() else {}])
        cases += [pytest.param(plugin, options, id="-".join([name, *map(str, options.values())])) for options in told]
    return cases


@pytest.mark.parametrize(("plugin", "options"), _cases(), scope="class")
class TestEveryCodec(CodecContract):
    @pytest.fixture(autouse=True)
    def chosen(self, plugin: type[Codec], options: dict[str, Any]) -> None:
        self.plugin, self.options = plugin, options  # type: ignore[misc]


@pytest.mark.parametrize("projection", ["dense", "orthogonal", "hadamard"])
class TestLSH:
    def test_hamming_distance_estimates_the_angle(self, projection: str) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((40, 24), dtype=np.float32)
        codec = LSH(bits=4096, projection=projection, center=False).fit(x)
        codes = codec.encode(x)
        hamming = np.unpackbits(np.bitwise_xor(codes[:, None], codes[None]), axis=2).mean(axis=2)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        angle = np.arccos(np.clip(unit @ unit.T, -1, 1)) / np.pi
        assert np.abs(hamming - angle).max() < 0.06

    @pytest.mark.parametrize(("dim", "bits"), [(3, 8), (1, 16), (100, 8), (10, 1000), (65, 128), (1280, 64)])
    def test_any_number_of_bits_from_any_dimension(self, projection: str, dim: int, bits: int) -> None:
        x = np.random.default_rng(1).standard_normal((30, dim), dtype=np.float32)
        codec = LSH(bits=bits, projection=projection).fit(x)
        bits_set = np.unpackbits(codec.encode(x), axis=1)
        assert bits_set.shape == (30, bits)
        assert 0.2 < bits_set.mean() < 0.8

    def test_the_state_is_a_few_numbers(self, projection: str, tmp_path) -> None:
        x = np.random.default_rng(1).standard_normal((30, 256), dtype=np.float32)
        codec = LSH(bits=2048, projection=projection).fit(x)
        codec.save(tmp_path / "codec")
        assert (tmp_path / "codec").stat().st_size < 256 * 4 + 3000

    def test_another_generator_is_refused(self, projection: str, tmp_path, monkeypatch) -> None:
        x = np.random.default_rng(1).standard_normal((30, 20), dtype=np.float32)
        LSH(bits=64, projection=projection).fit(x).save(tmp_path / "codec")
        if projection == "hadamard":
            monkeypatch.setattr("cbir_faiss.codecs._hadamard._signs", lambda seed, n: np.ones(n, np.float32))
        else:
            changed = np.random.default_rng(77).standard_normal((20, 64), dtype=np.float32)
            monkeypatch.setattr("cbir_faiss.codecs.lsh._normals", lambda dim, bits, seed: changed.copy())
        with pytest.raises(CorruptCollection, match="other hyperplanes"):
            LSH(bits=64, projection=projection).restore(tmp_path / "codec")

    def test_a_seed_is_another_code(self, projection: str) -> None:
        x = np.random.default_rng(1).standard_normal((30, 20), dtype=np.float32)
        codes = [LSH(bits=64, seed=seed, projection=projection).fit(x).encode(x) for seed in (0, 1)]
        assert not np.array_equal(*codes)


def test_orthogonal_hyperplanes_are_orthogonal() -> None:
    x = np.random.default_rng(1).standard_normal((30, 16), dtype=np.float32)
    codec = LSH(bits=40, projection="orthogonal", center=False).fit(x)
    normals = codec.project(np.eye(16, dtype=np.float32))
    for start in (0, 16):
        block = normals[:, start : start + 16]
        np.testing.assert_allclose(block.T @ block, np.eye(16), atol=1e-5)
    np.testing.assert_allclose(normals[:, 32:].T @ normals[:, 32:], np.eye(8), atol=1e-5)


@pytest.mark.parametrize("bits", [0, 7, 12, -8, 2.5, "64"])
def test_bits_that_are_no_whole_bytes(bits: Any) -> None:
    with pytest.raises(ConfigError, match="bits"):
        LSH(bits=bits)


def test_hyperplanes_are_the_normals_of_their_seed() -> None:
    codec = LSH(bits=48, seed=3, center=False).fit(np.ones((2, 10), np.float32))
    normals = np.random.default_rng(3).standard_normal((10, 48), dtype=np.float32)
    np.testing.assert_allclose(codec.project(np.eye(10, dtype=np.float32)), normals, rtol=1e-6)
    assert codec.state["probe"].shape == (16,)
    assert LSH(bits=8, seed=3).fit(np.ones((2, 10), np.float32)).state["probe"].shape == (8,)
