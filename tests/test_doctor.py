"""`cbir doctor`: what it says of vectors for which binary works, of features behind a ReLU, and of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import cbir_faiss as cf
from cbir_faiss.base.registry import make
from cbir_faiss.cli import main
from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import InputError
from cbir_faiss.tuning.doctor import Diagnosis, doctor, nearest
from cbir_faiss.types import Floats


def cbir(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def centred(n: int = 1500, dim: int = 64) -> Floats:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((100, dim))
    return (centres[rng.integers(0, 100, n)] + 0.5 * rng.standard_normal((n, dim))).astype(np.float32)


def pooled(n: int = 1500, dim: int = 64) -> Floats:
    """Never negative, and hardly ever zero: as a network's features are after a ReLU and an average."""
    return np.exp(0.6 * centred(n, dim))


METRICS: tuple[tuple[str, ...], ...] = ((), ("--metric", "cosine"), ("--metric", "l2"))


def told(found: Diagnosis) -> dict[tuple[str, int], float]:
    return {(one.code, one.candidates): one.recall for one in found.predictions if one.recall is not None}


def test_binary_works_as_it_is_for_centred_vectors() -> None:
    found = doctor(centred())
    assert found.one_signed == 0
    assert found.effective_bits > 32
    assert told(found)["sign", 100] > 0.95
    assert found.advice.startswith("Binary works as it is")


def test_a_rotation_mends_features_that_are_never_negative() -> None:
    found = doctor(pooled())
    assert found.one_signed == 1
    assert found.effective_bits == 0
    assert told(found)["sign", 100] < 0.3
    assert told(found)["rotated", 100] > told(found)["rotated", 0]
    assert told(found)["rotated", 100] > 0.9
    assert "100% of the dimensions have one sign" in found.advice
    assert "rotat" in found.advice
    for one in found.predictions:
        assert one.ci95 is not None
        assert one.recall is not None
        assert one.ci95[0] <= one.recall <= one.ci95[1]


def test_the_figures_are_what_they_say() -> None:
    x = centred(1000)
    x[500:600] = x[:100]
    x[999] = 0
    found = doctor(x)
    assert found.duplicates == pytest.approx(0.2)  # those and what they equal
    assert found.zeros == 1
    assert found.norm_mean == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-5)
    line = np.outer(np.random.default_rng(0).uniform(1, 2, 2000), np.ones(8)).astype(np.float32)
    assert doctor(line, metric="l2").intrinsic_dimension == pytest.approx(1, abs=0.15)
    plane = np.random.default_rng(0).uniform(size=(3000, 2)).astype(np.float32) @ np.eye(2, 16, dtype=np.float32)
    assert doctor(plane, metric="l2").intrinsic_dimension == pytest.approx(2, abs=0.25)


def test_a_sample_predicts_what_all_items_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pooled(4000)
    every = told(doctor(x))
    monkeypatch.setattr("cbir_faiss.tuning.doctor.SAMPLE", 1000)
    some = doctor(x)
    assert (some.items, some.sample) == (4000, 1000)
    for code in ("sign", "rotated", "itq"):
        assert told(some)[code, 100] == pytest.approx(every[code, 100], abs=0.06)


@pytest.mark.parametrize("inner", [12, 32])
def test_a_sample_in_which_a_hundred_candidates_are_less_than_two_predicts_it_too(
    inner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30_000, inner)).astype(np.float32) @ rng.standard_normal((inner, 32)).astype(np.float32)
    unit, signs = x / np.linalg.norm(x, axis=1, keepdims=True), np.sign(x)
    asked = rng.choice(len(x), 200, replace=False)
    cosines, alike = unit[asked] @ unit.T, signs[asked] @ signs.T
    for scores in (cosines, alike):
        scores[np.arange(200), asked] = -np.inf
    near = np.argpartition(-cosines, 10, axis=1)[:, :10]
    among = np.argpartition(-alike, 100, axis=1)[:, :100]
    wanted = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near.tolist(), among.tolist(), strict=True)])
    monkeypatch.setattr("cbir_faiss.tuning.doctor.SAMPLE", 500)
    one = next(one for one in doctor(x).predictions if (one.code, one.candidates) == ("sign", 100))
    assert one.ci95 is not None
    assert one.recall == pytest.approx(wanted, abs=0.1)
    assert one.ci95[0] <= wanted <= one.ci95[1]


def test_hubness_is_near_0_without_hubs_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for n in (2_000, 6_000):
        low = doctor(rng.standard_normal((n, 2)).astype(np.float32) @ np.eye(2, 16, dtype=np.float32), metric="l2")
        assert abs(low.hubness) < 0.3
        high = doctor(rng.standard_normal((n, 96)).astype(np.float32), metric="l2")
        assert high.hubness > 1.5


