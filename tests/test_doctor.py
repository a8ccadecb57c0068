"""`cbir doctor`: what it says of vectors for which binary works, of features behind a ReLU, and of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import cbir_faiss as cf
from cbir_faiss.cli import main
from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import InputError
from cbir_faiss.tuning.doctor import Diagnosis, doctor
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
    assert found.duplicates == pytest.approx(0.1)
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


def test_the_command_line_prints_a_recommendation(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pooled(600))
    lines = cbir("doctor", "--vectors", tmp_path / "x.npy").stdout.splitlines()
    assert lines[-1].startswith("An engine's own binary quantization fails")
    assert cbir("doctor").exit_code == 2
    (tmp_path / "bad.npy").write_text("no")
    assert cbir("doctor", "--vectors", tmp_path / "bad.npy").exit_code == 1
