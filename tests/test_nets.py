"""Networks: the contract for each that is registered, their formulas, and storing and loading a model."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cbir_faiss.base import registry  # noqa: E402
from cbir_faiss.errors import CbirError, ConfigError, CorruptCollection  # noqa: E402
from cbir_faiss.extractors.trained import Trained  # noqa: E402
from cbir_faiss.images.preprocess import spatial_pool  # noqa: E402
from cbir_faiss.nets.card import Card, Head, read_card  # noqa: E402
from cbir_faiss.nets.cbam import CBAM  # noqa: E402
from cbir_faiss.nets.layers import pooled  # noqa: E402
from cbir_faiss.nets.model import Cosine, Model, finish_saving, load_model, new_card, save_model  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared"
SIZE = {"resize": [32, 32], "crop": None}
SQUEEZE = {"model": "squeezenet1_1", "weights": "none", "preprocess": {"resize": 64, "crop": 64}}
SMALL: Mapping[str, Mapping[str, Any]] = {
    "backbone": {**SQUEEZE, "attention": "cbam", "ratio": 64, "full": 16, "dropout": 0.2},
    "compact": {"width": 2, "features": 16, "blocks": 1, "squeeze": 4, "preprocess": SIZE},
    "multipool": {"width": 2, "joint": 8, "features": 16},
    "plain": {"width": 4, "features": 16},
    "speedrun": {"widths": [4, 8, 8]},
}
"""Options that make a network small; one that is not named here has none to be small by."""

every_network = pytest.mark.parametrize("name", registry.names("networks"))


def network(name: str, **options: Any) -> Any:
    return registry.make("networks", name, **{**SMALL.get(name, {}), **options})


def built(name: str, seed: int = 0, **options: Any) -> tuple[Any, tuple[int, int]]:
    """The module, its random weights drawn with ``seed``, and the size of its images."""
    torch.manual_seed(seed)
    module, preprocess = network(name, **options).build()
    return module, preprocess.size


def trained_model(
    name: str, bits: int | None = 12, classes: tuple[str, ...] | None = ("a", "b", "c"), seed: int = 0
) -> tuple[Card, Model]:
    torch.manual_seed(seed)
    card, model = new_card(network(name), bits, classes)
    return card, model


def batch(size: tuple[int, int], n: int = 3, seed: int = 0) -> Any:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------- the contract of each


def test_all_are_registered() -> None:
    assert set(SMALL) <= set(registry.names("networks"))


@every_network
def test_features_are_float_rows_and_the_same_again(name: str) -> None:
    module, size = built(name)
    x = batch(size)
    module.eval()
    with torch.no_grad():
        first, again, alone = module(x), module(x), module(x[1:2])
    assert first.dtype == torch.float32
    assert first.shape == (3, first.shape[1])
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    torch.testing.assert_close(alone, first[1:2], rtol=1e-4, atol=1e-5)
    assert Model(module, size, None, None).dim == first.shape[1]


@every_network
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    _, model = new_card(network(name), 8, ("a", "b"))
    size = network(name).build(pretrained=False)[1].size
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for _ in range(2):  # gates begin as ones whatever their first layers say, which learn from the second step on
        optimizer.zero_grad()
        outputs = model.train()(batch(size, 8))
        assert set(outputs) == {"features", "code", "logits"}
        assert (outputs["code"].shape, outputs["logits"].shape) == ((8, 8), (8, 2))
        sum(output.square().mean() for output in outputs.values()).backward()
        optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        # What comes before a batch normalisation may have none that is seen; all of a tensor has it elsewhere.
        assert parameter.grad.abs().sum() > 0 or parameter.ndim == 1, parameter_name


@every_network
def test_the_seed_decides_the_weights(name: str) -> None:
    first, again, other = (trained_model(name, seed=seed)[1].state_dict() for seed in (0, 0, 1))
    assert list(first) == list(again)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_network
def test_building_for_stored_weights_gives_the_same_shapes(name: str) -> None:
    (module, _), (empty, _) = network(name).build(), network(name).build(pretrained=False)
    assert {k: v.shape for k, v in module.state_dict().items()} == {k: v.shape for k, v in empty.state_dict().items()}


@every_network
def test_images_of_one_pixel_work_or_are_one_clear_error(name: str) -> None:
    one = network(name, preprocess={"resize": [1, 1], "crop": None})
    if name in ("compact", "multipool"):  # their layers are padded
        _, model = new_card(one, None, None)
        assert torch.isfinite(model.eval()(batch((1, 1)))["features"]).all()
        return
    with pytest.raises(ConfigError, match="images of 1 x 1") as caught:
        new_card(one, None, None)
    assert "\n" not in str(caught.value)


@every_network
def test_onnx_runtime_gives_what_torch_gives(name: str, tmp_path: Path) -> None:
    save_model(*trained_model(name), tmp_path)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    options = {"path": str(tmp_path), "output": ["features", "code"]}
    by_torch, by_onnx = (Trained(**options, runtime=runtime)(images) for runtime in ("torch", "onnx"))
    assert list(by_torch) == list(by_onnx) == ["features", "code", "probs"]
    for column, expected in by_torch.items():
        np.testing.assert_allclose(by_onnx[column], expected, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- the formulas


def test_multipool_doubles_its_streams() -> None:
    module, size = built("multipool")
    x, streams, channels = batch(size), [], []
    module.eval()
    for layer in list(module)[:3]:
        x = layer(x)
        streams.append(layer.streams * len(layer.pooling))
        channels.append(x.shape[1])
    assert streams == [2, 4, 8]
    assert channels == [2 * 2, 4 * 4, 8 * 8]
    assert x.shape[2:] == (4, 4)


def test_multipool_keeps_streams_apart() -> None:
    """Stream i of what a layer is fed changes the outputs of that stream's own branches, in every pooling."""
    module, _ = built("multipool")
    layer = list(module)[2].eval()
    x = torch.rand(2, 4 * 4, 8, 8)
    with torch.no_grad():
        before = layer(x)
        for stream in range(4):
            changed = x.clone()
            changed[:, stream * 4 : (stream + 1) * 4] += torch.rand(2, 4, 8, 8)
            # Outputs: a pooling after another, in each the streams.
            moved = (layer(changed) != before).unflatten(1, (2, 4, 8)).any(dim=3).any(dim=3).any(dim=3).any(dim=0)
            assert moved[:, stream].all()
            assert not moved[:, [s for s in range(4) if s != stream]].any()


