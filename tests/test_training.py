"""Training: losses against their formulas, augmentation, views, data, and a loop that can be stopped at any moment."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from _colours import NETWORK, write_colours
from click.testing import CliRunner, Result
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cbir_faiss.base import registry  # noqa: E402
from cbir_faiss.base.loss import Batch, Task  # noqa: E402
from cbir_faiss.base.options import parse_options  # noqa: E402
from cbir_faiss.cli import main  # noqa: E402
from cbir_faiss.errors import CbirError, ConfigError, CorruptCollection, InputError, TrainingFailed  # noqa: E402
from cbir_faiss.extractors.trained import Trained  # noqa: E402
from cbir_faiss.images.preprocess import Preprocess  # noqa: E402
from cbir_faiss.nets.model import load_model, new_card  # noqa: E402
from cbir_faiss.sources.folder import Folder  # noqa: E402
from cbir_faiss.training import loop  # noqa: E402
from cbir_faiss.training.augment import Augment, augment  # noqa: E402
from cbir_faiss.training.checkpoint import Epoch  # noqa: E402
from cbir_faiss.training.config import load_training, parse_training  # noqa: E402
from cbir_faiss.training.curves import draw_curves  # noqa: E402
from cbir_faiss.training.data import load_data  # noqa: E402
from cbir_faiss.training.loop import Result as Trained_  # noqa: E402
from cbir_faiss.training.loop import train  # noqa: E402
from cbir_faiss.training.losses.csq import hash_centers  # noqa: E402
from cbir_faiss.training.validation import retrieval_map  # noqa: E402
from cbir_faiss.training.views import ViewedSource, Views  # noqa: E402

EACH = 24
FIT = {"epochs": 3, "batch_size": 16, "lr": 0.01, "held_out": 4, "device": "cpu"}
TEACHER = {"name": "histogram"}


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Three classes of 24 pictures, 24 x 24 pixels of noise about a colour."""
    return write_colours(tmp_path / "colours", EACH, 24)


def document(root: Path, **changed: Any) -> dict[str, Any]:
    """A training; ``fit`` is what is other than ``FIT``, None takes a section out."""
    whole = {
        "source": {"name": "folder", "root": str(root)},
        "network": NETWORK,
        "bits": 8,
        "losses": [{"name": "csq"}],
        **changed,
        "fit": {**FIT, **changed.get("fit", {})},
    }
    return {key: value for key, value in whole.items() if value is not None}


def start(root: Path, out: Path, *, report: Callable[[Epoch], None] | None = None, **changed: Any) -> Trained_:
    return train(parse_training(document(root, **changed)), out, report=report)


def data_of(root: Path, **changed: Any) -> Any:
    how = Preprocess(resize=(16, 16), crop=None)
    return load_data(parse_training(document(root, **changed)), how, None)


# ------------------------------------------------------------------------------------------------------------- losses

N, DIM, BITS, WIDTH = 12, 6, 8, 10
every_loss = pytest.mark.parametrize("name", registry.names("losses"))


def task(**changed: Any) -> Task:
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "dim": DIM,
        "bits": BITS,
        "classes": ("a", "b", "c"),
        "labels": np.arange(N) % 3,
        "teacher": rng.normal(1, 1, (N, WIDTH)).astype(np.float32),
        "seed": 0,
    }
    return Task(**{**parts, **changed})


def outputs_of(seed: int = 1, n: int = N) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    widths = {"features": DIM, "code": BITS, "logits": 3}
    return {k: torch.randn(n, width, generator=generator).requires_grad_() for k, width in widths.items()}


def batch_of(what: Task) -> Batch:
    assert what.labels is not None
    assert what.teacher is not None
    return Batch(torch.from_numpy(what.labels), torch.from_numpy(what.teacher))


def loss_of(name: str, outputs: Mapping[str, Any], what: Task | None = None, **options: Any) -> float:
    what = what or task()
    return float(registry.make("losses", name, **options).start(what)(outputs, batch_of(what)).detach())


def arrays(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in outputs.items()}


@every_loss
def test_a_loss_is_a_finite_number_that_can_be_brought_down(name: str) -> None:
    loss, what, outputs = registry.make("losses", name), task(), outputs_of()
    module = loss.start(what)
    optimizer = torch.optim.Adam([*outputs.values(), *module.parameters()], 0.05)
    values = []
    for _ in range(40):
        value = module(outputs, batch_of(what))
        assert value.shape == ()
        assert torch.isfinite(value)
        optimizer.zero_grad()
        value.backward()
        values.append(value.item())
        optimizer.step()
    assert values[-1] < values[0]
    # It works on what it says that it needs; ``teacher`` and ``labels`` are no outputs.
    used = {key for key, value in outputs.items() if value.grad is not None and value.grad.abs().sum() > 0}
    assert used & {"code", "logits"} == loss.needs & {"code", "logits"}
    assert used


@every_loss
def test_a_loss_is_the_same_again_and_its_state_can_be_stored(name: str) -> None:
    first, again = (registry.make("losses", name).start(task()) for _ in range(2))
    with torch.no_grad():
        assert first(outputs_of(), batch_of(task())) == again(outputs_of(), batch_of(task()))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))


MISSING: Mapping[str, tuple[dict[str, Any], type[CbirError], str]] = {
    "labels": ({"labels": None, "classes": ()}, InputError, "learns from labels, and some of these items have none"),
    "code": ({"bits": None}, ConfigError, "bits: loss '{name}' trains a code: give bits"),
    "teacher": ({"teacher": None}, ConfigError, "teacher: loss '{name}' learns from another's embeddings: give"),
}


@every_loss
@pytest.mark.parametrize("part", MISSING)
def test_what_a_loss_needs(name: str, part: str) -> None:
    loss = registry.make("losses", name)
    without, error, message = MISSING[part]
    if part not in loss.needs:
        loss.start(task(**without))
        return
    with pytest.raises(error) as caught:
        loss.start(task(**without))
    assert message.format(name=name) in str(caught.value)
    assert "\n" not in str(caught.value)


@every_loss
def test_one_class(name: str) -> None:
    loss, what = registry.make("losses", name), task(labels=np.zeros(N, np.int64), classes=("only",))
    if "labels" not in loss.needs:
        loss.start(what)
        return
    with pytest.raises(InputError, match=f"loss '{name}': all items are of one class, 'only'"):
        loss.start(what)


@every_loss
def test_a_weight_is_above_zero(name: str) -> None:
    with pytest.raises(ConfigError, match="weight"):
        registry.make("losses", name, weight=0)


