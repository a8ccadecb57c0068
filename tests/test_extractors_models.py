"""timm, open_clip and transformers: the contract, equality with the libraries' own pipelines, and what bad input gets.

Nothing is downloaded: architectures are real, weights random, from folders as the libraries write them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _models
import numpy as np
import pytest
from _models import directions, pictures, pooled

_models.quietly_imported("torch", "torchvision", "onnxruntime", "timm", "open_clip", "transformers", "tokenizers")

import open_clip  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from cbir_faiss.base import Extractor, registry  # noqa: E402
from cbir_faiss.errors import ConfigError, Unsupported  # noqa: E402
from cbir_faiss.extractors._network import NetworkExtractor  # noqa: E402
from cbir_faiss.extractors.open_clip import OpenClip  # noqa: E402
from cbir_faiss.extractors.timm import Timm  # noqa: E402
from cbir_faiss.extractors.transformers import Transformers  # noqa: E402
from cbir_faiss.storage.manifest import PluginEntry  # noqa: E402
from cbir_faiss.testing import ExtractorContract  # noqa: E402

SMALL = {"resize": [32, 32], "crop": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model, made once."""
    place = tmp_path_factory.mktemp("models")
    _models.timm_weights(place / "vit.pth")
    _models.open_clip_folder(place / "open_clip")
    for make in (_models.clip_folder, _models.siglip_folder, _models.vit_folder):
        make(place / make.__name__.partition("_")[0])
    return place


