"""Networks in int8 and in bfloat16: near float32 or refused, told apart from it, and frozen into collections."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from cbir_faiss.base import registry  # noqa: E402
from cbir_faiss.collection import Collection  # noqa: E402
from cbir_faiss.config import parse_config  # noqa: E402
from cbir_faiss.errors import ConfigError  # noqa: E402
from cbir_faiss.extractors import _onnx, _precision  # noqa: E402
from cbir_faiss.extractors.joined import Joined  # noqa: E402
from cbir_faiss.extractors.onnx import Onnx  # noqa: E402
from cbir_faiss.extractors.torchvision import Torchvision  # noqa: E402
from cbir_faiss.extractors.trained import Trained  # noqa: E402
from cbir_faiss.images.reading import open_image  # noqa: E402
from cbir_faiss.nets.model import new_card, save_model  # noqa: E402
from cbir_faiss.storage.manifest import PluginEntry  # noqa: E402
from cbir_faiss.testing import ExtractorContract  # noqa: E402

SHARED = Path(__file__).parents[1].parent / "shared"
Maker = Callable[..., Trained]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `cbir train` leaves, with random weights."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    save_model(*new_card(registry.make("networks", "plain", width=4, features=16), 12, ("a", "b")), folder)
    return folder


@pytest.fixture
def make(folder: Path) -> Maker:
    return lambda **options: Trained(path=str(folder), **options)


@pytest.fixture
def exported(own_cache: Path, tmp_path_factory: pytest.TempPathFactory, make: Maker) -> None:
    """The network in float32, exported once for all tests into the cache of each."""
    kept = tmp_path_factory.getbasetemp() / "exported-for-precision"
    if not kept.is_dir():
        make(runtime="onnx").load()
        shutil.copytree(own_cache / "onnx", kept)
    shutil.copytree(kept, own_cache / "onnx", dirs_exist_ok=True)


@pytest.fixture
def int8(make: Maker, pictures: Path, exported: None) -> Maker:
    return lambda **options: make(**{"precision": "int8", "calibration": str(pictures), **options})


def noise(*size: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def line(caught: pytest.ExceptionInfo[ConfigError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.usefixtures("exported")
class TestInt8Contract(ExtractorContract):
    plugin = Trained

    @pytest.fixture(autouse=True)
    def the_folder(self, folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options = {"path": str(folder), "precision": "int8", "calibration": str(pictures)}
        monkeypatch.setattr(type(self), "options", options)


# -------------------------------------------------------------------------------------------------------------- int8


def test_int8_is_near_float32(make: Maker, int8: Maker, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = [open_image(path) for path in sorted(pictures.rglob("*.png"))]
    extractor = int8()
    assert extractor.options.runtime == "onnx"
    got, exact = extractor(images), make()(images)
    assert list(got) == list(exact)
    assert cosines(got["embedding"], exact["embedding"]).mean() >= 0.99
    assert not np.array_equal(got["embedding"], exact["embedding"])
    assert "".join(capfd.readouterr()) == ""


def test_the_layers_are_in_int8(int8: Maker, tmp_path: Path) -> None:
    int8().freeze(tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    whole = [node for node in layers if any(name.endswith("_DequantizeLinear_Output") for name in node.input)]
    assert len(whole) >= len(layers) - 2  # the code and the classes are what it ends in
    assert not any("embedding" in node.output[0] for node in graph.node if node.op_type == "DequantizeLinear")


def test_it_is_quantized_once(int8: Maker, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = int8()([noise(40, 30)])
    assert len(list((own_cache / "onnx").iterdir())) == 2
    monkeypatch.setattr(_precision, "quantize", lambda *given: pytest.fail("quantized again"))
    assert np.array_equal(int8(batch_size=2)([noise(40, 30)])["embedding"], expected["embedding"])


def test_the_same_pictures_give_the_same_model(int8: Maker, own_cache: Path) -> None:
    """So that two processes that quantize at once keep one file."""
    int8().load()
    before = sorted(path.name for path in (own_cache / "onnx").iterdir())
    (made,) = (path for path in (own_cache / "onnx").iterdir() if path.stat().st_mtime_ns == _latest(own_cache))
    made.unlink()
    int8().load()
    assert sorted(path.name for path in (own_cache / "onnx").iterdir()) == before


def _latest(cache: Path) -> int:
    return max(path.stat().st_mtime_ns for path in (cache / "onnx").iterdir())


def test_precisions_are_told_apart(make: Maker, int8: Maker, pictures: Path, tmp_path: Path) -> None:
    extractors = [make(), int8(), make(precision="bfloat16")]
    assert len({extractor.fingerprint() for extractor in extractors}) == 3
    assert len({extractor.cache_key() for extractor in extractors[:2]}) == 2
    pictures.rename(tmp_path / "moved")
    moved = make(precision="int8", calibration=str(tmp_path / "moved"))
    assert moved.fingerprint() == extractors[1].fingerprint()
    noise(30, 30).save(tmp_path / "moved" / "0.png")
    changed = make(precision="int8", calibration=str(tmp_path / "moved"))
    assert changed.fingerprint() != extractors[1].fingerprint()


def test_float32_goes_by_the_name_it_had_before_there_were_others(make: Maker) -> None:
    extractor = make()
    options = {"runtime": "torch", "device": "cpu", "output": None}
    text = json.dumps(["trained", options, extractor._weights_digest()], sort_keys=True)
    assert extractor.fingerprint() == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.usefixtures("exported")
def test_a_collection_keeps_the_model(
    folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = {"name": "trained", "path": str(folder), "precision": "int8", "calibration": "pictures"}
    document = {
        "source": {"name": "folder", "root": "pictures"},
        "extractors": [extractor],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat", "metric": "cosine"}],
    }
    with Collection.build(parse_config(document, folder=tmp_path), tmp_path / "x.cbir") as collection:
        assert collection.info()["extractor"]["options"]["made_by"] == "trained by onnx in int8"
    pictures.rename(tmp_path / "other")
    monkeypatch.setitem(sys.modules, "torch", None)
    noise(40, 30).save(tmp_path / "new.png")
    with Collection.open(tmp_path / "x.cbir") as collection:
        collection.add([tmp_path / "new.png"])
        (hit,) = collection.search([tmp_path / "new.png"], 1)
        assert hit[0].distance == pytest.approx(0, abs=1e-5)


def test_a_part_of_several(folder: Path, int8: Maker, pictures: Path, tmp_path: Path) -> None:
    part = {"name": "trained", "path": str(folder), "precision": "int8", "calibration": str(pictures)}
    joined = Joined(of=[part, {"name": "hog"}])
    expected = int8()([noise(40, 30)])["embedding"]
    assert np.array_equal(joined([noise(40, 30)])["embedding"], expected)
    name, options = joined.freeze(tmp_path)
    frozen = PluginEntry(name=name, options=options).load("extractors", tmp_path)
    assert np.array_equal(frozen([noise(40, 30)])["embedding"], expected)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "int8"}, "needs calibration, a folder"),
        ({"calibration": "x"}, "calibration is for precision int8 only"),
        ({"precision": "bfloat16", "calibration": "x"}, "calibration is for precision int8 only"),
        ({"precision": "int8", "calibration": "x", "runtime": "torch"}, "run by ONNX Runtime on a CPU: leave runtime"),
        ({"precision": "int8", "calibration": "x", "device": "cuda"}, "run by ONNX Runtime on a CPU: leave runtime"),
        ({"precision": "int8", "calibration": "x", "device": "mps"}, "run by ONNX Runtime on a CPU: leave runtime"),
        ({"precision": "bfloat16", "runtime": "onnx"}, "bfloat16 is run by torch: leave runtime out"),
        ({"precision": "int4"}, "precision: must be 'float32', 'int8' or 'bfloat16'"),
        ({"precision": "int8", "calibration": "s3://photos"}, "calibration: 's3:/photos' is an address"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], reason: str, make: Maker) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**options)
    assert reason in line(caught)


@pytest.mark.usefixtures("exported")
def test_a_folder_without_pictures(make: Maker, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "few").mkdir()
    noise(40, 30).save(tmp_path / "few" / "one.png")
    (tmp_path / "few" / "text.jpg").write_text("no picture")
    (tmp_path / "few" / "gone.png").symlink_to(tmp_path / "nothing.png")
    for name, reason in {
        "missing": "calibration: source 'folder': no such folder: ",
        "few/one.png": "calibration: source 'folder': not a folder: ",
        "empty": "calibration: source 'folder' is empty: no image file",
        "few": "calibration: .*few has too few pictures that can be read: int8 needs two",
    }.items():
        with pytest.raises(ConfigError, match=reason) as caught:
            make(precision="int8", calibration=str(tmp_path / name)).load()
        line(caught)


def test_pictures_are_drawn_evenly(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}.png").write_bytes(b"%d" % number)
    drawn = _precision.Pictures(tmp_path)._drawn
    assert len(drawn) == 128
    assert (drawn[0], drawn[-1]) == (0, 299)
    assert set(np.diff(drawn)) == {2, 3}


def test_pictures_that_cannot_be_read_are_passed_over(int8: Maker, pictures: Path) -> None:
    (pictures / "0.jpg").write_text("no picture")
    (pictures / "1.jpg").symlink_to(pictures / "nothing.jpg")
    int8().load()


def test_what_is_far_from_float32_is_refused(int8: Maker, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_precision, "_CLOSE", 1.0)
    for _ in range(2):
        with pytest.raises(ConfigError, match="precision: int8 gives 'embedding' a mean cosine of ") as caught:
            int8().load()
        assert line(caught).endswith("to float32, below 1.0: use precision float32")
    assert len(list((own_cache / "onnx").iterdir())) == 1


def test_pictures_that_decide_take_no_part_in_calibration(int8: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    quantize, run = _precision._quantize, _onnx.Model.run

    def noted(model: _onnx.Model, x: Any, batch_size: int) -> Any:
        seen.append({pixels.tobytes() for pixels in x})
        return run(model, x, batch_size)

    def calibrated(network: Path, feed: str, pixels: Any, file: Path) -> None:
        seen.append({one.tobytes() for one in pixels})
        quantize(network, feed, pixels, file)

    monkeypatch.setattr(_precision, "_quantize", calibrated)
    monkeypatch.setattr(_onnx.Model, "run", noted)
    int8().load()
    calibrating, deciding, again, _ = seen  # the last is blank, to know the widths
    assert (len(calibrating), len(deciding)) == (27, 9)
    assert deciding == again
    assert not calibrating & deciding


def test_what_cannot_be_quantized(int8: Maker, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("no such\noperation")

    monkeypatch.setattr(_precision, "_quantize", fail)
    with pytest.raises(ConfigError, match=r"precision: the network cannot be quantized \(no such") as caught:
        int8().load()
    assert line(caught).endswith(": use precision float32")
    monkeypatch.setattr(_precision, "_quantize", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ConfigError, match="cannot keep an exported network"):
        int8().load()
    assert len(list((own_cache / "onnx").iterdir())) == 1


def test_cosines_of_rows_without_a_direction() -> None:
    rows, zeros = {"x": np.ones((2, 3), np.float32)}, {"x": np.zeros((2, 3), np.float32)}
    _precision.check_close(rows, {"x": 2 * rows["x"]}, ["x"], "int8")
    for got in (zeros, {"x": np.full((2, 3), np.nan, np.float32)}, {"x": -rows["x"]}):
        with pytest.raises(ConfigError, match="int8 gives 'x' a mean cosine of"):
            _precision.check_close(rows, got, ["x"], "int8")


@pytest.mark.slow
@pytest.mark.shared
def test_a_published_network_is_near_float32() -> None:
    weights, photos = SHARED / "weights/squeezenet1_1-imagenet-fp16.pth", SHARED / "datasets/imagenet1k-samples"
    if not weights.is_file() or not photos.is_dir():
        pytest.skip("needs weights and imagenet1k-samples in ../shared")
    options = {"model": "squeezenet1_1", "weights": str(weights), "runtime": "onnx"}
    images = [open_image(path, min_side=768) for path in sorted(photos.glob("*.jpg"))[3::40]]
    got = Torchvision(**options, precision="int8", calibration=str(photos))(images)["embedding"]
    assert cosines(got, Torchvision(**options)(images)["embedding"]).mean() >= 0.99


# ---------------------------------------------------------------------------------------- integers in ONNX Runtime


def conv(file: Path, channels: int, uses: int = 1) -> Path:
    """A convolution of 1 x 1 by weights of 127, of ``channels`` values from 0 to 255; its sum, to a 255th of the
    largest. uses: so many of them, each with the same weights."""
    most = 255 * 127 * channels
    tensor, node = onnx.numpy_helper.from_array, onnx.helper.make_node
    weights = [
        tensor(np.array(1, np.float32), "one"),
        tensor(np.array(most / 255, np.float32), "step"),
        tensor(np.array(0, np.uint8), "u"),
        tensor(np.array(0, np.int8), "s"),
        tensor(np.full((1, channels, 1, 1), 127, np.int8), "w"),
        tensor(np.array([1, 2, 3], np.int64), "axes"),
    ]
    nodes = [node("DequantizeLinear", ["x", "one", "u"], ["xf"])]
    for n in range(uses):
        nodes += [
            node("DequantizeLinear", ["w", "one", "s"], [f"wf{n}"]),
            node("Conv", ["xf", f"wf{n}"], [f"y{n}"]),
            node("QuantizeLinear", [f"y{n}", "step", "u"], [f"q{n}"]),
            node("DequantizeLinear", [f"q{n}", "step", "u"], [f"f{n}"]),
            node("Flatten", [f"f{n}"], [f"out{n}"]),
        ]
    made = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "sum",
        [made("x", onnx.TensorProto.UINT8, ["n", channels, 1, 1])],
        [made(f"out{n}", onnx.TensorProto.FLOAT, ["n", 1]) for n in range(uses)],
        weights,
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), file)
    return file


def test_sums_of_integers_do_not_overflow(tmp_path: Path) -> None:
    pixels = np.full((2, 64, 1, 1), 255, np.uint8)
    pixels[1] //= 2
    (got,) = _onnx.Model(conv(tmp_path / "sum.onnx", 64)).run(pixels, 2)
    np.testing.assert_allclose(got[:, 0], [255 * 127 * 64, 127 * 127 * 64], rtol=0.01)


def test_layers_that_share_weights_are_run_all_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime cannot keep those from overflowing."""
    model = _onnx.Model(conv(tmp_path / "sum.onnx", 64, uses=2), outputs=["out0", "out1"])
    for got in model.run(np.full((1, 64, 1, 1), 100, np.uint8), 1):
        np.testing.assert_allclose(got[:, 0], 100 * 127 * 64, rtol=0.01)
    assert "".join(capfd.readouterr()) == ""


