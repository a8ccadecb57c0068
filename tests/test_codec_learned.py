"""The codec that is trained by a loss of networks, on embeddings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cbir_faiss.base import registry
from cbir_faiss.errors import ConfigError, InputError, MissingDependency
from cbir_faiss.testing import CodecContract

torch = pytest.importorskip("torch")

PLUGINS: dict[str, Any] = {name: registry.load("losses", name) for name in registry.names("losses")}
LOSSES = [name for name, loss in PLUGINS.items() if {"code", "labels"} <= loss.needs]
FEW: dict[str, Any] = {"bits": 16, "steps": 200, "hidden": 0}


class TestLearned(CodecContract):
    plugin = registry.load("codecs", "learned")
    options = FEW


class TestLearnedOfTwoLayers(CodecContract):
    plugin = registry.load("codecs", "learned")
    options = {**FEW, "hidden": 24}


class TestLearnedWithoutLabels(CodecContract):
    plugin = registry.load("codecs", "learned")
    options = {**FEW, "loss": "greedy"}


def classes(n: int = 600, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Four classes that lie two and two on a line, so that distance alone does not tell them; nothing is centred."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    x = rng.standard_normal((n, 24)) * np.linspace(4, 0.5, 24) + 1
    x[:, -1] += 3 * (labels % 2)
    x[:, -2] += 3 * (labels // 2)
    return x.astype(np.float32), labels


def precision(codes: NDArray[np.uint8], labels: NDArray[np.int64], k: int = 10) -> float:
    bits = np.unpackbits(codes, axis=1).astype(np.int64)
    apart = (bits[:, None] != bits[None]).sum(axis=2)
    np.fill_diagonal(apart, 99)
    return float((labels[np.argsort(apart, axis=1, kind="stable")[:, :k]] == labels[:, None]).mean())


@pytest.mark.parametrize("loss", [*LOSSES, {"name": "likelihood", "balanced": True}], ids=str)
def test_classes_of_labels_get_codes_of_their_own(loss: str | dict[str, Any]) -> None:
    (x, labels), (others, theirs) = classes(), classes(seed=1)
    codec = registry.make("codecs", "learned", loss=loss, **FEW)
    by_distance = registry.make("codecs", "itq", bits=16).fit(x)
    found, usual = (precision(one.encode(others), theirs) for one in (codec.fit(x, labels), by_distance))
    assert codec.needs_labels
    assert found > usual + 0.2


@pytest.mark.parametrize("loss", ["greedy", "bihalf"])
def test_without_labels_codes_are_as_near_as_embeddings(loss: str) -> None:
    x, others = classes()[0], classes(seed=1)[0]
    codec = registry.make("codecs", "learned", loss=loss, **FEW)
    assert not codec.needs_labels
    signs = np.unpackbits(codec.fit(x).encode(others), axis=1).astype(float) * 2 - 1
    centred = others - x.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    pairs = np.triu_indices(len(others), 1)
    assert np.corrcoef((signs @ signs.T)[pairs], (centred @ centred.T)[pairs])[0, 1] > 0.4


def test_a_hidden_layer_tells_what_a_plane_cannot() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (800, 2)).astype(np.float32)
    labels = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(np.int64)
    how: dict[str, Any] = {"bits": 8, "steps": 600, "lr": 0.01, "dropout": 0.0}
    plain, deep = (registry.make("codecs", "learned", hidden=h, **how).fit(x[:400], labels[:400]) for h in (0, 32))
    assert precision(deep.encode(x[400:]), labels[400:]) > 0.9 > precision(plain.encode(x[400:]), labels[400:])


def test_what_has_no_label_is_left_out() -> None:
    x, labels = classes(200)
    some = labels != 3
    with_all = registry.make("codecs", "learned", center=False, **FEW).fit(x, np.where(some, labels, -1))
    with_some = registry.make("codecs", "learned", center=False, **FEW).fit(x[some], labels[some])
    np.testing.assert_array_equal(with_all.encode(x), with_some.encode(x))


def test_classes_may_have_any_numbers() -> None:
    x, labels = classes(200)
    ours, theirs = (
        registry.make("codecs", "learned", **FEW).fit(x, numbers) for numbers in (labels, 10**12 + 7 * labels)
    )
    np.testing.assert_array_equal(ours.encode(x), theirs.encode(x))


def test_the_scale_of_embeddings_does_not_matter() -> None:
    x, labels = classes(200)
    ours, theirs = (registry.make("codecs", "learned", **FEW).fit(one, labels) for one in (x, 1024 * x))
    np.testing.assert_allclose(ours.project(x), theirs.project(1024 * x), rtol=1e-3, atol=1e-3)


def test_torch_is_left_as_it_was() -> None:
    x, labels = classes(100)
    torch.manual_seed(5)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(5)
    registry.make("codecs", "learned", bits=8, steps=3).fit(x, labels)
    assert torch.rand(1) == expected
    assert torch.get_num_threads() == threads


def test_torch_is_not_needed_to_encode(tmp_path: Path) -> None:
    x, labels = classes(100)
    registry.make("codecs", "learned", **FEW).fit(x, labels).save(tmp_path / "state")
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom cbir_faiss.base import registry\n"
        f"codec = registry.make('codecs', 'learned', **{FEW!r}).restore(Path({str(tmp_path / 'state')!r}))\n"
        "assert codec.encode(np.ones((2, 24), np.float32)).shape == (2, 2)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = classes(100)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match="torch"):
        registry.make("codecs", "learned", **FEW).fit(x, labels)


def test_the_size_of_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = classes(100)
    codec = registry.make("codecs", "learned", **{**FEW, "hidden": 9}).fit(x, labels)
    expected = codec.project(x)
    monkeypatch.setattr("cbir_faiss.codecs.learned._ROWS", 7)
    np.testing.assert_allclose(codec.project(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "nothing"}, "loss: no loss named 'nothing'; there are: bihalf"),
        ({"loss": "classification"}, "loss: loss 'classification' trains no code"),
        ({"loss": "distillation"}, "loss: loss 'distillation' trains no code"),
        ({"loss": "cibhash"}, "loss: loss 'cibhash' alters pictures, and these are embeddings: train a network"),
        ({"loss": {"name": "csq", "group": 1}}, "loss: group: unknown key"),
        ({"loss": {"name": "csq", 1: 2}}, "loss: "),
        ({"loss": {"margin": 0.1}}, "loss: must be the name of a loss, or a mapping with its name"),
        ({"loss": {"name": "orthohash", "margn": 1}}, "loss: margn: unknown key; did you mean 'margin'"),
        ({"steps": 0}, "steps: must be"),
        ({"dropout": 1}, "dropout: must be"),
        ({"lr": 0}, "lr: must be"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        registry.make("codecs", "learned", bits=16, **options)
    assert "\n" not in str(caught.value)


def test_labels_that_cannot_be_used() -> None:
    x, labels = classes(50)
    codec = registry.make("codecs", "learned", **FEW)
    for bad in (np.zeros(50, np.int64), np.where(labels == 1, 1, -1)):
        with pytest.raises(InputError, match="at least two classes"):
            codec.fit(x, bad)
    for several in (np.eye(4, dtype=bool)[labels], labels.astype(np.float32)):
        with pytest.raises(InputError, match="takes one label an item"):
            codec.fit(x, several)
    with pytest.raises(InputError, match="learns from labels"):
        codec.fit(x)


def test_a_rate_at_which_it_blows_up_is_said() -> None:
    x, labels = classes(50)
    with pytest.raises(InputError, match=r"the loss is nan in step .*: lower lr"):
        registry.make("codecs", "learned", bits=8, steps=50, lr=1e30).fit(x, labels)


def test_a_sample_of_one_cannot_be_learned_from() -> None:
    with pytest.raises(InputError, match="at least 2 vectors to learn from: raise train_size"):
        registry.make("codecs", "learned", bits=8, train_size=1, center=False, loss="greedy").fit(classes(50)[0])
