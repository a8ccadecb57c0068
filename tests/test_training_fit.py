"""How networks are fitted: groups, schedules, averages, mixing, calibration, seeds, and memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from _colours import NETWORK, write_colours  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from cbir_faiss.base import registry  # noqa: E402
from cbir_faiss.base.loss import Batch, Task  # noqa: E402
from cbir_faiss.base.options import parse_options  # noqa: E402
from cbir_faiss.cli import main  # noqa: E402
from cbir_faiss.errors import CbirError, ConfigError, InputError  # noqa: E402
from cbir_faiss.extractors.trained import Trained  # noqa: E402
from cbir_faiss.images.preprocess import Preprocess  # noqa: E402
from cbir_faiss.measures.seeds import over_seeds  # noqa: E402
from cbir_faiss.nets.weights import has_bfloat16  # noqa: E402
from cbir_faiss.storage.lock import writer_lock  # noqa: E402
from cbir_faiss.training import loop  # noqa: E402
from cbir_faiss.training.augment import Augment, augment, mixing  # noqa: E402
from cbir_faiss.training.calibration import best_temperature  # noqa: E402
from cbir_faiss.training.config import Fit, parse_training  # noqa: E402
from cbir_faiss.training.data import load_data  # noqa: E402
from cbir_faiss.training.loop import train  # noqa: E402
from cbir_faiss.training.losses._bihalf import balanced_signs  # noqa: E402
from cbir_faiss.training.losses.csq import hash_centers  # noqa: E402
from cbir_faiss.training.optimizer import Average, Optimizer, check_groups  # noqa: E402
from cbir_faiss.training.schedule import Schedule  # noqa: E402
from cbir_faiss.training.seeds import folder_of, train_seeds  # noqa: E402

EACH = 16
FLATTENED = {
    "name": "backbone",
    "model": "squeezenet1_1",
    "weights": "none",
    "pool": "flatten",
    "full": 4,
    "preprocess": {"resize": [64, 64], "crop": None},
}
FIT = {"epochs": 2, "batch_size": 12, "lr": 0.01, "held_out": 4, "device": "cpu"}


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Three classes of 16 pictures, 20 x 20 pixels of noise about a colour."""
    return write_colours(tmp_path / "colours", EACH, 20)


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


def start(root: Path, out: Path, report: Any = None, **changed: Any) -> Any:
    return train(parse_training(document(root, **changed)), out, report=report)


def weights(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def same(first: Any, second: Any) -> bool:
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


# ---------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("how", "step", "expected"),
    [
        ({"name": "triangular", "warmup": 0.2}, 0, 1 / 21),
        ({"name": "triangular", "warmup": 0.2}, 19, 20 / 21),
        ({"name": "triangular", "warmup": 0.2}, 20, 1.0),
        ({"name": "triangular", "warmup": 0.2}, 60, 0.5),
        ({"name": "triangular", "warmup": 0.2}, 99, 1 / 80),
        ({"name": "triangular", "warmup": 0.2, "last": 0.1}, 60, 0.55),
        ({"name": "cosine", "warmup": 0.0, "last": 0.2}, 50, 0.6),
        ({"name": "cosine"}, 0, 1 / 11),
        ({"name": "constant"}, 0, 1.0),
        ({"name": "constant", "warmup": 0.1}, 4, 5 / 11),
        ({"name": "step", "steps": 30, "factor": 0.5}, 65, 0.25),
    ],
)
def test_shares_of_the_learning_rate(how: dict[str, Any], step: int, expected: float) -> None:
    assert parse_options(Schedule, how).share(step, 100) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["constant", "cosine", "step", "triangular"])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_shares_are_shares_in_short_trainings(name: str, total: int) -> None:
    schedule = Schedule(name=name)
    assert all(0 < schedule.share(step, total) <= 1 for step in range(total))


# ------------------------------------------------------------------------------------------------------------- groups


def model_of(bits: int = 8) -> Any:
    from cbir_faiss.nets.model import new_card

    torch.manual_seed(0)
    return new_card(registry.make("networks", **NETWORK), bits, None)[1]


def optimizer_of(model: Any, total: int = 10, **fit: Any) -> Optimizer:
    return Optimizer(model, torch.nn.ModuleList(), parse_options(Fit, fit), total)


def step_of(optimizer: Optimizer, model: Any, number: int = 5) -> None:
    optimizer.train_mode()
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    optimizer.step(number, model(x)["code"].square().mean())


def test_groups_have_rates_of_their_own_and_frozen_parts_stay() -> None:
    model = model_of()
    groups = [{"of": "network.0", "frozen": True}, {"of": "code", "lr": 1e-9}]
    optimizer = optimizer_of(model, optimizer="sgd", lr=0.1, schedule={"name": "constant"}, groups=groups)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step_of(optimizer, model)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("network.0."))
    assert not torch.equal(before["network.1.convolution.weight"], after["network.1.convolution.weight"])
    assert not torch.equal(before["network.1.norm.running_mean"], after["network.1.norm.running_mean"])
    torch.testing.assert_close(before["code.weight"], after["code.weight"], atol=1e-6, rtol=0)
    assert not model.network[0].norm.training
    assert model.network[1].norm.training