def test_a_layer_of_multipool_against_plain_convolutions() -> None:
    """Every stream by itself: normalised, convolved, pooled the one way, and convolved, pooled the other way."""
    module, _ = built("multipool")
    layer = list(module)[1].eval()
    layer.norm.running_mean.uniform_(-1, 1)
    x = torch.randn(2, 2 * 2, 8, 8)
    functions = {
        "avg": lambda y: torch.nn.functional.avg_pool2d(y, 3, 2, 1, count_include_pad=False),
        "max": lambda y: torch.nn.functional.max_pool2d(y, 3, 2, 1),
    }
    with torch.no_grad():
        normal, got = layer.norm(x), layer(x).unflatten(1, (2, 2, 4))
        weights = layer.convolution.weight.unflatten(0, (2, 2, 4))
        biases = layer.convolution.bias.unflatten(0, (2, 2, 4))
        for stream in range(2):
            for branch, how in enumerate(("avg", "max")):
                maps = torch.nn.functional.conv2d(
                    normal[:, 2 * stream : 2 * stream + 2], weights[stream, branch], biases[stream, branch], padding=1
                )
                torch.testing.assert_close(got[:, branch, stream], functions[how](maps).relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "streams", "kinds"),
    [
        (["avg"], 1, ["AvgPool2d"]),
        (["max"], 1, ["MaxPool2d"]),
        (["max", "max"], 8, ["MaxPool2d"] * 2),
        (["avg", "avg"], 8, ["AvgPool2d"] * 2),
        (["max", "avg"], 8, ["MaxPool2d", "AvgPool2d"]),
    ],
)
def test_multipool_ablations(pooling: list[str], streams: int, kinds: list[str]) -> None:
    module, size = built("multipool", pooling=pooling)
    layers = list(module)[:3]
    assert layers[-1].streams * len(pooling) == streams
    assert all([type(pool).__name__ for pool in layer.pools] == kinds for layer in layers)
    assert module.eval()(batch(size)).shape == (3, 16)