def test_the_nearest_are_others_by_inner_product_and_among_equals() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 8)).astype(np.float32) * rng.uniform(0.1, 3, (400, 1)).astype(np.float32)
    x[200:] = x[:200]
    rows = np.arange(400)
    for metric in ("ip", "l2", "cosine"):
        found = nearest(x, rows, 5, metric)
        assert not (found.ids == rows[:, None]).any()
        products = x @ x.T
        apart = {"ip": -products, "l2": ((x[:, None] - x) ** 2).sum(-1)}.get(metric)
        if apart is not None:
            np.fill_diagonal(apart, np.inf)
            np.testing.assert_allclose(found.distances, np.sort(apart, axis=1)[:, :5], atol=1e-4)


def test_bits_are_learnt_for_the_metric() -> None:
    """Lengths tell these vectors apart, which bits of directions do not see."""
    rng = np.random.default_rng(0)
    x = 1 + 0.3 * rng.standard_normal((1500, 32))
    x = (x * np.exp(rng.standard_normal((1500, 1)))).astype(np.float32)
    codec = make("codecs", "itq", bits=32, normalise=False).fit(x)
    bits = np.unpackbits(codec.encode(x), axis=1).astype(np.float32)
    among = bits @ (1 - bits).T + (1 - bits) @ bits.T
    np.fill_diagonal(among, np.inf)
    near = nearest(x, np.arange(1500), 10, "l2").ids
    first = np.argpartition(among, 100, axis=1)[:, :100]
    wanted = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near.tolist(), first.tolist(), strict=True)])
    assert told(doctor(x, metric="l2"))["itq", 100] == pytest.approx(wanted, abs=0.02)


def test_vectors_that_are_all_equal_say_so() -> None:
    found = doctor(np.ones((300, 16), np.float32))
    assert found.intrinsic_dimension is None
    assert found.duplicates > 0.99
    assert "differ" in found.advice


def test_narrow_vectors() -> None:
    found = doctor(np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32))
    assert [one.reason for one in found.predictions if one.recall is None]
    assert found.advice


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (np.ones((20, 8), np.float32), "too few"),
        (np.zeros((300, 8), np.float32), "not zero"),
        (np.ones(300, np.float32), "shape|vectors"),
        (np.ones((300, 8), np.int64), "float vectors"),
        (np.full((300, 8), np.nan, np.float32), "NaN"),
    ],
)
def test_bad_vectors(x: Floats, error: str) -> None:
    with pytest.raises(InputError, match=error):
        doctor(x)


def test_of_a_config_a_collection_and_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", centred(600))
    config = {
        "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
        "codecs": [{"name": "lsh", "bits": 64}],
        "backends": [{"name": "faiss-binary-flat"}],
    }
    Collection.build(parse_config(config), tmp_path / "x.cbir").close()
    (tmp_path / "x.yaml").write_text(json.dumps(config))
    by_file = json.loads(cbir("doctor", "--vectors", tmp_path / "x.npy", "--json").stdout)
    assert by_file == json.loads(cbir("doctor", tmp_path / "x.yaml", "--json").stdout)
    assert by_file == json.loads(cbir("doctor", tmp_path / "x.cbir", "--json").stdout)
    assert by_file["items"] == 600
    assert by_file == json.loads(json.dumps(cf.doctor(np.load(tmp_path / "x.npy")).as_dict()))
    (tmp_path / "x.npy").unlink()
    lost = cbir("doctor", tmp_path / "x.cbir")
    assert lost.exit_code == 1
    assert "--vectors" in lost.stderr
    text = cbir("doctor", "--vectors", tmp_path / "x.npy")
    assert text.exit_code == 2


@pytest.mark.parametrize("codec", [{"name": "rotate"}, {"name": "pca", "dim": 16}])
def test_a_collection_of_turned_vectors_is_looked_at_as_they_were(tmp_path: Path, codec: dict[str, Any]) -> None:
    np.save(tmp_path / "x.npy", pooled(600))
    config = {
        "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
        "codecs": [codec],
        "backends": [{"name": "faiss-flat"}],
    }
    Collection.build(parse_config(config), tmp_path / "x.cbir").close()
    found = doctor(tmp_path / "x.cbir")
    assert (found.dim, found.one_signed) == (64, 1)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(InputError, match="--vectors"):
        doctor(tmp_path / "x.cbir")


def test_the_command_line_takes_a_metric(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pooled(600))
    told = [json.loads(cbir("doctor", "--vectors", tmp_path / "x.npy", "--json", *more).stdout) for more in METRICS]
    assert told[0] == told[1]
    assert told[1]["predictions"] != told[2]["predictions"]
    assert told[2] == json.loads(json.dumps(doctor(pooled(600), metric="l2").as_dict()))


def test_the_command_line_prints_a_recommendation(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pooled(600))
    lines = cbir("doctor", "--vectors", tmp_path / "x.npy").stdout.splitlines()
    assert lines[-1].startswith("An engine's own binary quantization fails")
    assert cbir("doctor").exit_code == 2
    (tmp_path / "bad.npy").write_text("no")
    assert cbir("doctor", "--vectors", tmp_path / "bad.npy").exit_code == 1