def test_the_first_group_that_fits_has_a_parameter() -> None:
    model = model_of()
    optimizer = optimizer_of(
        model, groups=[{"of": "network.0.norm", "weight_decay": 0.5}, {"of": "network", "lr": 0.5}]
    )
    rest, norm, network = optimizer._optimizer.param_groups
    assert [len(group["params"]) for group in (norm, rest)] == [2, 2]
    assert (norm["weight_decay"], norm["lr"], network["lr"], rest["lr"]) == (0.5, 1e-4, 0.5, 1e-4)
    assert sum(len(g["params"]) for g in (rest, norm, network)) == len(list(model.parameters()))


def test_frozen_stages_of_a_pretrained_model() -> None:
    """Its graph is another for training and for evaluation: batch normalisation of frozen parts stays in either."""
    from cbir_faiss.nets.model import new_card

    torch.manual_seed(0)
    options = {"model": "resnet18", "weights": "none", "layer": "layer1", "preprocess": {"resize": 32, "crop": 32}}
    _, model = new_card(registry.make("networks", "backbone", **options), 8, None)
    optimizer = optimizer_of(
        model, groups=[{"of": f"network.maps.{part}", "frozen": True} for part in ("conv1", "bn1")]
    )
    average = Average(model, 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.train_mode()
    optimizer.step(5, model(torch.randn(4, 3, 32, 32))["code"].square().mean())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith(("network.maps.conv1", "network.maps.bn1")) for name in changed)
    assert "network.maps.layer1.0.bn1.running_mean" in changed
    average.update(model, 1)
    with torch.no_grad():
        assert torch.isfinite(average.model(torch.randn(2, 3, 32, 32))["code"]).all()
    assert not average.model.network.training


@pytest.mark.parametrize(
    ("groups", "trained"),
    [
        ([{"of": "maps.stage", "lr": 5e-4}, {"of": "maps", "frozen": True}], {"maps.stage.0", "maps.stage.1", "code"}),
        ([{"of": "maps.stage.0.bias"}, {"of": "maps", "frozen": True}], {"maps.stage.0", "code"}),
        ([{"of": "maps.stem", "frozen": True}], {"maps.stage.0", "maps.stage.1", "code"}),
    ],
)
def test_only_what_is_frozen_is_as_in_evaluation(groups: list[dict[str, Any]], trained: set[str]) -> None:
    """A module by its own parameters; dropout, which has none, by the first group that it lies below."""
    nn = torch.nn
    maps = {name: nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()) for name in ("stem", "stage")}
    model = nn.ModuleDict({"maps": nn.ModuleDict(maps), "code": nn.Linear(2, 2)})
    optimizer_of(model.eval(), groups=groups).train_mode()
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    assert {name for name, module in leaves.items() if module.training} == trained


def test_groups_of_what_losses_train_are_told_of_once_there_are_losses() -> None:
    model, fit = model_of(), parse_options(Fit, {"groups": [{"of": "losses.0", "lr": 0.5}, {"of": "network"}]})
    check_groups(model, fit)
    with pytest.raises(ConfigError, match=r"fit.groups.0.of: no parameter that is still left is called 'losses.0'"):
        Optimizer(model, torch.nn.ModuleList(), fit, 10)
    optimizer = Optimizer(model, torch.nn.ModuleList([torch.nn.Linear(2, 2)]), fit, 10)
    assert [group["lr"] for group in optimizer._optimizer.param_groups] == [1e-4, 0.5, 1e-4]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"of": "netwrok"}], r"fit.groups.0.of: no parameter that is still left is called 'netwrok' .*network, code"),
        ([{"of": "network.0"}, {"of": "network.0.norm"}], r"fit.groups.1.of: no parameter that is still left"),
        ([{"of": "net"}], r"fit.groups.0.of: no parameter that is still left is called 'net' or lies below it"),
        ([{"of": "network", "frozen": True}, {"of": "code", "frozen": True}], "fit.groups: all parameters are frozen"),
    ],
)
def test_groups_of_nothing(groups: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        optimizer_of(model_of(), groups=groups)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=message):
        check_groups(model_of(), parse_options(Fit, {"groups": groups}))


def test_nesterov_is_that_of_torch() -> None:
    model, other = model_of(), model_of()
    optimizer = optimizer_of(
        model, optimizer="sgd", lr=0.05, momentum=0.8, nesterov=True, schedule={"name": "constant"}, weight_decay=0.01
    )
    theirs = torch.optim.SGD(other.parameters(), 0.05, momentum=0.8, nesterov=True, weight_decay=0.01)
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for number in range(3):
        step_of(optimizer, model, number)
        theirs.zero_grad()
        other.train()(x)["code"].square().mean().backward()
        theirs.step()
    assert same(model.state_dict(), other.state_dict())