def test_parameters_of_multipool() -> None:
    """Counted by hand: w channels a stream, times two in every layer; two batch normalisation numbers a channel."""
    w, joint, features = 2, 8, 16
    expected, before, streams = 0, 3, 1
    for layer in range(3):
        after = w * 2**layer
        expected += 2 * streams * before + streams * 2 * after * (9 * before + 1)
        before, streams = after, streams * 2
    for channels in (streams * before, joint):
        expected += 2 * channels + joint * (9 * channels + 1)
    expected += features * (joint + 1)
    assert sum(p.numel() for p in built("multipool")[0].parameters()) == expected


def test_parameters_of_plain() -> None:
    """Liu et al.: 32, 32 and 64 filters of 5 x 5, and 500 units; on 32 x 32 pixels the last maps are 4 x 4."""
    expected = 32 * (75 + 1) + 32 * (800 + 1) + 64 * (800 + 1) + 500 * (1024 + 1)
    assert sum(p.numel() for p in built("plain", width=32, features=500)[0].parameters()) == expected


def far_maps(n: int = 6, seed: int = 0) -> Any:
    """Maps like SqueezeNet's: rectified, sparse, up to hundreds."""
    generator = torch.Generator().manual_seed(seed)
    return 200 * torch.randn(n, 32, 6, 6, generator=generator).relu() * torch.rand(1, 32, 1, 1, generator=generator)


