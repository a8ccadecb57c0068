"""Extractors: the contract for each, equality with torchvision's own pipeline, and what wrong weights or models get."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cbir_faiss.base import Extractor, registry
from cbir_faiss.base.options import parse_options
from cbir_faiss.errors import BadImage, ConfigError, DimensionMismatch, InputError
from cbir_faiss.extractors import _onnx
from cbir_faiss.extractors.histogram import Histogram
from cbir_faiss.extractors.hog import Hog
from cbir_faiss.extractors.onnx import Onnx
from cbir_faiss.extractors.torchvision import Torchvision
from cbir_faiss.extractors.vectors import Vectors
from cbir_faiss.images.preprocess import Preprocess, spatial_pool
from cbir_faiss.sources.digits import Digits
from cbir_faiss.sources.folder import Folder
from cbir_faiss.testing import ExtractorContract

SHARED = Path(__file__).parents[1].parent / "shared"
SMALL = {"model": "squeezenet1_1", "weights": "none", "preprocess": {"resize": 40, "crop": 32}, "runtime": "torch"}
BY_ONNX = {**SMALL, "runtime": "onnx"}


def noise(*size: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def tiny_model(
    path: Path, *, dtype: str = "float", batch: int | str = "n", layout: str = "nchw", size: Any = 8, channels: int = 3
) -> Path:
    """An ONNX file with the outputs map (its input, as float), token (n, t, c) and vector (n, c), and count (n,)."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    kind = {"float": kinds.FLOAT, "uint8": kinds.UINT8, "float16": kinds.FLOAT16, "int64": kinds.INT64}[dtype]
    shape = [batch, channels, size, size] if layout == "nchw" else [batch, size, size, channels]
    to_nchw = [0, 1, 2, 3] if layout == "nchw" else [0, 3, 1, 2]
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=kinds.FLOAT),
        helper.make_node("Transpose", ["x"], ["map"], perm=to_nchw),
        helper.make_node("Reshape", ["map", "to"], ["channels"]),
        helper.make_node("Transpose", ["channels"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["tokens"], ["vector"], axes=[1], keepdims=0),
        helper.make_node("ReduceMean", ["vector"], ["count"], axes=[1], keepdims=0),
    ]
    outputs = [("vector", 2), ("map", 4), ("tokens", 3), ("count", 1)]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info(name, kinds.FLOAT, [None] * rank) for name, rank in outputs],
        [helper.make_tensor("to", kinds.INT64, [3], [0, channels, -1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


PLAIN = {"resize": 8, "crop": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("onnx") / "tiny.onnx")


class TestHogContract(ExtractorContract):
    plugin = Hog


class TestHistogramContract(ExtractorContract):
    plugin = Histogram


class TestHistogramGridContract(ExtractorContract):
    plugin = Histogram
    options = {"grid": 2, "bins": [8, 3, 3]}


class TestVectorsContract(ExtractorContract):
    plugin = Vectors
    options = {"dim": 16}


class TestTorchContract(ExtractorContract):
    plugin = Torchvision
    options = SMALL


class TestTorchLayersContract(ExtractorContract):
    plugin = Torchvision
    options = {**SMALL, "layer": ["features.5", "classifier"], "pool": "max"}


class TestOnnxRuntimeContract(ExtractorContract):
    plugin = Torchvision
    options = BY_ONNX

    @pytest.fixture(autouse=True)
    def one_cache(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        """The model is exported once for all tests of the contract."""
        monkeypatch.setenv("CBIR_CACHE", str(tmp_path_factory.getbasetemp() / "exported"))


class TestOnnxContract(ExtractorContract):
    plugin = Onnx

    @pytest.fixture(autouse=True)
    def the_model(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "options", {"model": str(tiny), "preprocess": {"crop": 8}})


def test_all_are_registered() -> None:
    assert {"histogram", "hog", "onnx", "torchvision", "vectors"} <= set(registry.names("extractors"))


# -------------------------------------------------------------------------------------------------------- preprocessing


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.one_of(st.none(), st.integers(1, 60), st.tuples(st.integers(1, 60), st.integers(1, 60))),
    crop=st.one_of(st.integers(1, 60), st.tuples(st.integers(1, 60), st.integers(1, 60))),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_preprocessing_is_torchvisions(width: int, height: int, resize: Any, crop: Any, interpolation: Any) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = noise(height, width)
    steps = [transforms.CenterCrop(crop)]
    if resize is not None:
        steps.insert(0, transforms.Resize(resize, transforms.InterpolationMode(interpolation)))
    expected = np.asarray(transforms.Compose(steps)(image))
    got = Preprocess(resize=resize, crop=crop, interpolation=interpolation).pixels(image)
    assert np.array_equal(got, expected)


def test_normalising_is_torchvisions() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    how = Preprocess()
    image = noise(30, 30)
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(how.mean, how.std)])
    got = how.normalise(np.asarray(image)[None])[0]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.transpose(2, 0, 1), steps(image).numpy(), atol=2e-6)


def test_an_endless_strip_is_a_bad_image() -> None:
    with pytest.raises(BadImage, match="1 x 60000 pixels are too long and thin"):
        Preprocess().pixels(Image.new("RGB", (1, 60_000)))


def test_preprocessing_options() -> None:
    assert Preprocess(resize=(3, 4), crop=None).size == (3, 4)
    for wrong, message in (
        ({"crop": None}, "images would differ in shape"),
        ({"crop": 0}, r"crop: must be a number of pixels from 1 to 8192, or \[height, width\]"),
        ({"resize": [1, 2, 3]}, "resize: must be"),
        ({"resize": True}, "resize: must be"),
        ({"std": [1, 0, 1]}, "std must be above 0"),
        ({"interpolation": "cubic"}, "interpolation: must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_options(Preprocess, wrong)


def test_pooling() -> None:
    x = np.random.default_rng(0).random((2, 3, 4, 5))
    tokens = x.reshape(2, 3, 20).transpose(0, 2, 1)
    for how in ("avg", "max", "gem"):
        maps = spatial_pool(x, how)
        assert (maps.shape, maps.dtype) == ((2, 3), np.float32)
        np.testing.assert_allclose(spatial_pool(tokens, how), maps, rtol=1e-6)
    np.testing.assert_allclose(spatial_pool(x, "gem")[1, 2], np.mean(x[1, 2] ** 3) ** (1 / 3), rtol=1e-6)
    assert spatial_pool(x, "flatten").shape == (2, 60)
    assert np.array_equal(spatial_pool(x[:, :, 0, 0], "max"), x[:, :, 0, 0].astype(np.float32))


# ------------------------------------------------------------------------------------------------------------ classical


def reference_hog(image: np.ndarray, cell: int, orientations: int) -> np.ndarray:
    """The cells of one image by plain loops, each vote shared by hand."""
    x = np.sqrt(image / 255.0)
    h, w = x.shape[:2]
    rows, columns = h // cell, w // cell
    out = np.zeros((rows, columns, orientations))
    for i in range(h):
        for j in range(w):
            gy = x[i + 1, j] - x[i - 1, j] if 0 < i < h - 1 else np.zeros(3)
            gx = x[i, j + 1] - x[i, j - 1] if 0 < j < w - 1 else np.zeros(3)
            c = int(np.argmax(gy**2 + gx**2))
            angle = np.arctan2(gy[c], gx[c]) % np.pi
            position = angle / np.pi * orientations - 0.5
            y, z = (i + 0.5) / cell - 0.5, (j + 0.5) / cell - 0.5
            for r in range(rows):
                for s in range(columns):
                    near = max(0, 1 - abs(y - r)) * max(0, 1 - abs(z - s))
                    low = int(np.floor(position))
                    for o, share in ((low, low + 1 - position), (low + 1, position - low)):
                        out[r, s, o % orientations] += near * share * np.hypot(gy[c], gx[c])
    return out


def test_hog_against_plain_loops() -> None:
    from cbir_faiss.extractors.hog import _cell_histograms, _l2_hys

    images = np.stack([np.asarray(noise(16, 16, seed=seed)) for seed in range(2)])
    cells = _cell_histograms(images, 4, 9)
    for image, got in zip(images, cells, strict=True):
        np.testing.assert_allclose(got, reference_hog(image, 4, 9), rtol=1e-3, atol=1e-3)
    block = np.moveaxis(cells[0, 1:3, 2:4], -1, 0).ravel()
    block = np.minimum(block / np.linalg.norm(block), 0.2)
    got = _l2_hys(cells, 2).reshape(2, 3, 3, -1)[0, 1, 2]
    np.testing.assert_allclose(got, block / np.linalg.norm(block), atol=1e-4)


def test_hog_of_nothing_is_nothing() -> None:
    assert not Hog()([Image.new("RGB", (50, 50), "grey")])["embedding"].any()


def test_hog_options() -> None:
    assert Hog(size=32, cell=8, block=1, orientations=6).outputs == {"embedding": (4 * 4 * 6, "float32")}
    with pytest.raises(ConfigError, match="multiple of cell"):
        Hog(size=60)
    with pytest.raises(ConfigError, match="a block of 3 cells is larger than the 2 there are"):
        Hog(size=16, block=3)


def nearest_agrees(extractor: Extractor, source: Any, step: int) -> float:
    """Share of items whose nearest other item has their label."""
    rows = range(0, len(source.items()), step)
    x = np.concatenate([extractor([source.read(row)])["embedding"] for row in rows])
    labels = np.array([source.items()[row].labels[0] for row in rows])
    distances = ((x[:, None] - x[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(distances, np.inf)
    return float((labels[distances.argmin(axis=1)] == labels).mean())


def test_hog_knows_digits() -> None:
    assert nearest_agrees(Hog(size=32), Digits(), 6) > 0.95


def test_histogram() -> None:
    image = Image.new("RGB", (10, 10), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 5, 5))
    x = Histogram()([image])["embedding"][0]
    assert sorted(x[x > 0].tolist()) == pytest.approx([0.25**0.5, 0.75**0.5])
    grid = Histogram(grid=2)([image])["embedding"][0].reshape(4, -1)
    assert ((grid > 0).sum(axis=1) == 1).all()
    assert (grid**2).sum(axis=1) == pytest.approx(1)
    assert (grid[0] != grid[1]).any()
    assert (grid[1] == grid[2]).all()


def test_histogram_of_large_and_tiny_images_is_of_the_colours_alone() -> None:
    small, large = (Histogram()([Image.new("RGB", size, (9, 200, 30))])["embedding"] for size in ((1, 1), (900, 700)))
    assert np.array_equal(small, large)
    assert np.isfinite(Histogram(grid=4)([Image.new("RGB", (2, 2))])["embedding"]).all()


def test_vectors() -> None:
    extractor = Vectors()
    with pytest.raises(InputError, match="not known before the first vector"):
        _ = extractor.outputs
    assert extractor.embeddings == ("embedding",)
    assert extractor([np.arange(3)])["embedding"].tolist() == [[0, 1, 2]]
    assert Vectors(dim=3).fingerprint() == extractor.fingerprint()
    with pytest.raises(DimensionMismatch, match="3 dimensions, got 4"):
        extractor.prepare(np.zeros(4))
    for wrong in (np.zeros((2, 3)), np.array(["a"]), noise(3, 3)):
        with pytest.raises(InputError, match="takes one vector"):
            extractor.prepare(wrong)


# -------------------------------------------------------------------------------------------------------------- onnx


def test_onnx_outputs_layouts_and_types(tmp_path: Path) -> None:
    image = noise(8, 8)
    pixels = np.asarray(image) / np.float32(255)
    mean = pixels.mean(axis=(0, 1))
    for dtype in ("float", "float16"):
        for layout in ("nchw", "nhwc"):
            model = tiny_model(tmp_path / "x.onnx", dtype=dtype, layout=layout)
            extractor = Onnx(model=str(model), preprocess={**PLAIN, "layout": layout})
            assert extractor.outputs == {"embedding": (3, "float32")}
            np.testing.assert_allclose(extractor([image])["embedding"][0], mean, rtol=2e-3)
    raw = tiny_model(tmp_path / "raw.onnx", dtype="uint8", layout="nhwc")
    extractor = Onnx(model=str(raw), preprocess={"crop": 8, "resize": 8, "layout": "nhwc"})
    np.testing.assert_allclose(extractor([image])["embedding"][0], mean * 255, rtol=1e-5)


def test_onnx_several_outputs(tiny: Path) -> None:
    image = noise(8, 8)
    extractor = Onnx(model=str(tiny), outputs=["tokens", "map"], pool="max", preprocess=PLAIN)
    assert extractor.embeddings == ("tokens", "map")
    columns = extractor([image])
    expected = np.asarray(image).max(axis=(0, 1)) / 255
    for column in columns.values():
        np.testing.assert_allclose(column[0], expected, rtol=1e-5)
    flat = Onnx(model=str(tiny), outputs=["map"], pool="flatten", preprocess=PLAIN)
    assert flat.outputs == {"embedding": (192, "float32")}


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_onnx_fixed_batch(tmp_path: Path, count: int) -> None:
    images = [noise(8, 8, seed=seed) for seed in range(count)]
    fixed = Onnx(model=str(tiny_model(tmp_path / "four.onnx", batch=4)), preprocess=PLAIN)
    free = Onnx(model=str(tiny_model(tmp_path / "free.onnx")), preprocess=PLAIN, batch_size=2)
    np.testing.assert_allclose(fixed(images)["embedding"], free(images)["embedding"], rtol=1e-6)


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 12, 29])
def test_onnx_shares_a_batch_among_the_cores(
    count: int, replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image gets its own row, whoever ran it; also where the file is gone since it was loaded."""
    monkeypatch.setattr(_onnx.threads, "available", lambda: 3)
    monkeypatch.setattr(_onnx, "_PART", 2)
    images = [noise(8, 8, seed=seed) for seed in range(count)]
    extractor = Onnx(model=str(tiny_model(tmp_path / "x.onnx")), preprocess=PLAIN, batch_size=20)
    extractor.load()
    if replaced:
        (tmp_path / "x.onnx").unlink()
    expected = [np.asarray(image).mean(axis=(0, 1)) / 255 for image in images]
    np.testing.assert_allclose(extractor(images)["embedding"], expected, rtol=1e-5)
    with pytest.raises(InputError, match=r"x\.onnx: ") as caught:
        extractor.extract(np.zeros((count, 9, 9, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_onnx_scale(tiny: Path) -> None:
    image = noise(8, 8)
    extractor = Onnx(model=str(tiny), preprocess={**PLAIN, "scale": 1.0})
    np.testing.assert_allclose(extractor([image])["embedding"][0], np.asarray(image).mean(axis=(0, 1)), rtol=1e-5)


def test_onnx_fingerprint_is_of_the_bytes(tmp_path: Path) -> None:
    a, b = tiny_model(tmp_path / "a.onnx"), tiny_model(tmp_path / "b.onnx")
    assert Onnx(model=str(a)).fingerprint() == Onnx(model=str(b), batch_size=3).fingerprint()
    assert Onnx(model=str(a)).fingerprint() != Onnx(model=str(a), pool="max").fingerprint()
    before = Onnx(model=str(a)).fingerprint()
    (tmp_path / "a.onnx.data").write_bytes(b"weights stored beside the model")
    assert Onnx(model=str(a)).fingerprint() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gone.onnx"}, "no such file: .*gone.onnx"),
        ({"model": "text.onnx"}, "not a model that ONNX Runtime can load"),
        ({"outputs": ["nothing"]}, "outputs: the model has no 'nothing', but vector, map"),
        ({"input": "nothing"}, "input: the model has no 'nothing', but image"),
        ({"outputs": ["count"], "preprocess": {"crop": 8}}, r"outputs: 'count' is float32 \(1,\), not vectors"),
        ({"preprocess": {"crop": 9}}, "does not take images prepared like this"),
        ({"preprocess": {"crop": 8, "layout": "nhwc"}}, "does not take images prepared like this"),
        ({"model": "ints.onnx"}, r"input 'image' takes tensor\(int64\), not a batch of images"),
        ({"device": "cuda"}, "device: this ONNX Runtime has no CUDAExecutionProvider"),
    ],
)
def test_onnx_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    if "device" in options and "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    tiny_model(tmp_path / "model.onnx")
    tiny_model(tmp_path / "ints.onnx", dtype="int64")
    (tmp_path / "text.onnx").write_text("not a model")
    found = parse_options(Onnx.Options, {"model": "model.onnx", **options}, folder=str(tmp_path))
    extractor = Onnx(**found.model_dump(mode="json"))
    with pytest.raises(ConfigError, match=message) as caught:
        extractor([noise(8, 8)])
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------- torchvision


def torchvisions(options: Mapping[str, Any], images: list[Image.Image], weights: Any = None) -> np.ndarray:
    """features, averaged: torchvision's own pipeline."""
    torch, models = pytest.importorskip("torch"), pytest.importorskip("torchvision.models")
    transforms = pytest.importorskip("torchvision.transforms")
    how = {"resize": 256, "crop": 224, **options.get("preprocess", {})}
    steps = [transforms.Resize(how["resize"]), transforms.CenterCrop(how["crop"]), transforms.ToTensor()]
    chain = transforms.Compose([*steps, transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        model = models.get_model(options["model"], weights=None).eval()
        if weights is not None:
            model.load_state_dict(torch.load(weights, weights_only=True))
        return model.features(torch.stack([chain(image) for image in images])).mean((2, 3)).numpy()


def test_both_runtimes_equal_torchvision() -> None:
    images = [noise(50, 70, seed=seed) for seed in range(5)]
    expected = torchvisions(SMALL, images)
    through_torch = Torchvision(**SMALL, batch_size=2)
    through_onnx = Torchvision(**BY_ONNX, batch_size=3)
    for extractor in (through_torch, through_onnx):
        assert extractor.outputs == {"embedding": (512, "float32")}
        assert cosines(extractor(images)["embedding"], expected).min() > 0.9999
    assert through_torch.fingerprint() != Torchvision(**SMALL, seed=1).fingerprint()
    assert through_torch.fingerprint() == Torchvision(**SMALL, batch_size=9).fingerprint()


def test_the_export_is_kept_and_torch_is_not_imported_again(own_cache: Path, tmp_path: Path) -> None:
    first = Torchvision(**BY_ONNX)
    expected = first([noise(40, 40)])["embedding"]
    (file,) = (own_cache / "onnx").iterdir()
    assert str(Path(__file__).parents[1]).encode() not in file.read_bytes()
    noise(40, 40).save(tmp_path / "x.png")
    code = (
        "import sys, numpy as np\nfrom cbir_faiss.extractors.torchvision import Torchvision\n"
        "from cbir_faiss.images.reading import open_image\n"
        f"x = Torchvision(**{BY_ONNX!r})([open_image({str(tmp_path / 'x.png')!r})])['embedding']\n"
        f"np.save({str(tmp_path / 'x.npy')!r}, x); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected)
    # A damaged export is made again.
    file.write_bytes(file.read_bytes()[:1000])
    again = Torchvision(**BY_ONNX)([noise(40, 40)])["embedding"]
    np.testing.assert_allclose(again, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "layer", "pool", "width"),
    [
        ("mobilenet_v3_small", None, "avg", 576),
        ("resnet18", None, "avg", 512),
        ("resnet18", "layer1", "gem", 64),
        ("resnet18", "fc", "max", 1000),
        ("squeezenet1_1", "features.0", "flatten", 64 * 15 * 15),
        ("shufflenet_v2_x0_5", None, "avg", 1024),
        ("regnet_y_400mf", None, "avg", 440),
    ],
)
def test_layers(model: str, layer: str | None, pool: str, width: int) -> None:
    extractor = Torchvision(**{**SMALL, "model": model}, layer=layer, pool=pool)
    assert extractor.outputs == {"embedding": (width, "float32")}
    assert np.isfinite(extractor([noise(40, 40)])["embedding"]).all()


def test_several_layers_are_what_each_is_alone() -> None:
    image = noise(40, 40)
    both = Torchvision(**SMALL, layer=["features.3", "features"])
    assert both.embeddings == ("features.3", "features")
    for layer, column in both([image]).items():
        alone = Torchvision(**SMALL, layer=[layer])
        assert alone.embeddings == ("embedding",)
        np.testing.assert_allclose(column, alone([image])["embedding"], rtol=1e-5)


def small_member(family: str) -> Any:
    """A network of torchvision's own class for ``family``, a hundredth of the size of those that it names."""
    models = pytest.importorskip("torchvision.models")
    if family == "vision_transformer":
        sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
        return models.VisionTransformer(image_size=64, patch_size=16, **sizes)
    if family == "swin_transformer":
        return models.SwinTransformer([4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 2], window_size=[7, 7])
    if family == "convnext":
        block = models.convnext.CNBlockConfig
        return models.ConvNeXt([block(24, 48, 1), block(48, None, 1)])
    return models.GoogLeNet(init_weights=False)  # the initialisation is what takes its time


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layer", "width"),
    [
        ("vision_transformer", None, 32),
        ("swin_transformer", "features.1", 24),
        ("convnext", None, 48),
        ("googlenet", None, 1024),
    ],
)
def test_other_families(family: str, layer: str | None, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, channels-last maps, auxiliary heads: both runtimes agree."""
    builders = pytest.importorskip("torchvision.models._api").BUILTIN_MODELS
    monkeypatch.setitem(builders, f"small_{family}", lambda weights, **_: small_member(family))
    options = {"model": f"small_{family}", "weights": "none", "layer": layer, "preprocess": {"crop": 64}}
    images = [noise(64, 64, seed=seed) for seed in range(3)]
    x, y = (Torchvision(**options, runtime=runtime)(images)["embedding"] for runtime in ("torch", "onnx"))
    assert x.shape == (3, width)
    assert cosines(x, y).min() > 0.9999


def state_file(path: Path, model: str = "squeezenet1_1", half: bool = False, **options: Any) -> Path:
    torch, models = pytest.importorskip("torch"), pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = models.get_model(model, weights=None, **options).state_dict()
    torch.save({key: value.half() if half else value for key, value in state.items()}, path)
    return path


def test_weights_from_a_file(tmp_path: Path) -> None:
    image = noise(40, 40)
    expected = Torchvision(**SMALL)([image])["embedding"]
    file = state_file(tmp_path / "full.pth")
    options = parse_options(Torchvision.Options, {**SMALL, "weights": "full.pth"}, folder=str(tmp_path))
    full = Torchvision(**options.model_dump(mode="json"))
    assert np.array_equal(full([image])["embedding"], expected)
    half = Torchvision(**{**SMALL, "weights": str(state_file(tmp_path / "half.pth", half=True))})
    assert cosines(half([image])["embedding"], expected).min() > 0.9999
    assert half.fingerprint() != full.fingerprint()
    file.rename(tmp_path / "moved.pth")
    assert Torchvision(**{**SMALL, "weights": str(tmp_path / "moved.pth")}).fingerprint() == full.fingerprint()
    # A classifier of other classes belongs to the same model.
    few = state_file(tmp_path / "few.pth", num_classes=7)
    fine_tuned = Torchvision(**{**SMALL, "weights": str(few)}, layer="classifier")
    assert fine_tuned.outputs == {"embedding": (7, "float32")}


def test_named_weights_bring_their_preprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were downloaded before are used without a network."""
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    models = pytest.importorskip("torchvision.models")
    url = models.get_model_weights("efficientnet_b1")["IMAGENET1K_V2"].url
    state_file(tmp_path / "hub/checkpoints" / Path(url).name, "efficientnet_b1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    extractor = Torchvision(model="efficientnet_b1", preprocess={"mean": [0, 0, 0]}, runtime="torch")
    how = extractor._loaded().preprocess
    assert (how.resize, how.crop, how.mean) == (255, 240, (0.0, 0.0, 0.0))
    assert extractor.prepare(noise(300, 300)).shape == (240, 240, 3)
    assert extractor.outputs == {"embedding": (1280, "float32")}


def test_no_network_for_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(
        ConfigError, match=r"weights: cannot get 'DEFAULT' of 'resnet18'.*give `weights: PATH`"
    ) as caught:
        _ = Torchvision(model="resnet18").outputs
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert capfd.readouterr().out == ""


@pytest.fixture(scope="module")
def bad_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("weights")
    good = torch.load(state_file(folder / "good.pth"), weights_only=True)
    state_file(folder / "other.pth", "shufflenet_v2_x0_5")
    torch.save({**good, "features.0.bias": torch.zeros(3)}, folder / "shape.pth")
    torch.save({**good, "more": torch.zeros(1000)}, folder / "extra.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save(Path("an object"), folder / "pickle.pth")
    (folder / "text.pth").write_text("not weights")
    return folder


def use(options: Mapping[str, Any], folder: Path) -> None:
    """All that is done with an extractor before the first image."""
    extractor = Torchvision(**parse_options(Torchvision.Options, options, folder=str(folder)).model_dump(mode="json"))
    extractor.fingerprint()
    _ = extractor.outputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet81"}, "model: torchvision has no model 'resnet81'; did you mean 'resnet18'"),
        ({"weights": "IMAGENET9"}, "weights: 'squeezenet1_1' has no weights 'IMAGENET9'; there are: IMAGENET1K_V1"),
        ({"weights": "gone.pth"}, "weights: .*gone.pth: No such file"),
        ({"weights": "other.pth"}, r"weights: .*other.pth: not the weights of 'squeezenet1_1': \d+ names missing"),
        ({"weights": "shape.pth"}, r"'features.0.bias' is \(3,\), not \(64,\)"),
        ({"weights": "extra.pth"}, "0 names missing, 1 unknown; 'more' is not in the model"),
        ({"weights": "text.pth"}, "text.pth: not a state dict that can be loaded safely"),
        ({"weights": "pickle.pth"}, "pickle.pth: not a state dict that can be loaded safely"),
        ({"weights": "list.pth"}, "list.pth: not a state dict, a mapping"),
        ({"layer": "featuers"}, "layer: the model has no 'featuers'; there are: …, "),
        ({"preprocess": {"rezise": 3}}, "preprocess.rezise: unknown key; did you mean 'resize'?"),
        ({"preprocess": {"crop": None}}, "preprocess: images would differ in shape"),
        ({"layer": []}, "at least one layer"),
        ({"layer": ["a", "a"]}, "none twice"),
        ({"runtime": "onnx", "device": "mps"}, "use runtime torch for mps"),
        ({"model": "raft_small"}, "model: this is not a model of single images"),
        ({"model": "r3d_18"}, "model: it does not take images of 32 x 32"),
        ({"layer": "features.0", "preprocess": {"crop": 1}}, "model: it does not take images of 1 x 1"),
    ],
)
def test_torchvision_errors(bad_weights: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        use({**SMALL, **options}, bad_weights)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there() -> None:
    torch = pytest.importorskip("torch")
    absent = [name for name, there in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if not there.is_available()]
    for name in absent:
        with pytest.raises(ConfigError, match=f"device: torch sees no {name} device"):
            _ = Torchvision(**SMALL, device=name).outputs


def test_on_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = [noise(40, 40, seed=seed) for seed in range(3)]
    x, y = (Torchvision(**SMALL, device=device)(images)["embedding"] for device in ("cpu", "cuda"))
    assert cosines(x, y).min() > 0.9999


def test_batch_norm_and_threads_leave_no_mark(tmp_path: Path) -> None:
    """Two extractors of the same seed agree, whatever was drawn in between, and the global generator is left alone."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = Torchvision(**{**SMALL, "model": "mobilenet_v3_small"})([noise(40, 40)])["embedding"]
    assert torch.rand(1) == expected
    second = Torchvision(**{**SMALL, "model": "mobilenet_v3_small"})([noise(40, 40)])["embedding"]
    assert np.array_equal(first, second)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="../shared/weights is not here")
def test_real_weights_equal_torchvision(tmp_path: Path) -> None:
    weights = SHARED / "weights/mobilenet_v2-imagenet-fp16.pth"
    source = Folder(root=str(SHARED / "datasets/caltech101"))
    images = [source.read(row) for row in range(0, len(source.items()), 400)]
    expected = torchvisions({"model": "mobilenet_v2"}, images, weights)
    assert expected.shape == (10, 1280)
    for runtime in ("torch", "onnx"):
        extractor = Torchvision(model="mobilenet_v2", weights=str(weights), layer="features", runtime=runtime)
        assert cosines(extractor(images)["embedding"], expected).min() > 0.9999
        (folder := tmp_path / runtime).mkdir()
        name, options = extractor.freeze(folder)
        frozen = Onnx(**parse_options(Onnx.Options, options, folder=str(folder)).model_dump(mode="json"))
        assert name == "onnx"
        assert cosines(frozen(images)["embedding"], expected).min() > 0.9999