@pytest.mark.parametrize(("margin", "alpha"), [(None, 0.01), (5.0, 0.0), (3.0, 0.5)])
def test_pairwise_against_a_double_loop(margin: float | None, alpha: float) -> None:
    """Equation 1 of Zeng et al., pair by pair."""
    outputs, what = outputs_of(), task()
    code, m = arrays(outputs)["code"], margin or 2 * BITS
    assert what.labels is not None
    terms = []
    for i, j in itertools.combinations(range(N), 2):
        squared = ((code[i] - code[j]) ** 2).sum()
        y = what.labels[i] != what.labels[j]
        pair = 0.5 * max(m - squared, 0) if y else 0.5 * squared
        terms.append(pair + alpha * (np.abs(np.abs(code[i]) - 1).sum() + np.abs(np.abs(code[j]) - 1).sum()))
    options = {"alpha": alpha} if margin is None else {"alpha": alpha, "margin": margin}
    assert loss_of("pairwise", outputs, what, **options) == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classification_against_the_formula(smoothing: float) -> None:
    outputs, what = outputs_of(), task()
    logits = arrays(outputs)["logits"]
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = np.eye(3)[what.labels] * (1 - smoothing) + smoothing / 3
    expected = -(wanted * log).sum(axis=1).mean()
    assert loss_of("classification", outputs, what, smoothing=smoothing) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("quantization", [0.0, 0.1])
def test_csq_against_the_formula(quantization: float) -> None:
    outputs, what = outputs_of(), task()
    squashed = np.tanh(arrays(outputs)["code"])
    centres = (hash_centers(3, BITS, 0)[what.labels] + 1) / 2
    p = (squashed + 1) / 2
    central = -(centres * np.log(p) + (1 - centres) * np.log(1 - p)).mean()
    expected = central + quantization * ((1 - np.abs(squashed)) ** 2).sum(axis=1).mean()
    assert loss_of("csq", outputs, what, quantization=quantization) == pytest.approx(expected, rel=1e-5)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_greedy_against_a_double_loop() -> None:
    outputs, what = outputs_of(), task()
    code = arrays(outputs)["code"]
    assert what.teacher is not None
    signs, taught = np.where(code > 0, 1.0, -1.0), what.teacher - what.teacher.mean(axis=0)
    pairs = [(cosine(signs[i], signs[j]) - cosine(taught[i], taught[j])) ** 2 for i in range(N) for j in range(N)]
    expected = np.mean(pairs) + 0.3 * (np.abs(code - signs) ** 3).mean()
    assert loss_of("greedy", outputs, what, penalty=0.3) == pytest.approx(expected, rel=1e-4)


def test_greedy_passes_the_sign_backwards() -> None:
    """The gradient of the cosines is that of the signs, as if they were the code itself."""
    outputs, what = outputs_of(), task()
    module = registry.make("losses", "greedy", penalty=0).start(what)
    module(outputs, batch_of(what)).backward()
    signs = torch.where(outputs["code"].detach() > 0, 1.0, -1.0).requires_grad_()
    module({"code": signs}, batch_of(what)).backward()
    torch.testing.assert_close(outputs["code"].grad, signs.grad)


def test_distillation_of_wide_features_is_the_cosine() -> None:
    """Features as wide as the teacher, or wider (then with zeros): a rotation of the centred embedding, exactly."""
    for dim in (WIDTH, WIDTH + 3):
        what = task(dim=dim)
        assert what.teacher is not None
        module = registry.make("losses", "distillation").start(what)
        wanted = ((torch.from_numpy(what.teacher) - module.mean) @ module.axes).numpy()
        centred = what.teacher - what.teacher.mean(axis=0)
        np.testing.assert_allclose(wanted @ wanted.T, centred @ centred.T, atol=1e-4)
        assert not wanted[:, WIDTH:].any()
        for sign, expected in ((3, 0), (-1, 2)):
            features = {"features": torch.from_numpy(sign * wanted)}
            assert float(module(features, batch_of(what))) == pytest.approx(expected, abs=1e-5)


def test_distillation_to_few_dimensions_takes_the_principal_ones() -> None:
    what, outputs = task(), outputs_of()
    assert what.teacher is not None
    centred = (what.teacher - what.teacher.mean(axis=0)).astype(np.float64)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    module = registry.make("losses", "distillation").start(what)
    got = module.axes.numpy()
    np.testing.assert_allclose(np.abs(np.diag(got.T @ axes[:DIM].T)), 1, atol=1e-4)
    wanted, features = centred @ got, arrays(outputs)["features"]
    expected = np.mean([1 - cosine(f, w) for f, w in zip(features, wanted, strict=True)])
    assert loss_of("distillation", outputs, what) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("classes", "bits"), [(2, 1), (3, 2), (10, 16), (20, 16), (32, 16), (10, 64)])
def test_hadamard_centres(classes: int, bits: int) -> None:
    """Half their bits differ; all, for a row and its opposite."""
    centres = hash_centers(classes, bits, 0).astype(int)
    assert centres.shape == (classes, bits)
    assert set(np.unique(centres)) <= {-1, 1}
    products = centres @ centres.T
    np.fill_diagonal(products, 0)
    assert set(np.unique(products)) <= {0, -bits}


@pytest.mark.parametrize("seed", range(5))
def test_many_bits_are_no_short_code_over_and_over(seed: int) -> None:
    centres = hash_centers(10, 64, seed)
    assert len(np.unique(centres, axis=1).T) > 32


@pytest.mark.parametrize(("classes", "bits"), [(10, 12), (10, 24), (10, 48), (100, 32)])
def test_random_centres(classes: int, bits: int) -> None:
    centres = hash_centers(classes, bits, 0).astype(int)
    assert np.array_equal(centres, hash_centers(classes, bits, 0))
    if bits & (bits - 1):
        assert (centres.sum(axis=1) == 0).all()
        assert not np.array_equal(centres, hash_centers(classes, bits, 1))
    distances = (bits - centres @ centres.T) // 2
    assert distances[~np.eye(classes, dtype=bool)].min() >= {12: 4, 24: 8, 32: 6, 48: 16}[bits]


@pytest.mark.parametrize(("classes", "bits"), [(30, 6), (8, 3), (16, 4), (64, 6), (300, 10)])
def test_no_two_classes_share_a_centre(classes: int, bits: int) -> None:
    centres = hash_centers(classes, bits, 0)
    assert set(np.unique(centres)) == {-1, 1}
    assert len(np.unique(centres, axis=0)) == classes


def test_more_classes_than_codes() -> None:
    with pytest.raises(ConfigError, match="bits: 9 classes need more than 3 bits to have a code each"):
        hash_centers(9, 3, 0)


# ------------------------------------------------------------------------------------------------------- augmentation


def pictures_of(n: int = 6, size: tuple[int, int] = (10, 10), seed: int = 0) -> Any:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def altered(x: Any, seed: int = 0, **how: Any) -> Any:
    return augment(x, parse_options(Augment, how), torch.Generator().manual_seed(seed))


ALL = {"scale": [0.7, 1.2], "shift": 0.1, "rotate": 30, "flip": True, "brightness": 0.3, "contrast": 0.3, "noise": 0.1}


def test_nothing_is_altered_unless_asked_for() -> None:
    x = pictures_of()
    assert torch.equal(altered(x), x)


@pytest.mark.parametrize("key", ALL)
def test_every_alteration_is_seeded_and_gives_pixels(key: str) -> None:
    x = pictures_of()
    before = x.clone()
    once, again, other = (altered(x, seed, **{key: ALL[key]}) for seed in (0, 0, 1))
    assert torch.equal(x, before)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert once.shape == x.shape
    assert once.min() >= 0
    assert once.max() <= 1
    assert not torch.equal(once, x)


