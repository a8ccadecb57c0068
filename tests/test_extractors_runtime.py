"""``runtime: auto``: what is taken, what is said of it, and that a collection or a cache is not torn between two."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("onnxruntime")

from cbir_faiss.base import registry  # noqa: E402
from cbir_faiss.collection import Collection  # noqa: E402
from cbir_faiss.comparison.run import run  # noqa: E402
from cbir_faiss.config import parse_config  # noqa: E402
from cbir_faiss.errors import ConfigError, MissingDependency  # noqa: E402
from cbir_faiss.extractors import _exports, _network, _onnx, _torch  # noqa: E402
from cbir_faiss.extractors.joined import Joined  # noqa: E402
from cbir_faiss.extractors.torchvision import Torchvision  # noqa: E402
from cbir_faiss.extractors.trained import Trained  # noqa: E402
from cbir_faiss.nets.model import new_card, save_model  # noqa: E402
from cbir_faiss.pipeline.extraction import extract  # noqa: E402
from cbir_faiss.storage.manifest import PluginEntry  # noqa: E402

SAID = "cbir_faiss.extractors._network"
Maker = Callable[..., Trained]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `cbir train` leaves, with random weights."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    save_model(*new_card(registry.make("networks", "plain", width=4, features=16), None, None), folder)
    return folder


@pytest.fixture
def make(folder: Path) -> Maker:
    return lambda **options: Trained(path=str(folder), **options)


@pytest.fixture
def exported(make: Maker, own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported network, in the test's own cache; made once for all tests."""
    kept = tmp_path_factory.getbasetemp() / "exported-once"
    if kept.is_dir():
        shutil.copytree(kept, own_cache / "onnx")
    else:
        make(runtime="onnx").load()
        shutil.copytree(own_cache / "onnx", kept)
    (file,) = (own_cache / "onnx").iterdir()
    return file


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, there is no ONNX Runtime."""
    return lambda: monkeypatch.setitem(sys.modules, "onnxruntime", None)


def noise(*size: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def said(caplog: pytest.LogCaptureFixture, level: int) -> str:
    """The one line that was logged, at ``level``."""
    (record,) = [record for record in caplog.records if record.name == SAID]
    assert record.levelno == level
    assert "\n" not in record.getMessage()
    return record.getMessage()


@pytest.mark.usefixtures("exported")
def test_onnx_runtime_is_taken_and_named(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    extractor = make()
    assert extractor.options.runtime == "auto"
    images = [noise(40, 30), noise(30, 40, seed=1)]
    columns = extractor(images)
    assert said(caplog, logging.INFO) == "trained: runtime onnx"
    assert extractor.options.runtime == "onnx"
    assert np.array_equal(columns["embedding"], make(runtime="onnx")(images)["embedding"])


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx", "onnxscript"])
def test_torch_where_a_library_is_missing(
    missing: str, make: Maker, own_cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, missing, None)
    extractor = make()
    columns = extractor([noise(40, 30)])
    assert said(caplog, logging.INFO).startswith(f"trained: runtime torch, because '{missing}' is not installed: pip")
    assert extractor.options.runtime == "torch"
    assert np.array_equal(columns["embedding"], make(runtime="torch")([noise(40, 30)])["embedding"])
    assert not list((own_cache).rglob("*.onnx"))
    with pytest.raises(MissingDependency, match=f"'{missing}' is not installed"):
        make(runtime="onnx").load()


def test_without_torch_either(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match=r"'torch' is not installed: pip install 'cbir-faiss\[torch\]'"):
        make().load()


def test_a_library_that_cannot_be_loaded(
    make: Maker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def need(module: str, extra: str) -> Any:
        if module == "onnxruntime":
            raise ImportError("libonnxruntime.so: cannot enable executable stack")
        return import_module(module)

    monkeypatch.setattr(_network, "need", need)
    make().load()
    assert said(caplog, logging.WARNING).endswith(
        "runtime torch, because libonnxruntime.so: cannot enable executable stack"
    )


def test_another_device_means_torch(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(Trained, "_load_onnx", lambda self: pytest.fail("ONNX Runtime was tried"))
    monkeypatch.setattr(Trained, "_network", lambda self, where: asked.append(where) or _stop())
    for device in ("cuda", "mps"):
        with pytest.raises(ConfigError, match="stop"):
            make(device=device).load()
    assert asked == ["cuda", "mps"]


def _stop() -> Any:
    raise ConfigError("stop")


# ------------------------------------------------------------------------------------------- what cannot be exported


class Undecided(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A model whose way depends on the values that it is given."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x) if float(x.sum()) > -1e30 else self.model(-x)


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    for plugin in (Trained, Torchvision):
        monkeypatch.setattr(plugin, "_build", _undecided(plugin._build))


def _undecided(build: Any) -> Any:
    def changed(self: Any, device: Any) -> Any:
        network = build(self, device)
        network.model = Undecided(network.model)
        return network

    return changed


@pytest.mark.usefixtures("undecided")
def test_torch_where_the_network_cannot_be_exported(
    make: Maker, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extractor = make()
    columns = extractor([noise(40, 30)])
    assert said(caplog, logging.WARNING).startswith(
        "trained: runtime torch, because the network cannot be exported to ONNX: "
    )
    assert extractor.options.runtime == "torch"
    assert np.isfinite(columns["embedding"]).all()
    assert not list((own_cache / "onnx").iterdir())
    with pytest.raises(ConfigError, match="runtime: the network cannot be exported to ONNX: ") as caught:
        make(runtime="onnx").load()
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("undecided")
def test_what_cannot_be_exported_is_frozen_with_its_weights(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    small = {"model": "squeezenet1_1", "weights": "none", "seed": 3, "preprocess": {"resize": 40, "crop": 32}}
    parts = [{"name": "trained", "path": str(copy)}, {"name": "torchvision", **small}]
    extractor = Joined(of=parts, embeddings="all")
    expected = extractor([noise(40, 30)])
    (tmp_path / "frozen").mkdir()
    name, options = extractor.freeze(tmp_path / "frozen")
    shutil.rmtree(copy)
    (tmp_path / "frozen").rename(tmp_path / "moved")
    frozen = PluginEntry(name=name, options=options).load("extractors", tmp_path / "moved")
    assert [part["runtime"] for part in frozen.options.of] == ["torch", "torch"]
    got = frozen([noise(40, 30)])
    assert list(got) == list(expected)
    assert all(np.array_equal(got[column], values) for column, values in expected.items())


def test_an_export_that_fails_halfway_leaves_nothing(
    make: Maker, own_cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(network: Any, file: Path) -> None:
        file.write_bytes(b"half of a mo")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_torch, "export", export)
    extractor = make()
    extractor.load()
    assert "cannot keep an exported network in" in said(caplog, logging.WARNING)
    assert caplog.messages[0].endswith("No space left on device")
    assert not list((own_cache / "onnx").iterdir())


def test_a_cache_that_cannot_be_written(
    make: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CBIR_CACHE", str(tmp_path / "file"))
    make().load()
    assert said(caplog, logging.WARNING).endswith("Not a directory")


def test_an_export_that_gives_something_else(
    make: Maker, own_cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _onnx.Model.run
    monkeypatch.setattr(_onnx.Model, "run", lambda self, *given: [1.01 * x for x in run(self, *given)])
    extractor = make()
    extractor.load()
    assert said(caplog, logging.WARNING).endswith("exported to ONNX it gives another 'embedding'")
    assert extractor.options.runtime == "torch"
    assert not list((own_cache / "onnx").iterdir())


def test_what_is_wrong_with_the_network_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ConfigError, match=r"weights: .*text.pth: not a state dict that can be loaded safely"):
        Torchvision(model="squeezenet1_1", weights=str(tmp_path / "text.pth")).load()
    with pytest.raises(ConfigError, match=r"runtime: must be 'auto', 'torch' or 'onnx'"):
        Torchvision(model="squeezenet1_1", runtime="tensorrt")


# ------------------------------------------------------------------------------------------------ the kept export


def test_the_export_is_kept_for_any_runtime(make: Maker, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch, "export", lambda *given: pytest.fail("exported again"))
    make(runtime="onnx").load()
    make().load()
    frozen = exported.parent.parent / "frozen"
    frozen.mkdir()
    make(runtime="torch").freeze(frozen)
    assert (frozen / "model.onnx").read_bytes() == exported.read_bytes()


def test_a_byte_that_changed_is_noticed(make: Maker, exported: Path) -> None:
    """Damage that ONNX Runtime would load without a word: among the weights."""
    expected = make()([noise(40, 30)])["embedding"]
    content = bytearray(exported.read_bytes())
    content[len(content) // 2] ^= 0xFF
    exported.write_bytes(content)
    np.testing.assert_allclose(make()([noise(40, 30)])["embedding"], expected, rtol=1e-4, atol=1e-5)
    (file,) = exported.parent.iterdir()
    assert file.read_bytes() != content


def test_another_release_exports_again(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = exported.name.partition("-")[0]
    assert _exports.find(key) == exported
    real = _exports.version
    monkeypatch.setattr(_exports, "version", lambda name: "99" if name == "torch" else real(name))
    assert _exports.find(key) is None

    def gone(name: str) -> str:
        raise _exports.PackageNotFoundError(name)

    monkeypatch.setattr(_exports, "version", gone)
    assert _exports.find(key) == exported  # the export of any release is more than none


# ------------------------------------------------------------------------------------- caches, collections, results


@pytest.mark.usefixtures("exported")
def test_a_cache_is_not_mixed(make: Maker, pictures: Path, tmp_path: Path, by_torch: Callable[[], None]) -> None:
    """It is one collection's extractor whatever is taken, but the embeddings of each runtime are cached apart."""
    source = registry.make("sources", "folder", root=str(pictures))
    first = make()
    assert extract(source, first, cache=tmp_path / "cache").computed == 36
    assert first.cache_key() == make(runtime="onnx").cache_key() == make(runtime="onnx").fingerprint()
    by_torch()
    again = make()
    assert extract(source, again, cache=tmp_path / "cache").computed == 36
    assert again.cache_key() == make(runtime="torch").cache_key()
    assert extract(source, make(runtime="torch"), cache=tmp_path / "cache").computed == 0
    assert first.fingerprint() == again.fingerprint() == make(runtime="torch").fingerprint() == make().fingerprint()
    assert make(runtime="onnx").fingerprint() != first.fingerprint()
    joined = [
        Joined(of=[{"name": "trained", **x.options.model_dump(mode="json")}, {"name": "hog"}]) for x in (first, again)
    ]
    assert joined[0].cache_key() != joined[1].cache_key()


def document(folder: Path, pictures: Path) -> dict[str, Any]:
    return {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "trained", "path": str(folder)}],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat", "metric": "l2"}],
    }


@pytest.mark.usefixtures("exported")
def test_a_build_goes_on_by_another_runtime(
    folder: Path, pictures: Path, tmp_path: Path, by_torch: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    config = parse_config(document(folder, pictures))
    with Collection.build(config, tmp_path / "x.cbir") as collection:
        assert collection.info()["extractor"]["options"]["made_by"] == "trained by onnx"
    noise(20, 20).save(pictures / "blob" / "new.png")
    by_torch()
    caplog.set_level(logging.INFO)
    with Collection.build(config, tmp_path / "x.cbir") as collection:
        assert collection.manifest.items == 37
    assert said(caplog, logging.INFO).startswith("trained: runtime torch, because 'onnxruntime'")


@pytest.mark.usefixtures("exported")
@pytest.mark.usefixtures("only_measured")
def test_results_name_the_runtime(folder: Path, pictures: Path, tmp_path: Path) -> None:
    results = run(parse_config({**document(folder, pictures), "metrics": {"k": [1]}}), tmp_path / "out")
    assert [row["options"]["extractor"]["runtime"] for row in results["rows"]] == ["onnx"]