@pytest.fixture(autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exported is exported once for all of these tests."""
    monkeypatch.setenv("CBIR_CACHE", str(tmp_path_factory.getbasetemp() / "exported-models"))


class Contract(ExtractorContract):
    """Run by torch, which starts sooner; what is frozen runs by ONNX Runtime."""

    where: str

    @pytest.fixture(autouse=True)
    def the_model(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given = type(self).options
        changed = {key: value.format(place) if isinstance(value, str) else value for key, value in given.items()}
        monkeypatch.setattr(type(self), "options", {**changed, "runtime": "torch"})


class TestTimmContract(Contract):
    plugin = Timm
    options = {"model": "test_vit", "weights": "{}/vit.pth", "preprocess": {"crop": [160, 160]}}


class TestOpenClipContract(Contract):
    plugin = OpenClip
    options = {"model": "{}/open_clip"}


class TestTransformersContract(Contract):
    plugin = Transformers
    options = {"model": "{}/vit"}


def test_timm_is_timms(place: Path) -> None:
    model = timm.create_model("test_vit", num_classes=7)
    model.load_state_dict(torch.load(place / "vit.pth"))
    model.reset_classifier(0)
    seen = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        expected = model.eval()(torch.stack([seen(picture) for picture in pictures()])).numpy()
    got = Timm(model="test_vit", weights=str(place / "vit.pth"), runtime="torch")(pictures())["embedding"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_folder_of_timms_gives_what_its_weights_give(tmp_path: Path) -> None:
    folder = _models.timm_folder(tmp_path / "vit")
    seen = {"resize": [160, 160], "crop": None, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}
    weights = str(folder / "pytorch_model.bin")
    by_path = Timm(model="test_vit", weights=weights, runtime="torch", preprocess=seen)
    extractor = Timm(model=str(folder), runtime="torch", preprocess=seen)
    np.testing.assert_array_equal(extractor(pictures())["embedding"], by_path(pictures())["embedding"])


def test_weights_of_safetensors(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(place / "vit.pth"), tmp_path / "vit.safetensors")
    expected = Timm(model="test_vit", weights=str(place / "vit.pth"), runtime="torch")(pictures())["embedding"]

    def older(*_: Any, **__: Any) -> None:
        raise RuntimeError("this release of torch reads no such file by itself")

    monkeypatch.setattr(torch, "load", older)
    got = Timm(model="test_vit", weights=str(tmp_path / "vit.safetensors"), runtime="torch")(pictures())["embedding"]
    np.testing.assert_array_equal(got, expected)
    (tmp_path / "vit.safetensors").write_bytes((tmp_path / "vit.safetensors").read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"weights: .*vit\.safetensors: not a state dict that can be loaded safely: "):
        Timm(model="test_vit", weights=str(tmp_path / "vit.safetensors"), runtime="torch").load()


def test_layers_and_pooling(place: Path) -> None:
    weights = {"weights": str(place / "vit.pth"), "runtime": "torch"}
    extractor = Timm(model="test_vit", layer=["blocks.1", "norm"], pool="max", **weights)
    assert extractor.embeddings == ("blocks.1", "norm")
    columns = extractor(pictures())
    assert [columns[name].shape for name in extractor.embeddings] == [(3, 64), (3, 64)]
    alone = Timm(model="test_vit", layer="norm", pool="max", **weights)(pictures())["embedding"]
    np.testing.assert_allclose(alone, columns["norm"], atol=1e-6)
    clip = OpenClip(model=str(place / "open_clip"), layer="ln_post", runtime="torch")
    assert clip.outputs == {"embedding": (32, "float32")}
    maps = Timm(model="test_resnet", weights="none", layer="layer2", pool="gem", runtime="torch")
    assert maps(pictures())["embedding"].shape == (3, maps.outputs["embedding"][0])


def test_the_seed_draws_the_weights() -> None:
    def drawn(seed: int) -> Any:
        return Timm(model="test_vit", weights="none", seed=seed, runtime="torch")(pictures()[:1])["embedding"]

    assert np.array_equal(drawn(0), drawn(0))
    assert not np.allclose(drawn(0), drawn(1))


def test_open_clip_is_open_clips(place: Path) -> None:
    model, _, seen = open_clip.create_model_and_transforms(f"local-dir:{place / 'open_clip'}")
    with torch.inference_mode():
        expected = model.eval().encode_image(torch.stack([seen(picture) for picture in pictures()])).numpy()
    extractor = OpenClip(model=str(place / "open_clip"), runtime="torch")
    np.testing.assert_allclose(extractor(pictures())["embedding"], expected, atol=1e-5)
    file = place / "open_clip" / "open_clip_pytorch_model.bin"
    by_path = OpenClip(model=str(place / "open_clip"), weights=str(file), runtime="torch")
    np.testing.assert_allclose(by_path(pictures())["embedding"], expected, atol=1e-5)


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion", False)])
def test_weights_of_open_clip_run_with_the_activation_that_they_were_trained_with(
    tag: str, quick: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config of ViT-B-32 does not say that OpenAI's weights, the first of the model, want QuickGELU."""
    config = json.loads((place / "open_clip" / "open_clip_config.json").read_text())
    weights = {"file": str(place / "open_clip" / "open_clip_pytorch_model.bin"), **config["preprocess_cfg"]}
    tags = {"openai": {**weights, "quick_gelu": True}, "laion": weights}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config["model_cfg"])
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    told = Path(shutil.copytree(place / "open_clip", tmp_path / "told"))
    config["model_cfg"]["quick_gelu"] = quick
    (told / "open_clip_config.json").write_text(json.dumps(config))
    expected = OpenClip(model=str(told), runtime="torch")(pictures())["embedding"]
    extractor = OpenClip(model="tiny", weights=tag, runtime="torch")
    np.testing.assert_allclose(extractor(pictures())["embedding"], expected, atol=1e-6)
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    extractor._freeze_weights(frozen)
    np.testing.assert_allclose(OpenClip(model=str(frozen), runtime="torch")(pictures())["embedding"], expected)
    assert ("QuickGELU" in extractor._weights_digest()) is quick


@pytest.mark.parametrize("name", ["clip", "siglip", "vit"])
def test_transformers_is_transformers(name: str, place: Path) -> None:
    model = transformers.AutoModel.from_pretrained(place / name).eval()
    extractor = Transformers(model=str(place / name), runtime="torch", preprocess={"mean": [0, 0, 0], "std": [1, 1, 1]})
    pixels = np.stack([extractor.prepare(picture) for picture in pictures()])
    with torch.inference_mode():
        x = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
        if name == "vit":
            expected = model(pixel_values=x).last_hidden_state.mean(dim=1)
        else:
            expected = pooled(model.get_image_features(pixel_values=x))
    np.testing.assert_allclose(extractor.extract(pixels)["embedding"], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("plugin", "name"), [(Transformers, "vit"), (OpenClip, "open_clip"), (Timm, "test_vit")])