def test_each_picture_is_drawn_for_itself() -> None:
    x = pictures_of(1).expand(5, -1, -1, -1)
    for key in ALL:
        assert len(torch.unique(altered(x, **{key: ALL[key]}).flatten(1), dim=0)) > 1, key


def test_a_flip_is_of_about_half_of_them() -> None:
    x = pictures_of(200)
    got = altered(x, flip=True)
    flipped = torch.tensor([torch.equal(a, b) for a, b in zip(got, x.flip(3), strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(got, x, strict=True)])
    assert (flipped ^ same).all()
    assert 70 < int(flipped.sum()) < 130


class _Fixed:
    """For ``augment._moved``: draws that are the same for all, in the order scale, angle, two shifts."""

    def __init__(self, *values: float) -> None:
        self.values = iter(values)

    def __call__(self, low: float, high: float) -> Any:
        return torch.full((1,), next(self.values))


def moved(
    x: Any, scale: float = 1.0, degrees: float = 0.0, shifts: tuple[float, float] = (0.0, 0.0), **how: Any
) -> Any:
    from cbir_faiss.training.augment import _moved

    return _moved(x, parse_options(Augment, how), _Fixed(scale, degrees, *shifts))


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_rotation_of_a_known_picture(size: tuple[int, int]) -> None:
    x = pictures_of(1, size)
    torch.testing.assert_close(moved(x, degrees=0), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved(x, degrees=180), x.flip(2, 3), atol=1e-5, rtol=0)


def test_a_quarter_turn_is_of_pixels_also_where_a_picture_is_wider_than_high() -> None:
    wide = torch.zeros(1, 3, 4, 8)
    wide[..., 1:3, 2:6] = pictures_of(1, (2, 4))
    turned = moved(wide, degrees=90)
    # What lay about the middle within two pixels is as it was, but turned.
    middle = wide[..., 2:6]
    quarter = turned[..., 2:6]
    assert any(torch.allclose(quarter, middle.rot90(k, (2, 3)), atol=1e-5) for k in (1, 3))


def test_a_square_quarter_turn() -> None:
    x = pictures_of(1, (8, 8))
    assert any(torch.allclose(moved(x, degrees=90), x.rot90(k, (2, 3)), atol=1e-5) for k in (1, 3))


def test_a_crop_of_half_the_sides() -> None:
    """Pixels of the middle, seen twice as large; moved as far as there is room, those of a corner."""
    x = torch.arange(8.0)[None, None, None].expand(1, 3, 8, 8) / 8
    row = moved(x, scale=0.5)[0, 0, 0] * 8
    torch.testing.assert_close(row, torch.linspace(1.75, 5.25, 8), atol=1e-4, rtol=0)
    corner = moved(x, scale=0.5, shifts=(-1.0, 0.0))[0, 0, 0] * 8
    assert corner.max() < 3.6
    assert moved(x, scale=0.5, shifts=(1.0, 0.0))[0, 0, 0].min() * 8 > 3.4


def test_beyond_the_picture_is_its_reflection() -> None:
    """Seen from farther away: the middle half is the picture, beside it the picture mirrored at its edges."""
    x = torch.arange(8.0)[None, None, None].expand(1, 3, 8, 8) / 8
    row = moved(x, scale=2.0)[0, 0, 0] * 8
    torch.testing.assert_close(row, torch.tensor([2.5, 0.5, 0.5, 2.5, 4.5, 6.5, 6.5, 4.5]), atol=1e-4, rtol=0)


def test_beyond_the_picture_is_black_where_it_is_asked_for() -> None:
    x = torch.full((2, 3, 8, 8), 0.5)
    farther = altered(x, scale=[2.0, 2.0], beyond="black")
    assert (farther[:, :, 3:5, 3:5] == 0.5).all()
    assert not farther[:, :, 0].any()
    assert not farther[:, :, :, -1].any()
    turned = altered(x.expand(2, 3, 8, 8), rotate=45, beyond="black", seed=3)
    assert (turned[:, :, 3:5, 3:5] > 0.49).all()
    assert (turned.amin((1, 2, 3)) < 0.5).all()
    assert (altered(x, rotate=45, seed=3) > 0.49).all()
    shifted = altered(x, pad=3, beyond="black", seed=1)
    assert set(shifted.unique().tolist()) == {0.0, 0.5}
    with pytest.raises(ConfigError, match="beyond"):
        altered(x, beyond="white")


def test_brightness_and_contrast_against_the_formula() -> None:
    x = pictures_of(3) * 0.4 + 0.3
    brighter = altered(x, brightness=0.2) / x
    assert torch.allclose(brighter, brighter.mean((1, 2, 3), keepdim=True), atol=1e-4)
    assert (brighter.mean((1, 2, 3)) - 1).abs().max() <= 0.2
    contrast = altered(x, contrast=0.2)
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(contrast.mean((1, 2, 3), keepdim=True), mean)
    factor = (contrast - mean) / (x - mean)
    assert torch.allclose(factor, factor.median(), atol=0.5)
    assert ((contrast.std((1, 2, 3)) / x.std((1, 2, 3))) - 1).abs().max() <= 0.2001


# ------------------------------------------------------------------------------------------------------------- views


def viewed(root: Path, count: int = 4, seed: int = 0, rows: Any = None, **how: Any) -> ViewedSource:
    source = Folder(root=str(root))
    rows = np.arange(len(source.items())) if rows is None else np.array(rows)
    return ViewedSource(source, rows, parse_options(Views, {"count": count, **how}), seed)


def test_the_first_view_is_the_whole_picture(colours: Path) -> None:
    source, views = Folder(root=str(colours)), viewed(colours)
    assert len(views.items()) == 4 * len(source.items())
    for row in (0, 30):
        assert np.array_equal(np.asarray(views.read(4 * row)), np.asarray(source.read(row)))
        assert views.content_key(4 * row) == source.content_key(row)
        assert [views.items()[4 * row + i].path for i in range(2)] == [
            f"{source.items()[row].path}#{i:03}" for i in range(2)
        ]
        assert {views.items()[4 * row + i].labels for i in range(4)} == {source.items()[row].labels}


def test_views_are_the_same_again_and_have_keys_of_their_own(colours: Path) -> None:
    first, again, other = viewed(colours), viewed(colours), viewed(colours, seed=1)
    for index in range(8):
        assert np.array_equal(np.asarray(first.read(index)), np.asarray(again.read(index)))
    keys = [first.content_key(i) for i in range(8)]
    assert keys == [again.content_key(i) for i in range(8)]
    assert len(set(keys)) == 8
    # The whole picture is that of every seed and of every way to cut; what is cut out is not.
    for changed in (other, viewed(colours, flip=False), viewed(colours, scale=[0.4, 0.9])):
        assert [changed.content_key(i) == keys[i] for i in range(8)] == [True, False, False, False] * 2


def test_a_view_keeps_its_key_only_while_it_is_cut_the_same(colours: Path) -> None:
    """Pictures that come after one that was added are cut anew: answers in a cache are not theirs."""
    before = viewed(colours)
    image, key = np.asarray(before.read(4 * 30 + 1)), before.content_key(4 * 30 + 1)
    shutil.copy(colours / "red/00.png", colours / "blue/0.png")
    after = viewed(colours)
    assert after.items()[4 * 31].path == before.items()[4 * 30].path
    same = np.array_equal(np.asarray(after.read(4 * 31 + 1)), image)
    assert (after.content_key(4 * 31 + 1) == key) == same


def test_views_of_some_rows_are_those_of_all(colours: Path) -> None:
    """Which items are left out as queries does not change how the others are cut."""
    some, whole = viewed(colours, rows=[7, 9]), viewed(colours)
    assert some.content_key(5) == whole.content_key(4 * 9 + 1)
    assert np.array_equal(np.asarray(some.read(5)), np.asarray(whole.read(4 * 9 + 1)))


def test_sizes_of_views(colours: Path) -> None:
    views = viewed(colours, count=20, scale=[0.5, 1.0], aspect=1.0)
    sizes = [views.read(i).size for i in range(1, 20)]
    assert all(w == h and 12 <= w <= 24 for w, h in sizes)
    assert len(set(sizes)) > 3
    shapes = [viewed(colours, count=20, aspect=2.0).read(i).size for i in range(1, 20)]
    assert any(w != h for w, h in shapes)
    assert all(w / h < 2.3 and h / w < 2.3 for w, h in shapes)


def test_views_that_are_not_turned_are_parts_of_the_picture(colours: Path) -> None:
    whole = np.asarray(Folder(root=str(colours)).read(0))
    views = viewed(colours, flip=False)
    for index in (1, 2, 3):
        part = np.asarray(views.read(index))
        h, w = part.shape[:2]
        places = ((y, x) for y in range(25 - h) for x in range(25 - w))
        assert any(np.array_equal(whole[y : y + h, x : x + w], part) for y, x in places)


def test_views_of_a_picture_of_one_pixel(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "a/x.png")
    assert [viewed(tmp_path).read(i).getpixel((0, 0)) for i in range(4)] == [(9, 8, 7)] * 4


# -------------------------------------------------------------------------------------------------------------- data


def test_one_in_so_many_of_each_class_is_held_out(colours: Path) -> None:
    data = data_of(colours)
    assert data.classes == ("blue", "green", "red")
    assert data.pixels.shape == (72, 16, 16, 3)
    assert data.pixels.dtype == np.uint8
    assert np.bincount(data.labels[data.held_out]).tolist() == [6, 6, 6]
    assert sorted([*data.training, *data.held_out]) == list(range(72))
    expected = np.asarray(Image.open(colours / "green/03.png").resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(data.pixels[24 + 3], expected)


def test_queries_are_never_seen(colours: Path) -> None:
    """Every fifth item of the whole source, as a comparison takes them."""
    data = data_of(colours, queries={"every": 5}, teacher=TEACHER, losses=[{"name": "distillation"}], bits=None)
    source = Folder(root=str(colours))
    seen = [i for i in range(72) if i % 5]
    assert len(data) == len(seen) == len(data.teacher)
    how = Preprocess(resize=(16, 16), crop=None)
    assert all(np.array_equal(how.pixels(source.read(i)), data.pixels[place]) for place, i in enumerate(seen))


def test_views_of_a_held_out_picture_are_not_trained_on(colours: Path) -> None:
    data = data_of(colours, views={"count": 3}, fit={"held_out": 6})
    assert len(data) == 3 * 72
    held_out = set((data.held_out // 3).tolist())
    assert (data.held_out % 3 == 0).all()
    assert len(held_out) == 12
    assert len(data.training) == 3 * 60
    assert not held_out & set((data.training // 3).tolist())


def test_a_teacher_answers_every_view(colours: Path) -> None:
    data = data_of(colours, views={"count": 2}, teacher=TEACHER, losses=[{"name": "distillation"}], bits=None)
    teacher = registry.make("extractors", "histogram")
    views = viewed(colours, count=2)
    for index in (0, 1, 77):
        np.testing.assert_allclose(data.teacher[index], teacher([views.read(index)])["embedding"][0], atol=1e-5)


def losses_by(teacher: Any) -> list[dict[str, Any]]:
    return [{"name": "greedy" if teacher else "csq"}]


def test_bad_files_are_named_and_passed_over(colours: Path, tmp_path: Path) -> None:
    (colours / "green/03.png").write_bytes(b"not a picture")
    for teacher in (None, TEACHER):
        data = data_of(colours, views={"count": 2}, teacher=teacher, losses=losses_by(teacher))
        assert [failure.path for failure in data.failed] == ["green/03.png#000", "green/03.png#001"]
        assert len(data) == 2 * 71
        assert np.bincount(data.labels).tolist() == [48, 46, 48]
        assert data.teacher is None or len(data.teacher) == 2 * 71
    result = start(colours, tmp_path / "out", fit={"epochs": 1})
    assert [failure.path for failure in result.failed] == ["green/03.png#000"]


def test_nothing_but_bad_files(colours: Path) -> None:
    for file in colours.rglob("*.png"):
        file.write_bytes(b"")
    for teacher in (None, TEACHER):
        with pytest.raises(InputError, match=r"not one of 72 pictures can be trained on; blue/00.png#000: "):
            data_of(colours, teacher=teacher, losses=losses_by(teacher))


def listed(colours: Path, labels: Callable[[int], Any]) -> dict[str, Any]:
    rows = [
        json.dumps({"path": file.relative_to(colours).as_posix(), "label": labels(i)})
        for i, file in enumerate(sorted(colours.rglob("*.png")))
    ]
    (colours / "list.jsonl").write_text("\n".join(rows))
    return {"name": "list", "file": str(colours / "list.jsonl")}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda i: ["a", "b"] if i == 50 else ["a"], "training takes one label an item, and here are items of several"),
        (lambda i: None if i == 50 else f"{i % 3}", "loss 'csq' learns from labels, and some of these items have none"),
        (lambda i: "same", "loss 'csq': all items are of one class, 'same'"),
    ],
)
def test_labels_that_cannot_be_learned_from(labels: Any, message: str, colours: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        start(colours, tmp_path / "out", source=listed(colours, labels))
    assert str(caught.value) == message
    assert not (tmp_path / "out/best.pth").exists()


def test_too_few_pictures(colours: Path, tmp_path: Path) -> None:
    few = [file for file in sorted(colours.rglob("*.png")) if file.stem > "03"]
    for file in few:
        file.unlink()
    with pytest.raises(InputError, match="9 pictures to train on are fewer than one batch"):
        start(colours, tmp_path / "out", fit={"held_out": 4})
    for folder in ("red", "green"):
        shutil.rmtree(colours / folder)
    with pytest.raises(InputError, match="4 pictures are too few to train on and to hold one in 4 out"):
        start(colours, tmp_path / "out", fit={"held_out": 4})


def test_vectors_are_no_pictures(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((9, 4), np.float32))
    with pytest.raises(
        ConfigError, match="source: source 'vectors' yields vectors, and networks are trained on images"
    ):
        start(tmp_path, tmp_path / "out", source={"name": "vectors", "file": str(tmp_path / "x.npy")})


# ------------------------------------------------------------------------------------------------------------ configs

GOOD = """\
source: {name: folder, root: colours}
queries: {every: 5}
network: {name: multipool, width: 2, joint: 8, features: 16, preprocess: {resize: [16, 16], crop: null}}
bits: 8
losses:
  - {name: csq}
fit: {epochs: 2, batch_size: 16, lr: 0.01, held_out: 4, device: cpu}
"""


def test_a_config_file(colours: Path) -> None:
    (colours.parent / "c.yaml").write_text(GOOD)
    config = load_training(colours.parent / "c.yaml")
    assert (config.every, config.bits, config.teacher, config.views.count) == (5, 8, None, 1)
    assert config.fit.schedule.name == "cosine"
    assert config.source.options["root"] == str(colours)
    assert not config.augment.moves


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("losses:\n", "loses:\n", "5: loses: unknown key; did you mean 'losses'"),
        ("bits: 8\n", "bits: eight\n", "4: bits: must be a valid integer"),
        ("bits: 8\n", "", "bits: loss 'csq' trains a code: give bits"),
        ("  - {name: csq}", "  - {name: classification}", "4: bits: none of the losses trains a code: leave this out"),
        ("{name: csq}", "{name: cqs}", "6: losses.0.name: .*'csq'"),
        ("{name: csq}", "{name: csq, alpha: 1}", "6: losses.0.alpha: unknown key"),
        ("{name: csq}", "{name: csq, weight: [1, 2]}", "6: losses.0: takes one value of each option, not a list"),
        ("width: 2", "width: 0", "3: network.width: must be greater than or equal to 1"),
        ("width: 2", "width: [2, 4]", "3: network: takes one value of each option, not a list"),
        ("multipool", "multipol", "3: network.name: .*'multipool'"),
        ("crop: null", "corp: null", "3: network.preprocess.corp: unknown key; did you mean 'crop'"),
        ("every: 5", "every: 1", "2: queries.every: must be"),
        (
            "{every: 5}",
            "{source: {name: digits}}",
            "2: queries.source: queries from another source are not seen anyway",
        ),
        ("lr: 0.01", "lr: -1", "7: fit.lr: must be greater than 0"),
        ("lr: 0.01", "lr: 1e-3", "7: fit.lr: must be a valid number"),
        (
            "lr: 0.01",
            "schedule: {name: linear}",
            "7: fit.schedule.name: must be 'constant', 'cosine', 'step' or 'triangular'",
        ),
        ("batch_size: 16", "batch_size: 1", "7: fit.batch_size: must be greater than or equal to 2"),
        ("fit:", "augment: {rotat: 3}\nfit:", "7: augment.rotat: unknown key; did you mean 'rotate'"),
        ("fit:", "augment: {brightness: 2}\nfit:", "7: augment.brightness: must be less than or equal to 1"),
        ("fit:", "views: {count: 0}\nfit:", "7: views.count: must be greater than or equal to 1"),
        ("fit:", "views: {scale: [1.0, 0.5]}\nfit:", "7: views.scale: must be the smallest and the largest, in that"),
        ("fit:", "teacher: {name: hgo}\nfit:", "7: teacher.name: .*'hog'"),
        ("network:", "network: {}\nnetwork:", "duplicate key 'network'"),
    ],
)
def test_config_errors(before: str, after: str, message: str, colours: Path, tmp_path: Path) -> None:
    file = colours.parent / "c.yaml"
    assert before in GOOD
    file.write_text(GOOD.replace(before, after, 1))
    result = cbir("train", file, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(line)


def test_a_network_that_cannot_be_is_refused_before_pictures_are_read(colours: Path, tmp_path: Path) -> None:
    for network, message in (
        ({"name": "backbone", "model": "resnet81"}, "network.model: torchvision has no model 'resnet81'"),
        ({"name": "backbone", "model": "resnet18", "weights": "gone.pth"}, "network.weights: no such file: gone.pth"),
    ):
        with pytest.raises(ConfigError, match=message):
            start(tmp_path / "no pictures", tmp_path / "out", network=network)
    small = {**NETWORK, "name": "plain", "preprocess": {"resize": [1, 1], "crop": None}}
    del small["joint"]
    with pytest.raises(ConfigError, match="images of 1 x 1 are too small for the network"):
        start(colours, tmp_path / "out", network=small)


def test_a_device_that_is_not_there(colours: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match=r"fit\.device: torch sees no cuda device"):
        start(tmp_path / "no pictures", tmp_path / "out", fit={"device": "cuda"})


# ----------------------------------------------------------------------------------------------------------- the loop


def weights(file: Path) -> dict[str, Any]:
    state = torch.load(file, weights_only=True)
    return state.get("model", state)


def same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def test_it_learns(colours: Path, tmp_path: Path) -> None:
    result = start(colours, tmp_path / "out", fit={"epochs": 12}, augment={"flip": True, "brightness": 0.1})
    losses = [epoch.loss for epoch in result.history]
    assert losses[-1] < 0.7 * losses[0]
    assert result.measure == "map of the held-out pictures"
    assert result.best.score is not None
    assert result.best.score > 0.8
    assert (result.items, result.parameters, len(result.history)) == (72, result.parameters, 12)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("best.pth", "model.json", "last.pth", "history.json", "config.json", "curves.png", "LOCK")
    }
    assert [row["epoch"] for row in json.loads((tmp_path / "out/history.json").read_text())] == list(range(1, 13))
    with Image.open(tmp_path / "out/curves.png") as picture:
        picture.load()
        assert (picture.format, min(picture.size) > 200) == ("PNG", True)


@pytest.mark.parametrize(
    "fit",
    [
        {"optimizer": "sgd", "schedule": {"name": "constant"}},
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": {"name": "step", "steps": 4, "factor": 0.5}},
        {"schedule": {"name": "cosine", "warmup": 0.5}, "lr": 0.02},
    ],
)
def test_schedules(fit: dict[str, Any], colours: Path, tmp_path: Path) -> None:
    """Three epochs of three steps: the learning rate at the beginning of each."""
    rates = [epoch.lr for epoch in start(colours, tmp_path / "out", fit={**fit, "held_out": 3}).history]
    expected = {
        "constant": [0.01, 0.01, 0.01],
        "step": [0.01, 0.01, 0.005],
        # up over the first 4.5 of 9 steps, then down along half a cosine
        "cosine": [0.02 / 5.5, 0.02 * 4 / 5.5, 0.01 * (1 + math.cos(math.pi * 1.5 / 4.5))],
    }[fit["schedule"]["name"]]
    assert rates == pytest.approx(expected)


def test_the_best_checkpoint_is_that_of_the_best_epoch(colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def keep(epoch: Epoch) -> None:
        shutil.copy(out / "last.pth", tmp_path / f"{epoch.epoch}.pth")

    result = start(colours, out, report=keep, fit={"epochs": 6, "lr": 0.1})
    scores = [epoch.score or 0.0 for epoch in result.history]
    assert result.best.epoch == int(np.argmax(scores)) + 1
    assert same(weights(out / "best.pth"), weights(tmp_path / f"{result.best.epoch}.pth"))


def scripted(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """What validation finds, one after another."""
    given = iter(scores)
    monkeypatch.setattr(loop, "retrieval_map", lambda *_: next(given))


class _Stopped(Exception):
    pass


def stop_after(number: int) -> Callable[[Epoch], None]:
    def report(epoch: Epoch) -> None:
        if epoch.epoch == number:
            raise _Stopped

    return report


def test_a_worse_model_never_replaces_a_better_one(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does an equal one, nor after a stop."""
    scripted(monkeypatch, 0.5, 0.9, 0.9, 0.3, 0.8)
    with pytest.raises(_Stopped):
        start(colours, tmp_path / "out", report=stop_after(2), fit={"epochs": 5})
    best = (tmp_path / "out/best.pth").read_bytes()
    result = start(colours, tmp_path / "out", fit={"epochs": 5})
    assert (result.best.epoch, result.best.score) == (2, 0.9)
    assert (tmp_path / "out/best.pth").read_bytes() == best


def test_patience(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, *[0.5, 0.9, 0.3, 0.9, 0.8] * 2)
    result = start(colours, tmp_path / "out", fit={"epochs": 20, "patience": 3})
    assert (len(result.history), result.best.epoch) == (5, 2)
    again = start(colours, tmp_path / "out", fit={"epochs": 20, "patience": 3})
    assert again.history == result.history
    # Validated every second epoch, it waits twice as long.
    scripted(monkeypatch, *[0.5, 0.4, 0.3, 0.2] * 3)
    result = start(colours, tmp_path / "slower", fit={"epochs": 20, "patience": 2, "validate_every": 2})
    assert (len(result.history), result.best.epoch) == (6, 2)


def test_more_epochs_are_waited_for_anew(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where patience ended a training, it counts from there once epochs are raised, stopped or not."""
    first = [0.5, 0.9, 0.3, 0.9, 0.8]
    scripted(monkeypatch, *first, 0.7, 0.6, 0.5)
    fit = {"epochs": 20, "patience": 3}
    ended = start(colours, tmp_path / "out", fit=fit)
    more = start(colours, tmp_path / "out", fit={**fit, "epochs": 30})
    assert (len(ended.history), len(more.history), more.best.epoch) == (5, 8, 2)
    assert start(colours, tmp_path / "out", fit={**fit, "epochs": 30}).history == more.history
    scripted(monkeypatch, *first, 0.7, 0.95, 0.5, 0.4, 0.3)
    start(colours, tmp_path / "parts", fit=fit)
    for number in (6, 8):
        with pytest.raises(_Stopped):
            start(colours, tmp_path / "parts", report=stop_after(number), fit={**fit, "epochs": 30})
    result = start(colours, tmp_path / "parts", fit={**fit, "epochs": 30})
    assert (len(result.history), result.best.epoch) == (10, 7)


def test_validation_now_and_then_and_at_the_end(colours: Path, tmp_path: Path) -> None:
    history = start(colours, tmp_path / "out", fit={"epochs": 5, "validate_every": 2}).history
    assert [epoch.score is not None for epoch in history] == [False, True, False, True, True]
    assert [epoch.held_out_loss is not None for epoch in history] == [False, True, False, True, True]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"losses": [{"name": "classification"}, {"name": "pairwise", "weight": 0.1}]},
        {
            "bits": None,
            "losses": [{"name": "distillation"}],
            "teacher": TEACHER,
            "views": {"count": 2},
            "augment": ALL,
            "network": {"name": "compact", "width": 2, "features": 8, "preprocess": {"resize": [16, 16], "crop": None}},
            "fit": {"epochs": 4, "optimizer": "adamw", "validate_every": 3},
        },
        {
            "network": {
                **{"name": "backbone", "model": "squeezenet1_1", "weights": "none", "full": 16, "dropout": 0.5},
                "preprocess": {"resize": 32, "crop": 32},
            },
            "fit": {"epochs": 2, "optimizer": "sgd"},
        },
    ],
    ids=["csq", "two losses", "distillation", "dropout"],
)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    changed: dict[str, Any], colours: Path, tmp_path: Path
) -> None:
    """Byte for byte, whatever else was drawn meanwhile."""
    whole = start(colours, tmp_path / "whole", **changed)
    for number in range(1, len(whole.history)):
        torch.manual_seed(number)
        torch.rand(3)
        with pytest.raises(_Stopped):
            start(colours, tmp_path / "parts", report=stop_after(number), **changed)
    parts = start(colours, tmp_path / "parts", **changed)
    for name in ("best.pth", "model.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first, second = (torch.load(tmp_path / n / "last.pth", weights_only=True) for n in ("whole", "parts"))
    assert same(first["model"], second["model"])
    assert [(e.epoch, e.loss, e.score) for e in parts.history] == [(e.epoch, e.loss, e.score) for e in whole.history]


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(colours: Path, tmp_path: Path) -> None:
    """SIGKILL some time after the first epoch; started again by the same command, it ends like one left alone."""
    file = colours.parent / "c.yaml"
    file.write_text(GOOD.replace("epochs: 2", "epochs: 400").replace("lr: 0.01", "lr: 0.001"))
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "cbir_faiss.cli", "train", str(file), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        while not (out / "history.json").exists() and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()
    done = len(json.loads((out / "history.json").read_text()))
    assert 1 <= done < 400
    # What is left is at most three epochs more, or the test would be long.
    config = load_training(file)

    def until(epoch: Epoch) -> None:
        if epoch.epoch == done + 3:
            raise _Stopped

    for folder in (out, tmp_path / "whole"):
        with pytest.raises(_Stopped):
            train(config, folder, report=until)
    for name in ("best.pth", "model.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert same(weights(out / "last.pth"), weights(tmp_path / "whole/last.pth"))


def test_a_finished_folder_is_not_trained_again(colours: Path, tmp_path: Path) -> None:
    first = start(colours, tmp_path / "out")
    files = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    epochs: list[Epoch] = []
    again = start(colours, tmp_path / "out", report=epochs.append)
    assert not epochs
    assert again.best == first.best
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == files


@pytest.mark.parametrize("stored", [("best.pth", "last.pth"), ("best.pth",), ("last.pth",)])
def test_another_config_is_refused(stored: tuple[str, ...], colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start(colours, out, fit={"epochs": 1})
    for name in {"best.pth", "last.pth"} - set(stored):
        (out / name).unlink()
    files = {file: file.read_bytes() for file in out.iterdir()}
    for changed, what in (
        ({"fit": {"lr": 0.02}}, "fit"),
        ({"bits": 16, "augment": {"flip": True}}, "augment, bits"),  # more epochs are no other training
    ):
        with pytest.raises(ConfigError, match=f"holds a training with another {what}: choose another --out, or delete"):
            start(colours, out, **changed)
    assert {file: file.read_bytes() for file in out.iterdir()} == files


def test_a_folder_of_other_things_is_refused(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="colours is not empty, and holds no training: choose another --out"):
        start(colours, colours)
    assert not (colours / "config.json").exists()


def test_a_mistake_can_be_mended_before_anything_is_stored(colours: Path, tmp_path: Path) -> None:
    """A config that failed before the first epoch was done does not block the folder."""
    with pytest.raises(InputError, match="fewer than one batch"):
        start(colours, tmp_path / "out", fit={"batch_size": 100})
    assert start(colours, tmp_path / "out").best.epoch >= 1
    with pytest.raises(ConfigError, match="another fit"):
        start(colours, tmp_path / "out", fit={"batch_size": 100})


@pytest.mark.parametrize("content", [b"", b"{", b"3", b"[1]", b"\xff"])
def test_a_damaged_config_is_not_guessed(content: bytes, colours: Path, tmp_path: Path) -> None:
    start(colours, tmp_path / "out", fit={"epochs": 1})
    (tmp_path / "out/config.json").write_bytes(content)
    with pytest.raises(CorruptCollection, match=r"config.json: altered \(.*\): choose another --out") as caught:
        start(colours, tmp_path / "out", fit={"epochs": 1})
    assert "\n" not in str(caught.value)


def test_a_damaged_state_is_not_gone_on_from(colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start(colours, out, fit={"epochs": 1})
    whole, best = (out / "last.pth").read_bytes(), (out / "best.pth").read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"text"):
        (out / "last.pth").write_bytes(content)
        with pytest.raises(CorruptCollection, match=r"last.pth: cut short or altered .* delete it to begin again") as c:
            start(colours, out, fit={"epochs": 1})
        assert "\n" not in str(c.value)
    torch.save({"history": [], "model": Path("an object")}, out / "last.pth")
    with pytest.raises(CorruptCollection, match="delete it to begin again"):
        start(colours, out, fit={"epochs": 1})
    assert (out / "best.pth").read_bytes() == best


@pytest.mark.parametrize("loss", ["csq", "classification"])
def test_a_class_that_was_added_meanwhile(loss: str, colours: Path, tmp_path: Path) -> None:
    bits = 8 if loss == "csq" else None
    start(colours, tmp_path / "out", losses=[{"name": loss}], bits=bits)
    best = (tmp_path / "out/best.pth").read_bytes()
    shutil.copytree(colours / "red", colours / "scarlet")
    with pytest.raises(ConfigError, match=r"a checkpoint of another network|begun with other classes") as caught:
        start(colours, tmp_path / "out", losses=[{"name": loss}], bits=bits)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out/best.pth").read_bytes() == best


# ---------------------------------------------------------------------------------------------------------- NaN, scores


@pytest.mark.parametrize("lr", [1e30, math.inf])
def test_a_loss_that_is_not_finite(lr: float, colours: Path, tmp_path: Path) -> None:
    file = colours.parent / "c.yaml"
    file.write_text(GOOD.replace("lr: 0.01", f"lr: {'.inf' if lr == math.inf else '1.0e+30'}"))
    result = cbir("train", file, "--out", tmp_path / "out")
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert "epoch 1, " in line
    assert "the loss is " in line
    assert "lower fit.lr" in line
    assert "nothing was stored" in line
    assert not (tmp_path / "out/best.pth").exists()
    # Mended, the same folder serves.
    file.write_text(GOOD)
    assert cbir("train", file, "--out", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("held_out", [False, True])
def test_a_loss_that_is_lost_later(
    held_out: bool, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best model and the last good state stay as they were, and what is mended goes on from there."""
    out, whole = tmp_path / "out", start(colours, tmp_path / "whole", fit={"epochs": 4})
    with pytest.raises(_Stopped):
        start(colours, out, report=stop_after(2), fit={"epochs": 4})
    files = {file: file.read_bytes() for file in out.iterdir()}
    right = loop._Run._sum

    def wrong(run: Any, outputs: Any, rows: Any) -> Any:
        return right(run, outputs, rows) * (math.nan if run.model.training != held_out else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_sum", wrong)
        with pytest.raises(TrainingFailed) as caught:
            start(colours, out, fit={"epochs": 4})
    where = "held-out pictures" if held_out else "step 1 of 3"
    assert str(caught.value).startswith(
        f"epoch 3, {where}: the loss is nan; lower fit.lr (0.01); the state after epoch 2"
    )
    assert {file: file.read_bytes() for file in out.iterdir()} == files
    assert start(colours, out, fit={"epochs": 4}).best.score == whole.best.score


def flat(colours: Path) -> Path:
    """The same pictures in one folder, so without labels."""
    root = colours.parent / "flat"
    root.mkdir()
    for file in colours.rglob("*.png"):
        shutil.copy(file, root / f"{file.parent.name}-{file.name}")
    return root


@pytest.mark.parametrize("name", ["distillation", "greedy"])
def test_without_labels_the_score_is_minus_the_loss(name: str, colours: Path, tmp_path: Path) -> None:
    bits = 8 if name == "greedy" else None
    result = start(flat(colours), tmp_path / "out", losses=[{"name": name}], bits=bits, teacher=TEACHER)
    assert result.measure == "-loss of the held-out pictures"
    losses = [epoch.held_out_loss for epoch in result.history if epoch.held_out_loss is not None]
    assert [epoch.score for epoch in result.history] == [-loss for loss in losses]
    assert result.best.held_out_loss == min(losses)
    outputs = Trained(path=str(tmp_path / "out")).outputs
    assert outputs == {"embedding": (bits or 16, "float32")}


def test_where_no_class_has_two_held_out_pictures(colours: Path, tmp_path: Path) -> None:
    """Nothing can be searched for: measured by the loss, and called that."""
    source = listed(colours, lambda i: f"{i}")
    result = start(colours, tmp_path / "out", source=source, losses=[{"name": "csq"}])
    assert result.measure == "-loss of the held-out pictures"
    assert result.best.held_out_loss is not None
    assert result.best.score == -result.best.held_out_loss


def average_precision(relevant: list[bool]) -> float:
    ranks = [rank for rank, one in enumerate(relevant, 1) if one]
    return float(np.mean([(i + 1) / rank for i, rank in enumerate(ranks)]))


def split_by_two(labels: np.ndarray) -> tuple[list[int], list[int]]:
    order = sorted(range(len(labels)), key=lambda i: (labels[i], i))
    return order[::2], order[1::2]


def test_map_of_features_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(31, 5)).astype(np.float32), rng.integers(0, 4, 31)
    queries, items = split_by_two(labels)
    expected = []
    for q in queries:
        ranking = sorted(items, key=lambda i: -cosine(x[q], x[i]))
        if any(labels[i] == labels[q] for i in items):
            expected.append(average_precision([labels[i] == labels[q] for i in ranking]))
    assert retrieval_map(x, labels, False) == pytest.approx(np.mean(expected), rel=1e-6)


def test_map_of_codes_is_expected_over_every_order_of_ties() -> None:
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(11, 3)).astype(np.float32), np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 5])
    queries, items = split_by_two(labels)
    bits, expected = x > 0, []
    for q in queries:
        if not any(labels[i] == labels[q] for i in items):
            continue
        orders = itertools.permutations(items)
        expected += [
            np.mean(
                [
                    average_precision(
                        [labels[i] == labels[q] for i in sorted(o, key=lambda i: (bits[i] != bits[q]).sum())]
                    )
                    for o in orders
                ]
            )
        ]
    assert retrieval_map(x, labels, True) == pytest.approx(np.mean(expected), rel=1e-6)


def test_map_of_nothing_to_find() -> None:
    x = np.ones((3, 8), np.float32)
    assert math.isnan(retrieval_map(x, np.array([0, 1, 2]), True))
    assert math.isnan(retrieval_map(x[:1], np.array([0]), False))
    # A class of one picture is nobody's query.
    assert retrieval_map(x, np.array([0, 0, 2]), True) == 1


def test_features_of_zeros_are_ranked_too() -> None:
    """As a network whose last ReLU lets nothing through gives them."""
    x = np.array([[0, 0], [1, 0], [1, 0.1], [0, 0], [0, 1], [0.1, 1]], np.float32)
    score = retrieval_map(x, np.array([0, 0, 0, 1, 1, 1]), False)
    assert 0 < score <= 1


@pytest.mark.parametrize("bits", [8, None])
def test_the_score_is_that_of_the_stored_model(bits: int | None, colours: Path, tmp_path: Path) -> None:
    loss = "csq" if bits else "classification"
    config = parse_training(document(colours, bits=bits, losses=[{"name": loss}]))
    result = train(config, tmp_path / "out")
    card, model = load_model(tmp_path / "out")
    data = load_data(config, card.preprocess, None)
    assert data.labels is not None
    x = card.preprocess.normalise(data.pixels[data.held_out]).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        outputs = model(torch.from_numpy(x))
    embedding = outputs["code" if bits else "features"].numpy()
    assert retrieval_map(embedding, data.labels[data.held_out], bits is not None) == pytest.approx(result.best.score)


def test_training_prepares_pictures_as_the_weights_want_them(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extractor that comes of it prepares them the same way."""
    from torchvision import models

    url = models.get_model_weights("squeezenet1_1")["IMAGENET1K_V1"].url
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(models.get_model("squeezenet1_1").state_dict(), tmp_path / "hub/checkpoints" / Path(url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    seen: list[Preprocess] = []

    def note(config: Any, how: Preprocess, *_: Any) -> Any:
        seen.append(how)
        raise _Stopped

    monkeypatch.setattr(loop, "load_data", note)
    monkeypatch.setattr(
        "cbir_faiss.nets.zoo._preset", lambda *_: {"resize": 60, "crop": 48, "interpolation": "bicubic"}
    )
    network = {"name": "backbone", "model": "squeezenet1_1"}
    with pytest.raises(_Stopped):
        start(colours, tmp_path / "out", network=network)
    assert seen == [new_card(registry.make("networks", "backbone", model="squeezenet1_1"), None, None)[0].preprocess]
    assert (seen[0].resize, seen[0].crop, seen[0].interpolation) == (60, 48, "bicubic")


# ----------------------------------------------------------------------------------------------- pictures of a training


def test_curves_of_one_epoch_and_of_negative_scores(tmp_path: Path) -> None:
    for history in (
        [Epoch(1, 0.5, 0.1, 1.0, -0.4, 0.4)],
        [Epoch(1, 0.5, 0.1, 1.0), Epoch(2, 0.4, 0.1, 1.0)],
        [Epoch(i, 1 / i, 0.1, 1.0, -1 / i, 1 / i) for i in range(1, 9)],
    ):
        draw_curves(history, "map", tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as picture:
            picture.load()
            assert picture.size[0] > picture.size[1]


# ---------------------------------------------------------------------------------------------------------- the command


def cbir(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command(colours: Path, tmp_path: Path) -> None:
    file = colours.parent / "c.yaml"
    file.write_text(GOOD)
    (colours / "red/00.png").write_bytes(b"")
    (colours / "red/01.png").write_bytes(b"")
    result = cbir("train", file, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    got = json.loads(result.stdout)
    assert set(got) == {"best", "items", "parameters", "epochs", "seconds_per_epoch", "failed"}
    assert set(got["best"]) == {"epoch", "score", "measure"}
    # Item 48, red/00, is no query; of 72 items 15 are.
    seen = [i for i in range(72) if i % 5]
    assert got["items"] == len(seen) - sum(i in seen for i in (48, 49))
    assert (got["epochs"], len(got["failed"])) == (2, sum(i in seen for i in (48, 49)))
    again = cbir("train", file, "--out", tmp_path / "out")
    assert again.exit_code == 0
    assert again.stdout.startswith(f"{tmp_path / 'out'}: {got['parameters']:,} parameters, 2 epochs of ")
    assert f"best after epoch {got['best']['epoch']}: map of the held-out pictures {got['best']['score']:.4f}" in (
        again.stdout
    )
    assert again.stderr.startswith("left out: red/0")


def test_the_log(colours: Path, tmp_path: Path) -> None:
    file = colours.parent / "c.yaml"
    file.write_text(GOOD)
    result = cbir("train", file, "--out", tmp_path / "out", "--log-json")
    assert result.exit_code == 0
    epochs = [row for row in map(json.loads, result.stderr.splitlines()) if "loss" in json.dumps(row)]
    assert len(epochs) == 2


def test_it_needs_torch(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = colours.parent / "c.yaml"
    file.write_text(GOOD)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = cbir("train", file, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("'torch' is not installed: pip install 'cbir-faiss[torch]'")
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("only_measured")
def test_what_was_trained_is_an_extractor(colours: Path, tmp_path: Path) -> None:
    """And its code finds pictures of the class."""
    start(colours, tmp_path / "out", fit={"epochs": 8}, losses=[{"name": "csq"}, {"name": "classification"}])
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump(
            {
                "source": {"name": "folder", "root": str(colours)},
                "queries": {"every": 5},
                "extractors": [{"name": "trained", "path": str(tmp_path / "out")}],
                "codecs": [{"name": "sign"}],
                "backends": [{"name": "faiss-binary-flat"}],
            }
        )
    )
    result = cbir("compare", tmp_path / "c.yaml", "--out", tmp_path / "compared")
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "compared/results.json").read_text())["rows"]
    assert row["bits"] == 8
    assert row["supervised"], "its losses read labels"
    assert row["metrics"]["map@5"] > 0.8


@pytest.mark.parametrize(("loss", "supervised"), [("csq", True), ("bihalf", False)])
def test_the_card_says_whether_a_loss_learned_from_labels(
    loss: str, supervised: bool, colours: Path, tmp_path: Path
) -> None:
    more = {} if supervised else {"teacher": {"name": "histogram"}}
    start(colours, tmp_path / "out", fit={"epochs": 1}, losses=[{"name": loss}], **more)
    assert load_model(tmp_path / "out")[0].supervised is supervised
    assert registry.make("extractors", "trained", path=str(tmp_path / "out")).supervised is supervised
    parts = [{"name": "trained", "path": str(tmp_path / "out")}, {"name": "histogram"}]
    assert registry.make("extractors", "joined", of=parts).supervised is supervised