# ------------------------------------------------------------------------------------------------------------ averages


def test_the_average_follows_the_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = Average(model, 0.9)
    expected = model[0].weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            model[0].weight += 0.1
        model.train()(torch.randn(4, 2))
        average.update(model, step)
        kept = min(0.9, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * model[0].weight.detach()
    torch.testing.assert_close(average.model[0].weight, expected)
    assert average.model[1].num_batches_tracked == 199
    assert not average.model.training


def test_the_average_is_what_is_stored_and_gone_on_from(colours: Path, tmp_path: Path) -> None:
    changed = {"fit": {"epochs": 3, "ema": 0.8}}

    class Stopped(Exception):
        pass

    def stop(epoch: Any) -> None:
        if epoch.epoch == 1:
            raise Stopped

    start(colours, tmp_path / "whole", **changed)
    with pytest.raises(Stopped):
        start(colours, tmp_path / "parts", stop, **changed)
    start(colours, tmp_path / "parts", **changed)
    assert (tmp_path / "parts/best.pth").read_bytes() == (tmp_path / "whole/best.pth").read_bytes()
    last = weights(tmp_path / "whole/last.pth")
    assert not same(last["model"], last["average"])


# ------------------------------------------------------------------------------------------------------- small pictures


def test_the_first_epochs_see_smaller_pictures(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    outputs = loop._Run._outputs

    def note(run: Any, model: Any, x: Any, half: bool) -> Any:
        seen.append(tuple(x.shape[2:]))
        return outputs(run, model, x, half)

    monkeypatch.setattr(loop._Run, "_outputs", note)
    network = {"name": "speedrun", "widths": [4, 4, 4], "preprocess": {"resize": [16, 20], "crop": None}}
    start(colours, tmp_path / "out", network=network, fit={"epochs": 3, "small": {"scale": 0.75, "share": 0.7}})
    steps, held_out = [(12, 15)] * 3, [(16, 20)]
    assert seen == [*steps, *held_out, *steps, *held_out, *[(16, 20)] * 3, *held_out]


def test_a_network_of_one_size_takes_no_smaller_pictures(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^fit\.small: the network takes no pictures of 48 x 48: leave this out"):
        start(colours, tmp_path / "out", network=FLATTENED, fit={"small": {}})
    assert not (tmp_path / "out/last.pth").exists()


def test_a_network_that_asserts_its_size_takes_no_smaller_pictures(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchvision's vision transformers do."""
    real = torch.nn.Flatten.forward

    def asserting(self: Any, x: Any) -> Any:
        assert x.shape[2] == 20, f"Wrong image height! Expected 20 but got {x.shape[2]}!"
        return real(self, x)

    monkeypatch.setattr("cbir_faiss.nets._plain.plain", lambda *_: torch.nn.Flatten())
    monkeypatch.setattr(torch.nn.Flatten, "forward", asserting)
    network = {"name": "plain", "preprocess": {"resize": [20, 20], "crop": None}}
    with pytest.raises(ConfigError, match=r"^fit\.small: the network takes no pictures of 15 x 15: leave this out"):
        start(colours, tmp_path / "out", network=network, fit={"small": {}})


# ------------------------------------------------------------------------------------------------------- augmentation


def altered(x: Any, seed: int = 0, **how: Any) -> Any:
    return augment(x, parse_options(Augment, how), torch.Generator().manual_seed(seed))


def test_padding_shifts_by_whole_pixels() -> None:
    x = torch.rand(40, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    got = altered(x, pad=2)
    assert got.shape == x.shape
    padded = torch.nn.functional.pad(x, [2] * 4, mode="reflect")
    places = set()
    for before, after in zip(padded, got, strict=True):
        found = [(i, j) for i in range(5) for j in range(5) if torch.equal(before[:, i : i + 7, j : j + 9], after)]
        assert len(found) == 1
        places |= set(found)
    assert len(places) > 12
    assert altered(x[:, :, :2, :2], pad=9).shape == (40, 3, 2, 2)
    assert torch.equal(altered(x[:, :, :1, :1], pad=9), x[:, :, :1, :1])


def test_what_is_cut_out_is_a_square_of_the_mean_colour() -> None:
    x = torch.rand(60, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    got = altered(x, cutout=0.4)
    changed = (got != x).any(1)
    assert changed.flatten(1).sum(1).max() == 16
    assert changed.flatten(1).any(1).float().mean() > 0.9
    for before, after, where in zip(x, got, changed, strict=True):
        rows, columns = where.any(1).nonzero().flatten(), where.any(0).nonzero().flatten()
        assert where.sum() == len(rows) * len(columns)
        assert len(rows) <= 4
        if where.any():
            torch.testing.assert_close(after[:, where], before.mean((1, 2))[:, None].expand(-1, int(where.sum())))


def test_shares_of_a_mixture() -> None:
    how, generator = Augment(mixup=0.5), torch.Generator().manual_seed(0)
    drawn = [mixing(7, how, generator) for _ in range(400)]
    shares = np.array([share for _, share in drawn])
    assert ((shares >= 0) & (shares <= 1)).all()
    assert abs(shares.mean() - 0.5) < 0.05
    assert abs(shares.var() - 0.125) < 0.02  # of Beta(a, a): 1 / (4 (2 a + 1))
    assert sorted(drawn[0][0].tolist()) == list(range(7))
    again = mixing(7, how, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], drawn[0][0])
    assert again[1] == drawn[0][1]


def test_a_mixture_has_the_losses_of_both(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], float]] = []
    right = loop._Run._sum

    def note(run: Any, outputs: Any, rows: Any) -> Any:
        if run.model.training:
            seen.append((rows.tolist(), float(right(run, outputs, rows).detach())))
        return right(run, outputs, rows)

    monkeypatch.setattr(loop._Run, "_sum", note)
    result = start(colours, tmp_path / "out", fit={"epochs": 1}, augment={"mixup": 1.0})
    assert len(seen) == 2 * 3
    for (own, _), (others, _) in zip(seen[::2], seen[1::2], strict=True):
        assert sorted(own) == sorted(others)
    low, high = ([pick(a, b) for (_, a), (_, b) in zip(seen[::2], seen[1::2], strict=True)] for pick in (min, max))
    assert np.mean(low) <= result.history[0].loss <= np.mean(high)


# ------------------------------------------------------------------------------------------------------------- losses

N, BITS = 12, 8


def task() -> Task:
    teacher = np.random.default_rng(0).normal(1, 1, (N, 10)).astype(np.float32)
    return Task(6, BITS, ("a", "b", "c"), np.arange(N) % 3, teacher, 0)


def loss_of(name: str, code: Any, **options: Any) -> float:
    what = task()
    assert what.labels is not None
    batch = Batch(torch.from_numpy(what.labels), torch.from_numpy(what.teacher))
    return float(registry.make("losses", name, **options).start(what)({"code": code}, batch))


def some_code(seed: int = 1) -> Any:
    return torch.randn(N, BITS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("margin", "temperature"), [(0.0, 1.0), (0.3, 0.125)])
def test_orthohash_against_the_formula(margin: float, temperature: float) -> None:
    code, labels = some_code().double().numpy(), task().labels
    centres = hash_centers(3, BITS, 0).astype(float)
    cosines = code @ centres.T / np.linalg.norm(code, axis=1, keepdims=True) / np.sqrt(BITS)
    logits = (cosines - margin * np.eye(3)[labels]) / temperature
    expected = -(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[np.arange(N), labels].mean()
    got = loss_of("orthohash", some_code(), margin=margin, temperature=temperature)
    assert got == pytest.approx(expected, rel=1e-5)
    assert loss_of("orthohash", 7 * some_code(), margin=margin, temperature=temperature) == pytest.approx(got, rel=1e-5)


@pytest.mark.parametrize("balanced", [False, True])
def test_likelihood_against_a_double_loop(balanced: bool) -> None:
    code, labels = some_code().double().numpy(), task().labels
    assert labels is not None
    terms: dict[bool, list[float]] = {True: [], False: []}
    for i in range(N):
        for j in range(i + 1, N):
            theta, same_class = 0.5 * code[i] @ code[j], bool(labels[i] == labels[j])
            terms[same_class].append(math.log(1 + math.exp(theta)) - same_class * theta)
    pairs = np.mean([np.mean(t) for t in terms.values()]) if balanced else np.mean(terms[True] + terms[False])
    expected = pairs + 0.2 * ((code - np.sign(code)) ** 2).mean()
    got = loss_of("likelihood", some_code(), scale=0.5, balanced=balanced, quantization=0.2)
    assert got == pytest.approx(expected, rel=1e-5)


def test_the_codes_of_hashnet_come_near_their_signs_step_by_step() -> None:
    what, code = task(), some_code()
    options = {"scale": 0.5, "quantization": 0, "continuation": 3.0}
    module = registry.make("losses", "likelihood", **options).start(what)
    batch = Batch(torch.from_numpy(what.labels), None)
    for step in range(3):
        wanted = loss_of("likelihood", torch.tanh(math.sqrt(1 + 3 * step) * code), scale=0.5, quantization=0)
        with torch.no_grad():  # held-out pictures are no step
            assert float(module({"code": code}, batch)) == pytest.approx(wanted, rel=1e-5)
        assert float(module({"code": code}, batch)) == pytest.approx(wanted, rel=1e-5)
    assert module.state_dict()["step"] == 3  # so that a training that goes on goes on there


def test_greedy_supervised_against_the_formula() -> None:
    what, code = task(), some_code().requires_grad_()
    module = registry.make("losses", "greedy-supervised", penalty=0.3).start(what)
    batch = Batch(torch.from_numpy(what.labels), None)
    got = module({"code": code}, batch)
    x, (matrix,) = code.detach().double().numpy(), (p.detach().double().numpy() for p in module.parameters())
    logits = np.sign(x) @ matrix.T
    entropies = -(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[np.arange(N), what.labels]
    assert got.item() == pytest.approx(entropies.mean() + 0.3 * (np.abs(x - np.sign(x)) ** 3).mean(), rel=1e-5)
    got.backward()
    assert (code.grad != 0).all()  # signs have no gradient of their own


def test_half_of_every_bit_is_set() -> None:
    signs = balanced_signs(some_code())
    assert signs.unique().tolist() == [-1, 1]
    assert torch.equal(signs.sum(0), torch.zeros(BITS))
    assert torch.equal(balanced_signs(some_code()[:5]).sum(0), torch.full((BITS,), -1.0))
    higher = some_code()
    assert (higher.where(signs > 0, math.inf).amin(0) >= higher.where(signs < 0, -math.inf).amax(0)).all()
    assert torch.equal(balanced_signs(torch.zeros(6, 1)).sum(0), torch.zeros(1))  # equals are told apart, too


def test_cibhash_against_a_double_loop() -> None:
    code = some_code().double().numpy()
    signs, p, half = np.where(code > 0, 1.0, -1.0), 1 / (1 + np.exp(-code)), N // 2
    contrast, divergence = [], []
    for i in range(N):
        other = (i + half) % N
        terms = {j: math.exp(signs[i] @ signs[j] / BITS / 0.5) for j in range(N) if j != i}
        contrast.append(-math.log(terms[other] / sum(terms.values())))
        q = p[other]
        divergence.append((p[i] * np.log(p[i] / q) + (1 - p[i]) * np.log((1 - p[i]) / (1 - q))).sum())
    expected = np.mean(contrast) + 0.1 * np.mean(divergence)
    assert loss_of("cibhash", some_code(), temperature=0.5, bottleneck=0.1) == pytest.approx(expected, rel=1e-5)


def test_cibhash_of_codes_that_are_sure_is_finite() -> None:
    sure = (1000 * some_code()).requires_grad_()
    loss = registry.make("losses", "cibhash").start(task())({"code": sure}, Batch(None, None))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(sure.grad).all()


def test_two_alterations_of_each_picture_are_learned_from(colours: Path, tmp_path: Path) -> None:
    how = {"losses": [{"name": "cibhash"}], "augment": {"flip": True, "noise": 0.05, "pad": 2}}
    result = start(colours, tmp_path / "out", **how, fit={"epochs": 6})
    losses = [epoch.held_out_loss for epoch in result.history]
    assert losses[-1] < losses[0]
    again = start(colours, tmp_path / "again", **how, fit={"epochs": 6})
    assert [epoch.held_out_loss for epoch in again.history] == losses


# -------------------------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("true", [0.3, 1.0, 5.0])
def test_logits_are_made_as_sure_as_they_are_right(true: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(5, p=p) for p in chances])
    assert best_temperature(logits * true, labels) == pytest.approx(true, rel=0.1)


def test_logits_that_are_always_right_or_never() -> None:
    logits, labels = np.eye(4)[np.arange(20) % 4], np.arange(20) % 4
    assert best_temperature(logits, labels) == pytest.approx(0.05, rel=1e-3)
    assert best_temperature(-logits, labels) == pytest.approx(20, rel=1e-3)


def test_a_calibrated_extractor(colours: Path, tmp_path: Path) -> None:
    changed = {"losses": [{"name": "classification"}], "bits": None, "head": {"temperature": 0.1, "calibrate": True}}
    start(colours, tmp_path / "out", **changed)
    state = weights(tmp_path / "out/best.pth")
    assert state["calibration"] != 1
    image = Image.new("RGB", (20, 20), (200, 60, 60))
    probs = Trained(path=str(tmp_path / "out"), runtime="torch")([image])["probs"]
    assert probs.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_calibrated_extractor_in_onnx_runtime(colours: Path, tmp_path: Path) -> None:
    head = {"temperature": 0.1, "calibrate": True, "norm": True}
    start(colours, tmp_path / "out", losses=[{"name": "classification"}, {"name": "orthohash"}], head=head)
    image = Image.new("RGB", (20, 20), (200, 60, 60))
    by_torch, by_onnx = (Trained(path=str(tmp_path / "out"), runtime=r)([image]) for r in ("torch", "onnx"))
    for column in ("embedding", "probs"):
        np.testing.assert_allclose(by_torch[column], by_onnx[column], atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": [1]}, "seeds: a deviation over seeds takes at least two, all different; one is fit.seed"),
        ({"seeds": []}, "seeds: a deviation over seeds takes at least two"),
        ({"seeds": [1, 1]}, "seeds: a deviation over seeds takes at least two, all different"),
        ({"seeds": [1, -2]}, "seeds.1: must be greater than or equal to 0"),
        ({"seeds": [1, 2], "fit": {"seed": 3}}, "seeds: give seeds or fit.seed, not both"),
        ({"head": {"norm": True}, "bits": None, "losses": [{"name": "classification"}]}, "head.norm: it is of a code"),
        ({"head": {"temperature": 0.1}}, "head.temperature: none of the losses tells classes apart"),
        ({"head": {"calibrate": True}}, "head.calibrate: none of the losses tells classes apart"),
        ({"head": {"temprature": 0.1}}, "head.temprature: unknown key; did you mean 'temperature'"),
        ({"augment": {"mixup": 0.2}, "losses": [{"name": "pairwise"}]}, "augment.mixup: loss 'pairwise' compares"),
        ({"losses": [{"name": "cibhash"}], "augment": {}}, "augment: loss 'cibhash' compares"),
        ({"losses": [{"name": "cibhash"}]}, "augment: loss 'cibhash' compares alterations of a picture: say how"),
        ({"augment": {"pad": -1}}, "augment.pad: must be"),
        ({"augment": {"cutout": 2}}, "augment.cutout: must be"),
        ({"augment": {"beyond": "black", "flip": True}}, "augment: nothing beyond a picture is seen"),
        ({"fit": {"nesterov": True}}, "fit: nesterov is a momentum of the optimizer sgd"),
        ({"fit": {"momentum": 0.8}}, "fit: momentum is of the optimizer sgd: leave it out"),
        ({"fit": {"momentum": 0.9, "optimizer": "adamw"}}, "fit: momentum is of the optimizer sgd: leave it out"),
        ({"fit": {"schedule": {"name": "constant", "last": 0.1}}}, "fit.schedule: constant has no last: leave it out"),
        ({"fit": {"schedule": {"name": "constant", "steps": 9}}}, "fit.schedule: constant has no steps: leave it out"),
        ({"fit": {"schedule": {"steps": 9}}}, "fit.schedule: cosine has no steps: leave it out"),
        ({"fit": {"schedule": {"name": "step", "last": 0.1}}}, "fit.schedule: step has no last: leave it out"),
        ({"fit": {"seed": 2**32}}, "fit.seed: must be less than or equal to 4294967295"),
        ({"seeds": [1, 2**32]}, "seeds.1: must be less than or equal to 4294967295"),
        ({"teacher": {"name": "histogram"}}, "teacher: none of the losses learns from a teacher: leave this out"),
        ({"losses": [{"name": "greedy"}]}, "teacher: loss 'greedy' learns from another's embeddings: give teacher"),
        ({"bits": None}, "bits: loss 'csq' trains a code: give bits"),
        ({"fit": {"ema": 1}}, "fit.ema: must be less than 1"),
        ({"fit": {"small": {"scale": 1}}}, "fit.small.scale: must be less than 1"),
        ({"fit": {"small": {"until": 3}}}, "fit.small.until: unknown key"),
        ({"fit": {"groups": [{"lr": 1}]}}, "fit.groups.0.of: is required"),
        ({"fit": {"groups": [{"of": "code", "rate": 1}]}}, "fit.groups.0.rate: unknown key"),
        ({"fit": {"groups": [{"of": "code", "frozen": True, "lr": 1}]}}, "fit.groups.0: what is frozen takes no lr"),
        (
            {"fit": {"groups": [{"of": "code", "frozen": True, "weight_decay": 0.1}]}},
            "fit.groups.0: what is frozen takes no weight_decay",
        ),
        ({"fit": {"memory": 0}}, "fit.memory: must be"),
        ({"fit": {"precision": "half"}}, "fit.precision: must be"),
    ],
)
def test_what_does_not_go_together(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_training(document(Path("x"), **changed))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fit": {"groups": [{"of": "netwrok"}]}}, r"fit\.groups\.0\.of: no parameter that is still left is called"),
        ({"network": FLATTENED, "fit": {"small": {}}}, r"fit\.small: the network takes no pictures of 48 x 48"),
        ({"network": {"name": "plain", "preprocess": {"resize": [1, 1]}}}, r"network\.preprocess: images of 1 x 1"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_before_pictures_are_read(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        start(tmp_path / "no pictures", tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_held_out_pictures_of_one_class(tmp_path: Path) -> None:
    """Among them every ranking is right, so that the first epoch would be the best."""
    root, rng = tmp_path / "uneven", np.random.default_rng(0)
    for name, count in (("many", 40), ("few", 4)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    changed = {"fit": {"held_out": 20, "epochs": 1}}
    with pytest.raises(InputError, match=r"all pictures that are held out are of class 'many': lower fit\.held_out"):
        start(root, tmp_path / "out", **changed)
    teacher = {"losses": [{"name": "distillation"}], "bits": None, "teacher": {"name": "histogram"}}
    result = start(root, tmp_path / "other", **changed, **teacher)
    assert result.measure == "-loss of the held-out pictures"


# -------------------------------------------------------------------------------------------------------- going on


def test_epochs_can_be_raised(colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(colours, out)
    epochs: list[Any] = []
    again = start(colours, out, epochs.append, fit={"epochs": 4})
    assert [epoch.epoch for epoch in epochs] == [3, 4]
    assert again.history[:2] == first.history
    assert (again.best.score or 0) >= (first.best.score or 0)
    assert json.loads((out / "config.json").read_text())["fit"]["epochs"] == 4
    with pytest.raises(ConfigError, match="another fit"):
        start(colours, out)
    with pytest.raises(ConfigError, match="another fit"):
        start(colours, out, fit={"epochs": 5, "lr": 0.5})
    assert start(colours, out, fit={"epochs": 4}).history == again.history


def test_a_training_that_asks_for_as_many_epochs_as_there_are_by_default(colours: Path, tmp_path: Path) -> None:
    config = parse_training({k: v for k, v in document(colours).items() if k != "fit"})
    assert config.fit.epochs == 50
    from cbir_faiss.training.checkpoint import claim

    claim(tmp_path / "out", {**config.document, "fit": {"epochs": 3}})
    (tmp_path / "out/last.pth").write_bytes(b"")
    claim(tmp_path / "out", config.document)
    with pytest.raises(ConfigError, match="another fit"):
        claim(tmp_path / "out", {**config.document, "fit": {"epochs": 3}})


@pytest.mark.parametrize("number", [1, 2])
def test_a_kill_between_weights_and_card(
    number: int, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch's, and a later one's: the run goes on, and ends like one that was left alone."""
    from cbir_faiss.nets import model

    out, saved, right = tmp_path / "killed", 0, model.finish_saving

    def die(folder: Path) -> None:
        nonlocal saved
        saved += 1
        if saved == number:
            raise KeyboardInterrupt
        right(folder)

    start(colours, tmp_path / "whole", fit={"epochs": 2})
    with monkeypatch.context() as patch:
        patch.setattr(model, "finish_saving", die)
        patch.setattr(loop, "retrieval_map", lambda *_: 0.1 * (saved + 1))
        with pytest.raises(KeyboardInterrupt):
            start(colours, out, fit={"epochs": 2})
    assert (out / "model.json.ready").exists()
    found = start(colours, out, fit={"epochs": 2})
    Trained(path=str(out), runtime="torch").load()
    assert len(found.history) == 2
    assert same(weights(out / "last.pth")["model"], weights(tmp_path / "whole/last.pth")["model"])


def test_a_network_that_looks_first_goes_on_the_same(colours: Path, tmp_path: Path) -> None:
    network = {"name": "speedrun", "widths": [4, 8, 8], "preprocess": {"resize": [16, 16], "crop": None}}
    changed = {
        "network": network,
        "losses": [{"name": "orthohash"}],
        "augment": {"pad": 2, "cutout": 0.3, "flip": True},
    }
    fit = {"optimizer": "sgd", "nesterov": True, "schedule": {"name": "triangular", "last": 0.1}, "ema": 0.9}

    class Stopped(Exception):
        pass

    def stop(epoch: Any) -> None:
        if epoch.epoch == 1:
            raise Stopped

    result = start(colours, tmp_path / "whole", fit={**fit, "epochs": 3}, **changed)
    with pytest.raises(Stopped):
        start(colours, tmp_path / "parts", stop, fit={**fit, "epochs": 3}, **changed)
    start(colours, tmp_path / "parts", fit={**fit, "epochs": 3}, **changed)
    assert (tmp_path / "parts/best.pth").read_bytes() == (tmp_path / "whole/best.pth").read_bytes()
    assert math.isfinite(result.history[-1].loss)
    torch.manual_seed(0)
    fresh, _ = registry.make("networks", **network).build()
    trained = weights(tmp_path / "whole/best.pth")["network.whiten.weight"]
    assert not torch.equal(trained, fresh.whiten.weight)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precisions(precision: str, colours: Path, tmp_path: Path) -> None:
    result = start(colours, tmp_path / "out", fit={"precision": precision, "epochs": 4})
    assert result.best.score > 0.5
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "out/best.pth").values())


@pytest.mark.parametrize("emulated", [True, False])
def test_bfloat16_that_a_gpu_emulates_is_none(emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or not emulated

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_bfloat16(torch.device("cuda")) != emulated
    assert not has_bfloat16(torch.device("mps"))


def test_a_state_of_before_there_were_groups_is_gone_on_from(colours: Path, tmp_path: Path) -> None:
    """It has the state of a scheduler, which is not needed: what is done says where the schedule is."""
    whole = start(colours, tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(epoch: Any) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        start(colours, tmp_path / "out", stop)
    state = weights(tmp_path / "out/last.pth")
    (group,) = state["optimizer"]["param_groups"]
    group |= {"initial_lr": 0.01, "lr": 0.0075}
    torch.save({**state, "schedule": {"last_epoch": 3, "base_lrs": [0.01]}}, tmp_path / "out/last.pth")
    assert start(colours, tmp_path / "out").history[-1].loss == whole.history[-1].loss


def test_one_process_at_a_time(colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(colours, out, fit={"epochs": 1})
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    with writer_lock(out), pytest.raises(CbirError, match="out: another process is writing to it; try again when"):
        start(colours, out, fit={"epochs": 1})
    assert {file.name: file.read_bytes() for file in out.iterdir()} == files
    assert start(colours, out, fit={"epochs": 1}).history == first.history


# ---------------------------------------------------------------------------------------------------------------- seeds


def test_the_largest_seed(colours: Path, tmp_path: Path) -> None:
    assert start(colours, tmp_path / "out", fit={"epochs": 1, "seed": 2**32 - 1}).best.epoch == 1


def test_several_seeds(colours: Path, tmp_path: Path) -> None:
    once = {"fit": {"epochs": 1}}
    config = parse_training(document(colours, seeds=[3, 5], **once))
    out = tmp_path / "runs"
    with pytest.raises(ConfigError, match="seeds: several seeds are several trainings"):
        train(config, out)
    found = train_seeds(config, out)
    scores = [result.best.score for result in found.results.values()]
    assert found.score == over_seeds(scores)
    assert json.loads((out / "seeds.json").read_text()) == json.loads(json.dumps(found.as_dict()))
    assert Trained(path=str(folder_of(out, 3)), runtime="torch").outputs == {"embedding": (8, "float32")}
    start(colours, tmp_path / "alone", fit={"seed": 5, "epochs": 1})
    assert (tmp_path / "alone/best.pth").read_bytes() == (out / "runs-5/best.pth").read_bytes()
    out = out.rename(tmp_path / "renamed")
    assert folder_of(out, 5) == out / "runs-5"
    assert folder_of(out, 15) == out / "renamed-15"
    # One more seed is one more training.
    before = (out / "runs-3/best.pth").stat().st_mtime_ns
    more = train_seeds(parse_training(document(colours, seeds=[3, 5, 6], **once)), out)
    assert list(more.results) == [3, 5, 6]
    assert (out / "runs-3/best.pth").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="holds a training of one seed"):
        train_seeds(config, tmp_path / "alone")
    with pytest.raises(ConfigError, match="names no seeds"):
        train_seeds(config.with_seed(3), out)


def test_the_command_of_several_seeds(colours: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps(document(colours, seeds=[0, 1], fit={"epochs": 1})))
    told = CliRunner().invoke(main, ["train", str(file), "--out", str(tmp_path / "out")])
    assert told.exit_code == 0, told.output
    lines = told.stdout.strip().splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("2 seeds: map of the held-out pictures 0.")
    assert " ± " in lines[2]
    assert ", 95 % interval of the mean " in lines[2]
    as_json = CliRunner().invoke(main, ["train", str(file), "--out", str(tmp_path / "out"), "--json"])
    assert set(json.loads(as_json.stdout)) == {"score", "seeds"}


# --------------------------------------------------------------------------------------------------------------- memory


def test_pictures_beyond_the_memory_are_mapped(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, how = parse_training(document(colours)), Preprocess(resize=(16, 16), crop=None)
    held = load_data(config, how, None)
    from cbir_faiss.training import data

    real = data._room
    monkeypatch.setattr(data, "_room", lambda shape, scratch, *, mapped: real(shape, scratch, mapped=True))
    mapped = load_data(config, how, None, None, tmp_path)
    assert isinstance(mapped.pixels, np.memmap)
    assert not isinstance(held.pixels, np.memmap)
    assert np.array_equal(mapped.pixels, held.pixels)
    assert {path.name for path in tmp_path.iterdir()} == {"colours"}
    result = start(colours, tmp_path / "out", fit={"epochs": 1})
    assert math.isfinite(result.history[0].loss)


def test_no_room_for_mapped_pictures(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cbir_faiss.training import data

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"no room in .* for 0 MB of prepared pictures .No space left") as caught:
        data._room((3, 16, 16, 3), tmp_path, mapped=True)
    assert "\n" not in str(caught.value)


def test_copies_of_a_picture_are_pictures(colours: Path) -> None:
    """They are prepared once, and trained on as often as they are there."""
    for name in ("copy.png", "copy2.png"):
        (colours / "red" / name).write_bytes((colours / "red/00.png").read_bytes())
    data = load_data(parse_training(document(colours)), Preprocess(resize=(16, 16), crop=None), None)
    assert len(data) == 3 * EACH + 2
    assert np.bincount(data.labels).tolist() == [16, 16, 18]
    assert np.array_equal(data.pixels[-1], data.pixels[32])