def test_what_cannot_be_exported_is_frozen_with_its_weights(
    plugin: type[Extractor], name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexported(self: Any) -> Path:
        raise ConfigError("not to be exported", path="runtime")

    monkeypatch.setattr(NetworkExtractor, "_export_file", unexported)
    options = {"weights": str(place / "vit.pth")} if plugin is Timm else {}
    copied = name if plugin is Timm else str(shutil.copytree(place / name, tmp_path / "copy"))
    extractor = plugin(model=copied, runtime="torch", **options)
    expected = extractor(pictures())["embedding"]
    (tmp_path / "frozen").mkdir()
    frozen_as, frozen_options = extractor.freeze(tmp_path / "frozen")
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    (tmp_path / "frozen").rename(tmp_path / "moved")
    frozen = PluginEntry(name=frozen_as, options=frozen_options).load("extractors", tmp_path / "moved")
    assert frozen_as == plugin.name
    np.testing.assert_allclose(frozen(pictures())["embedding"], expected, atol=1e-6)


def test_weights_decide_the_fingerprint_and_places_do_not(place: Path, tmp_path: Path) -> None:
    first = Transformers(model=str(place / "vit"))
    moved = Transformers(model=str(shutil.copytree(place / "vit", tmp_path / "moved")))
    assert first.fingerprint() == moved.fingerprint() != Transformers(model=str(place / "clip")).fingerprint()
    with (tmp_path / "moved" / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert first.fingerprint() != Transformers(model=str(tmp_path / "moved")).fingerprint()
    timms = [Timm(model=name, weights=str(place / "vit.pth")).fingerprint() for name in ("test_vit", "test_vit2")]
    assert timms[0] != timms[1]


def hub(cache: Path, folder: Path, name: str, commit: str) -> None:
    """The hub's cache after a download: ``folder`` is the newest revision of a model."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)


@pytest.mark.parametrize(("plugin", "name"), [(Timm, "timm"), (OpenClip, "open_clip"), (Transformers, "vit")])
def test_a_new_revision_at_the_hub_is_another_model(
    plugin: type[Extractor], name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = _models.timm_folder(tmp_path / "made") if plugin is Timm else place / name
    model = "me/model" if plugin is Transformers else "hf-hub:me/model"
    seen = []
    for commit in ("1" * 40, "2" * 40):
        hub(tmp_path, folder, "me/model", commit)
        seen.append(plugin(model=model, runtime="torch").fingerprint())
    assert seen[0] != seen[1] == plugin(model=model, runtime="torch").fingerprint()
    with pytest.raises(ConfigError, match="model: cannot get the model 'me/other'"):
        plugin(model=model.replace("model", "other"), runtime="torch").fingerprint()


# ------------------------------------------------------------------------------------------------------------ bad input


def _timm(**options: Any) -> Callable[[Path], Extractor]:
    return lambda place: Timm(**{"model": "test_vit", "weights": "none", "runtime": "torch", **options})


def _open_clip(**options: Any) -> Callable[[Path], Extractor]:
    def make(place: Path) -> Extractor:
        given = {key: value.format(place) if isinstance(value, str) else value for key, value in options.items()}
        return OpenClip(**{"model": f"{place}/open_clip", "runtime": "torch", **given})

    return make


def _transformers(**options: Any) -> Callable[[Path], Extractor]:
    def make(place: Path) -> Extractor:
        given = {key: value.format(place) if isinstance(value, str) else value for key, value in options.items()}
        return Transformers(**{"model": f"{place}/vit", "runtime": "torch", **given})

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_timm(model="test_vt"), r"model: timm has no model 'test_vt'; did you mean 'test_vit'"),
        (_timm(weights="nothing"), r"weights: 'test_vit' has no weights 'nothing'; there are: r160_in1k"),
        (_timm(model="./nowhere"), r"model: .*nowhere holds no model of timm: there is no config.json"),
        (_timm(weights="./nowhere.pth"), r"weights: no such file|weights: .*nowhere.pth: No such file"),
        (_timm(layer="blocks.99"), r"layer: the model has no module 'blocks.99'; did you mean 'blocks"),
        (
            _open_clip(model="ViT-B-33", weights="openai"),
            r"model: open_clip has no model 'ViT-B-33'; did you mean 'ViT-B",
        ),
        (
            _open_clip(model="ViT-B-32", weights="laion"),
            r"weights: 'ViT-B-32' has no weights 'laion'; there are: openai",
        ),
        (_open_clip(model="ViT-B-33", weights="none"), r"open_clip has no model 'ViT-B-33'; did you mean"),
        (_open_clip(model="{}/vit"), r"vit holds no model of open_clip: open_clip_config.json: No such file"),
        (_open_clip(weights="{}/vit.pth"), r"weights: .*vit.pth: not the weights of '.*open_clip': .*Missing key"),
        (_open_clip(weights="{}/none.pth"), r"weights: .*none.pth: No such file|weights: no such file"),
        (_transformers(model="{}/vitt"), r"model: .*vitt holds no model of transformers: there is no config.json"),
        (_transformers(weights="{}/vit.pth"), r"weights: .*vit.pth: not the weights of '.*vit': \d+ names missing"),
        (_transformers(weights="laion"), r"transformers knows weights by the model's name alone, not 'laion'"),
        (_transformers(embed="image+text", layer="layernorm"), r"embed image\+text compares what the towers end in"),
    ],
)
def test_bad_input_is_one_line(make: Callable[[Path], Extractor], message: str, place: Path) -> None:
    def use() -> None:
        extractor = make(place)
        extractor.load()
        extractor.fingerprint()

    with pytest.raises(ConfigError, match=message) as caught:
        use()
    assert "\n" not in str(caught.value)


def test_what_a_model_of_timm_is_made_with_is_frozen(tmp_path: Path) -> None:
    folder = _models.timm_folder(tmp_path / "model", patch_size=32, embed_dim=32, num_heads=2)
    extractor = Timm(model=str(folder), runtime="torch")
    expected = extractor(pictures())["embedding"]
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    options = extractor._freeze_weights(frozen)
    shutil.rmtree(folder)
    again = PluginEntry(name="timm", options={**options, "runtime": "torch"}).load("extractors", frozen)
    np.testing.assert_allclose(again(pictures())["embedding"], expected, atol=1e-6)


def test_the_tokenizer_is_frozen_with_weights_that_cannot_be_exported(place: Path, tmp_path: Path) -> None:
    """open_clip's own comes with it, that of a SigLIP from the hub does not."""
    folder = shutil.copytree(place / "open_clip", tmp_path / "model")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "google/siglip"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    for file in (place / "siglip").glob("*token*"):
        shutil.copy(file, folder)
    extractor = OpenClip(model=str(folder), embed="image+text", runtime="torch")
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    extractor._freeze_weights(frozen)
    expected = extractor.embed_text(_models.TEXTS)["embedding"]
    shutil.rmtree(folder)
    again = OpenClip(model=str(frozen), embed="image+text", runtime="torch")
    np.testing.assert_allclose(again.embed_text(_models.TEXTS)["embedding"], expected, atol=1e-6)


@pytest.mark.parametrize("model_type", ["vit", "of_its_own"])
def test_code_that_comes_with_a_model_is_not_run(
    model_type: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anybody asked whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = shutil.copytree(place / "vit", tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "code.Own", "AutoModel": "code.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    extractor = Transformers(model=str(folder), runtime="torch")
    if model_type == "vit":  # the library has it without that code
        extractor.load()
    else:
        with pytest.raises(ConfigError, match="holds no model of transformers"):
            extractor.load()
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_not_there(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"model: .*/vitt: No such file or directory; did you mean 'vit'"):
        Transformers(model=str(place / "vitt")).fingerprint()


def test_a_hub_that_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    from cbir_faiss.extractors import _timm, _transformers

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("we could not connect to the hub\nafter all")

    monkeypatch.setattr(_transformers.AutoConfig, "from_pretrained", unreachable)
    monkeypatch.setattr(_transformers, "_downloaded", lambda: ["facebook/dinov2-small", "openai/clip"])
    message = (
        r"model: cannot get the model 'facebook/dinov2-smal'; did you mean 'facebook/dinov2-small'\? "
        r"\(we could not connect to the hub\); a folder is written './facebook/dinov2-smal'$"
    )
    for use in ("load", "fingerprint"):
        with pytest.raises(ConfigError, match=message):
            getattr(Transformers(model="facebook/dinov2-smal", runtime="torch"), use)()
    monkeypatch.setattr(_timm.timm, "create_model", unreachable)
    with pytest.raises(ConfigError, match=r"cannot get the model 'test_vit' \(we could not connect to the hub\): give"):
        Timm(model="test_vit", runtime="torch").load()


def test_weights_of_another_model_in_its_folder(place: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(place / "vit", tmp_path / "mixed"))
    shutil.copyfile(place / "clip" / "model.safetensors", mixed / "model.safetensors")
    with pytest.raises(ConfigError, match=r"weights: the weights of '.*mixed' are of another model: \d+ names missing"):
        Transformers(model=str(mixed), runtime="torch").load()
    timms = _models.timm_folder(tmp_path / "timms")
    others = _models.timm_folder(tmp_path / "others", "test_resnet")
    shutil.copyfile(others / "pytorch_model.bin", timms / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"weights: the weights of '.*timms' are of another model: .*") as caught:
        Timm(model=str(timms), runtime="torch").load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("own", [{"do_rescale": False}, {"do_normalize": True, "rescale_factor": 1 / 127.5}])
def test_a_model_that_sees_in_a_way_of_its_own(own: dict[str, Any], place: Path, tmp_path: Path) -> None:
    """What only its processor does is not passed over: a picture is compared."""
    odd = Path(shutil.copytree(place / "vit", tmp_path / "odd"))
    (file,) = odd.glob("*processor*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    with pytest.raises(ConfigError, match=r"as only its own ViTImageProcessor.* does: give preprocess with resize and"):
        Transformers(model=str(odd), runtime="torch").load()
    said = {**SMALL, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert Transformers(model=str(odd), runtime="torch", preprocess=said)(pictures())["embedding"].shape == (3, 32)


@pytest.mark.parametrize(("plugin", "folder"), [(Timm, _models.timm_folder), (OpenClip, _models.open_clip_folder)])
def test_a_folder_brings_its_own_weights(plugin: Any, folder: Any, tmp_path: Path) -> None:
    made = str(folder(tmp_path / "own"))
    with pytest.raises(ConfigError, match="brings its own weights, not 'openai': DEFAULT, none, or the path of others"):
        plugin(model=made, weights="openai", runtime="torch").load()


def test_a_model_that_does_not_say_how_it_sees(place: Path, tmp_path: Path) -> None:
    silent = Path(shutil.copytree(place / "vit", tmp_path / "silent"))
    for file in silent.glob("*processor*.json"):
        file.unlink()
    with pytest.raises(ConfigError, match="does not say how pictures are prepared: give preprocess with resize and"):
        Transformers(model=str(silent), runtime="torch").load()
    told = Transformers(model=str(silent), runtime="torch", preprocess=SMALL)
    assert told(pictures())["embedding"].shape == (3, 32)
    config = json.loads((place / "open_clip" / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "longest"
    odd = Path(shutil.copytree(place / "open_clip", tmp_path / "odd"))
    (odd / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="wants pictures resized by 'longest': give resize and crop"):
        OpenClip(model=str(odd), runtime="torch").load()


def test_no_text_without_a_tower(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"embed: '.*vit' \(vit\) has no text tower: leave embed out"):
        Transformers(model=str(place / "vit"), embed="image+text", runtime="torch").load()
    for extractor in (Timm(model="test_vit", weights="none"), OpenClip(model=str(place / "open_clip"))):
        with pytest.raises(Unsupported, match=f"extractor '{extractor.name}' has no text tower: .*embed: image"):
            extractor.embed_text(["a red bus"])
    with pytest.raises(ConfigError, match="embed: unknown key"):
        Timm(model="test_vit", embed="image+text")


def test_all_are_registered() -> None:
    assert {"timm", "open_clip", "transformers"} <= set(registry.names("extractors"))


# ---------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_texts_of_transformers(name: str, place: Path) -> None:
    """SigLIP needs its padding; CLIP is given as many tokens as a text has."""
    extractor = Transformers(model=str(place / name), embed="image+text", runtime="torch")
    model = transformers.AutoModel.from_pretrained(place / name).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(place / name)(
        _models.TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = directions(pooled(model.get_text_features(**tokens)))
    np.testing.assert_allclose(extractor.embed_text(_models.TEXTS)["embedding"], expected, atol=1e-5)
    length = extractor._text._session.get_inputs()[0].shape[1]
    assert length == (16 if name == "siglip" else "length")
    assert np.linalg.norm(extractor(pictures())["embedding"], axis=1) == pytest.approx([1, 1, 1])