# ------------------------------------------------------------------------------------------------------------ bfloat16


@pytest.fixture
def has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbir_faiss.nets.weights.has_bfloat16", lambda device: True)


@pytest.mark.usefixtures("exported", "has_bfloat16")
def test_bfloat16_is_near_float32(make: Maker, tmp_path: Path) -> None:
    images = [noise(40, 30, seed=seed) for seed in range(5)]
    extractor = make(precision="bfloat16")
    assert extractor.options.runtime == "torch"
    got, exact = extractor(images), make(runtime="torch")(images)
    assert {name: x.dtype for name, x in got.items()} == dict.fromkeys(exact, np.float32)
    assert cosines(got["embedding"], exact["embedding"]).min() >= 0.99
    assert not np.array_equal(got["embedding"], exact["embedding"])
    name, options = extractor.freeze(tmp_path)
    assert (name, options["made_by"]) == ("onnx", "trained by torch in bfloat16")
    frozen = Onnx(**{**options, "model": str(tmp_path / "model.onnx")})
    np.testing.assert_allclose(frozen(images)["embedding"], exact["embedding"], rtol=0, atol=1e-4)


def test_bfloat16_where_there_is_none(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbir_faiss.nets.weights.has_bfloat16", lambda device: False)
    with pytest.raises(ConfigError, match="precision: this cpu does not compute in bfloat16: use precision float32"):
        make(precision="bfloat16").load()


@pytest.mark.usefixtures("has_bfloat16")
def test_bfloat16_that_is_far_from_float32(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_precision, "_CLOSE", 1.0)
    with pytest.raises(
        ConfigError, match=r"precision: bfloat16 gives 'embedding' a mean cosine of .*precision float32"
    ):
        make(precision="bfloat16").load()


@pytest.mark.parametrize(("vnni", "precise"), [(True, "0"), (False, "1")])
def test_slower_sums_are_for_cpus_that_need_them(
    vnni: bool, precise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_onnx, "has_vnni", lambda: vnni)
    file = tmp_path / "same.onnx"
    image = [1, 3, 4, 4]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, image)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, image)],
    )
    onnx.save_model(
        onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]), file
    )
    options = _onnx.session(file, "cpu", 1).get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == precise