def test_cbam_against_the_formula() -> None:
    """Channel by channel and place by place, with numpy, whatever the gates have learned."""
    torch.manual_seed(1)
    cbam = CBAM(6, 2).eval()
    for parameter in cbam.parameters():
        torch.nn.init.normal_(parameter)
    x = 50 * np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
    cbam.norm.running_mean.fill_(0.5)
    cbam.norm.running_var.fill_(4.0)
    state = {name: value.numpy() for name, value in cbam.state_dict().items()}

    def mlp(v: np.ndarray) -> np.ndarray:
        hidden = np.maximum(v @ state["mlp.0.weight"].T + state["mlp.0.bias"], 0)
        return hidden @ state["mlp.2.weight"].T + state["mlp.2.bias"]

    def gate(v: np.ndarray) -> np.ndarray:
        return 2 / (1 + np.exp(-v))

    def scaled(v: np.ndarray) -> np.ndarray:
        return v / np.sqrt((v**2).mean())

    expected = np.empty_like(x)
    for image, got in zip(x, expected, strict=True):
        seen = scaled(image)
        weighted = image * gate(mlp(seen.mean(axis=(1, 2))) + mlp(seen.max(axis=(1, 2))))[:, None, None]
        seen = scaled(weighted)
        both = np.pad(np.stack([seen.mean(axis=0), seen.max(axis=0)]), ((0, 0), (3, 3), (3, 3)))
        for i in range(5):
            for j in range(4):
                place = (both[:, i : i + 7, j : j + 7] * state["place.weight"][0]).sum()
                normal = (place - 0.5) / np.sqrt(4 + 1e-5) * state["norm.weight"] + state["norm.bias"]
                got[:, i, j] = weighted[:, i, j] * gate(normal)
    with torch.no_grad():
        np.testing.assert_allclose(cbam(torch.from_numpy(x)).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_the_gates_of_cbam_begin_at_the_identity() -> None:
    torch.manual_seed(0)
    cbam, x = CBAM(32, 16), far_maps()
    with torch.no_grad():
        assert torch.equal(cbam(x), x)
        assert torch.equal(cbam.channel_gates(x), torch.ones(6, 32))
        assert torch.equal(cbam.place_gates(x), torch.ones(6, 1, 6, 6))
        assert torch.isfinite(cbam(torch.zeros(2, 32, 6, 6))).all()


def test_no_gate_of_a_trained_cbam_is_dead() -> None:
    """It learns, on maps of hundreds, which half of the channels says the class, and shuts nothing for good."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    x = far_maps(64)
    x[:, :4] *= 1 + labels[:, None, None, None]
    cbam, head = CBAM(32, 4), torch.nn.Linear(32, 2)
    optimizer = torch.optim.Adam([*cbam.parameters(), *head.parameters()], 1e-3)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(head(cbam(x).mean((2, 3)) / 100), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for gates in (cbam.channel_gates(x), cbam.place_gates(x)):
            assert not torch.allclose(gates, torch.ones_like(gates), atol=1e-2)
            assert gates.min() > 0.04
            assert gates.max() < 1.96


@pytest.mark.shared
def test_no_gate_of_a_cbam_trained_on_maps_of_squeezenet_is_dead() -> None:
    """They reach hundreds, and gates that saw them as they are would be 0 or 1 for a third of the channels."""
    weights, root = SHARED / "weights/squeezenet1_1-imagenet-fp16.pth", SHARED / "datasets/corel1k"
    if not weights.is_file() or not root.is_dir():
        pytest.skip("needs corel1k and the weights of SqueezeNet in ../shared")
    size = {"resize": [128, 128], "crop": None}
    options = {**SQUEEZE, "weights": str(weights), "attention": "cbam", "preprocess": size}
    torch.manual_seed(0)
    module, preprocess = registry.make("networks", "backbone", **options).build()
    classes = ("beaches", "buses", "dinosaurs", "flowers")
    files = [file for name in classes for file in sorted((root / name).glob("*.jpg"))[:5]]
    pixels = preprocess.normalise(np.stack([preprocess.pixels(Image.open(file)) for file in files]))
    with torch.no_grad():
        maps = module.eval().maps(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))["maps"]
    assert maps.max() > 300
    labels, cbam, head = torch.arange(20) // 5, module.attention.train(), Cosine(maps.shape[1], 4, 0.1)
    optimizer = torch.optim.SGD([*cbam.parameters(), *head.parameters()], 0.01, momentum=0.9)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(head(cbam(maps).mean((2, 3))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    cbam.eval()
    with torch.no_grad():
        channels = cbam.channel_gates(maps)
        places = cbam.place_gates(maps * channels[:, :, None, None])
    for gates in (channels, places):
        assert not torch.allclose(gates, torch.ones_like(gates), atol=5e-3)
        assert gates.min() > 0.04
        assert gates.max() < 1.96


def test_cbam_of_few_channels_has_a_hidden_unit() -> None:
    assert CBAM(4, 16).mlp[0].out_features == 1


def test_speedrun_whitens_the_patches_it_has_seen() -> None:
    """Of the pictures that it began with, the first twelve filters see uncorrelated values of the same size."""
    module, size = built("speedrun")
    x = batch(size, 40)
    x[:, 1:] += 3 * x[:, :1]  # colours that go together
    before = module.whiten.weight.clone()
    with torch.no_grad():
        module.begin(x)
        seen = torch.nn.functional.conv2d(x, module.whiten.weight).transpose(0, 1).flatten(1)
    assert not torch.equal(before, module.whiten.weight)
    assert torch.equal(seen[12:], -seen[:12])
    covariance = seen[:12] @ seen[:12].T / seen.shape[1]
    torch.testing.assert_close(covariance - torch.diag(covariance.diag()), torch.zeros(12, 12), atol=1e-3, rtol=0)
    assert ((covariance.diag() > 0.1) & (covariance.diag() < 1.01)).all()
    assert "whiten.weight" not in dict(module.named_parameters())
    assert "whiten.weight" in module.state_dict()
    with torch.no_grad():
        module.begin(torch.full((4, 3, *size), 0.5))  # pictures of one colour
        assert torch.isfinite(module.eval()(x)).all()


def test_pooling_is_that_of_extraction() -> None:
    x = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    for how in ("avg", "max", "gem", "flatten"):
        np.testing.assert_allclose(pooled(torch.from_numpy(x), how).numpy(), spatial_pool(x, how), rtol=1e-5)


def test_compact_reads_colour_by_mean_and_deviation() -> None:
    """Of a picture of one colour the early maps are constant, but for the border; gradients stay finite."""
    module, size = built("compact")
    x = torch.full((4, 3, *size), 0.3, requires_grad=True)
    module.train()(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    # width 2: means and deviations of 4 channels, means of 8, means and maxima of 16.
    assert module.mix[1].in_features == 2 * 4 + 8 + 2 * 16


def test_squeeze_weighs_channels_by_the_whole_map() -> None:
    """At half where the two layers say nothing; what differs in one place changes the weights of all."""
    module, _ = built("compact")
    gates = module.late[1].gates
    x = torch.rand(2, gates.mlp[0].in_features, 4, 4)
    with torch.no_grad():
        other = x.clone()
        other[:, :, 0, 0] += 5
        assert not torch.allclose(gates(x)[:, :, 1:], gates(other)[:, :, 1:])
        for last in (gates.mlp[2].weight, gates.mlp[2].bias):
            last.zero_()
        torch.testing.assert_close(gates(x), x / 2)
    plain, _ = built("compact", squeeze=None)
    assert set(plain.state_dict()) == {key for key in module.state_dict() if ".gates." not in key}


# ----------------------------------------------------------------------------------------------------------- backbone


def test_backbone_without_additions_is_the_model_pooled() -> None:
    from cbir_faiss.nets.zoo import build_model

    module, size = built("backbone", attention="none", full=None, dropout=0.0)
    model, _ = build_model("squeezenet1_1", "none", 0)
    x = batch(size)
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(module(x), model.eval().features(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"full": None}, "dropout stands before the full connection: give full"),
        ({"model": "squeezenet9"}, "model: torchvision has no model 'squeezenet9'"),
        ({"weights": "gone.pth"}, "weights: no such file: gone.pth"),
        ({"layer": "featuers"}, "layer: the model has no 'featuers'"),
        ({"layer": "flatten"}, "attention: attention needs maps, and layer 'flatten' gives vectors"),
        ({"preprocess": {"rezise": 3}}, "preprocess.rezise: unknown key; did you mean 'resize'"),
        ({"preprocess": {"resize": 64, "crop": None}}, "preprocess: images would differ in shape"),
        ({"preprocess": {"resize": 4, "crop": 4}}, "model: it does not take images of 4 x 4"),
    ],
)
def test_backbone_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built("backbone", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_weights_of_a_backbone_are_those_of_the_training_unless_it_has_a_seed() -> None:
    def first(of_training: int, **options: Any) -> Any:
        torch.manual_seed(of_training)
        return next(network("backbone", **options).build()[0].parameters())

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    assert torch.equal(first(0, seed=3), first(1, seed=3))
    assert not torch.equal(first(0, seed=3), first(0, seed=4))


@pytest.mark.parametrize("preprocess", [{"resize": 64}, {"resize": [64, 48], "crop": None}, {"crop": 64}])
def test_a_full_connection_over_flattened_maps_fits_the_images(preprocess: dict[str, Any]) -> None:
    options = {**SQUEEZE, "pool": "flatten", "full": 8, "preprocess": preprocess}
    _, model = new_card(registry.make("networks", "backbone", **options), None, None)
    assert model.dim == 8


def test_a_full_connection_fits_the_images_that_the_weights_want(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were downloaded before say 240 pixels; a stored model is made for the same ones, without them."""
    from torchvision import models

    url = models.get_model_weights("efficientnet_b1")["IMAGENET1K_V2"].url
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(models.get_model("efficientnet_b1").state_dict(), tmp_path / "hub/checkpoints" / Path(url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cut = {"model": "efficientnet_b1", "layer": "features.1", "pool": "flatten", "full": 2}
    card, model = new_card(registry.make("networks", "backbone", **cut), None, None)
    assert card.preprocess.size == (240, 240)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    save_model(card, model, tmp_path)
    assert load_model(tmp_path)[1].dim == 2


# -------------------------------------------------------------------------------------------------- storing and loading


def test_cosine_classes_and_a_normalised_code(tmp_path: Path) -> None:
    """Logits are cosines over the temperature; probabilities those of the calibrated logits, also once stored."""
    torch.manual_seed(0)
    head = Head(norm=True, temperature=0.1, calibrate=True)
    card, model = new_card(network("plain"), 12, ("a", "b", "c"), head)
    # Ten times longer, and a step of Adam turned them by a tenth of the angle.
    assert model.logits.weight.norm(dim=1).mean().item() == pytest.approx(1, abs=0.2)
    x = batch(card.preprocess.size, 8)
    outputs = model.train()(x)
    assert outputs["logits"].abs().max() <= 10
    assert outputs["code"].mean(0).abs().max() < 1e-5
    cosines = torch.nn.functional.cosine_similarity(outputs["features"][:, None], model.logits.weight[None], dim=2)
    torch.testing.assert_close(outputs["logits"], cosines * 10, rtol=1e-4, atol=1e-4)
    model.calibration.fill_(4.0)
    save_model(card, model, tmp_path)
    again, loaded = load_model(tmp_path)
    assert again.head == head
    with torch.no_grad():
        logits = loaded(x)["logits"]
        torch.testing.assert_close(loaded.probabilities(logits), torch.softmax(logits / 4, 1))


def test_cards_of_before_there_were_heads_are_read(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    del card["head"]
    (folder / "model.json").write_text(json.dumps(card))
    assert read_card(folder)[0].head == Head()
    assert load_model(folder)[1].code is not None


@pytest.mark.parametrize("classes", [None, ("a", "b")])
def test_cards_that_say_nothing_of_labels_have_seen_them_where_there_are_classes(classes: Any, tmp_path: Path) -> None:
    save_model(*new_card(network("plain"), 8, classes, None, supervised=True), tmp_path)
    assert read_card(tmp_path)[0].supervised
    card = json.loads((tmp_path / "model.json").read_text())
    del card["supervised"]
    (tmp_path / "model.json").write_text(json.dumps(card))
    assert read_card(tmp_path)[0].supervised is (classes is not None)


@pytest.mark.parametrize("calls", range(1, 9))
def test_a_kill_while_a_better_model_is_stored(calls: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever call that makes something last: afterwards the folder holds the one model or the other, whole."""
    before = load_model(folder)[1].state_dict()
    card, better = trained_model("multipool", seed=5)
    left = calls

    def dying(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for where, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (Path, "replace"), (torch, "save")):
            patch.setattr(where, name, dying(getattr(where, name)))
        with contextlib.suppress(KeyboardInterrupt):
            save_model(card, better, folder)
    finish_saving(folder)
    found = load_model(folder)[1].state_dict()
    assert any(all(torch.equal(state[key], found[key]) for key in found) for state in (before, better.state_dict()))
    assert not (folder / "model.json.ready").exists()
    save_model(card, better, folder)
    assert same_state(load_model(folder)[1].state_dict(), better.state_dict())


def same_state(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


def test_altered_weights_are_not_mended(folder: Path) -> None:
    state = torch.load(folder / "best.pth", weights_only=True)
    state["code.bias"][0] += 1
    torch.save(state, folder / "best.pth")
    finish_saving(folder)
    with pytest.raises(CorruptCollection, match=r"best.pth: altered"):
        load_model(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stored model of the network multipool."""
    place = tmp_path / "trained"
    place.mkdir()
    save_model(*trained_model("multipool"), place)
    return place


@pytest.mark.parametrize(("bits", "classes"), [(None, None), (12, None), (None, ("ä", "b")), (8, ("a", "b"))])
def test_round_trip(bits: int | None, classes: tuple[str, ...] | None, tmp_path: Path) -> None:
    card, model = trained_model("plain", bits, classes)
    save_model(card, model, tmp_path)
    loaded_card, loaded = load_model(tmp_path)
    assert loaded_card == card
    assert not loaded.training
    x = batch(card.preprocess.size)
    with torch.no_grad():
        expected, got = model.eval()(x), loaded(x)
    assert list(got) == ["features"] + ["code"] * bool(bits) + ["logits"] * bool(classes)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_folder_can_be_moved(folder: Path, tmp_path: Path) -> None:
    expected = load_model(folder)[1].state_dict()
    shutil.move(folder, tmp_path / "elsewhere")
    got = load_model(tmp_path / "elsewhere")[1].state_dict()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_nothing_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone"):
        with pytest.raises(
            ConfigError, match=r"no trained model here \(it has no model.json\): cbir train CONFIG --out"
        ):
            load_model(place)


def test_weights_of_another_network(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    save_model(*trained_model("plain"), tmp_path / "other")
    shutil.copy(tmp_path / "other/best.pth", folder)
    with pytest.raises(ConfigError, match=r"best.pth: a checkpoint of another network than 'multipool': \d+ names"):
        load_model(folder)


def test_altered_weights(folder: Path) -> None:
    state = torch.load(folder / "best.pth", weights_only=True)
    state["code.bias"][0] += 1
    torch.save(state, folder / "best.pth")
    with pytest.raises(CorruptCollection, match=r"best.pth: altered"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_cut_short_weights(folder: Path, keep: int) -> None:
    content = (folder / "best.pth").read_bytes()
    (folder / "best.pth").write_bytes(content[:keep])
    with pytest.raises(CbirError, match=r"best.pth") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_lost_weights(folder: Path) -> None:
    (folder / "best.pth").unlink()
    with pytest.raises(ConfigError, match=r"weights: no such file: .*best.pth"):
        load_model(folder)


class _Code:
    """Unpickled, it would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.file,)


def test_a_pickle_with_code_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.save({"code.bias": _Code(tmp_path / "ran")}, folder / "best.pth")
    with pytest.raises(ConfigError, match=r"best.pth: not a state dict that can be loaded safely") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


ALTERED: Mapping[str, tuple[Any, str]] = {
    "no JSON": ("{", "not the description of a model"),
    "a list": ([], "not the description of a model"),
    "a text": ('"card"', "not the description of a model"),
    "a number": (3, "not the description of a model"),
    "of a later format": ({"format": 99}, "not a model of format 1: train it again"),
    "no format": ({"format": None}, "not a model of format 1"),
    "an unknown network": ({"network": "multipol"}, "did you mean 'multipool'"),
    "a wrong option": ({"options": {"width": "wide"}}, "width"),
    "other bits": ({"bits": 16}, "a checkpoint of another network than 'multipool': 'code.weight' is"),
    "fewer classes": ({"classes": ["a", "b"]}, "'logits.weight' is"),
    "no options": ({"options": 3}, "not the description of a model"),
    "a wrong size": ({"preprocess": {"crop": 0}}, "not the description of a model"),
    "more": ({"author": "x"}, "not the description of a model"),
    "another digest": ({"sha256": "0" * 64}, "best.pth: altered"),
}


@pytest.mark.parametrize("how", ALTERED)
def test_altered_card(how: str, folder: Path) -> None:
    change, message = ALTERED[how]
    card = json.loads((folder / "model.json").read_text())
    content = json.dumps({**copy.deepcopy(card), **change} if isinstance(change, dict) else change)
    (folder / "model.json").write_text(change if isinstance(change, str) else content)
    with pytest.raises(CbirError) as caught:
        load_model(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["format", "network", "options", "preprocess", "sha256", "classes"])
def test_a_card_without(key: str, folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    del card[key]
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(ConfigError, match=r"model.json: not the description of a model"):
        read_card(folder)
