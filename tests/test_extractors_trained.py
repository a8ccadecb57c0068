"""What was trained as an extractor: its columns, a frozen copy, and collections that outlive the trained folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cbir_faiss.base import registry  # noqa: E402
from cbir_faiss.base.options import parse_options  # noqa: E402
from cbir_faiss.collection import Collection  # noqa: E402
from cbir_faiss.comparison.run import run  # noqa: E402
from cbir_faiss.config import load_config, parse_config  # noqa: E402
from cbir_faiss.errors import ConfigError, CorruptCollection, DimensionMismatch, InputError, MissingDependency  # noqa: E402
from cbir_faiss.extractors.onnx import Onnx  # noqa: E402
from cbir_faiss.extractors.trained import Trained  # noqa: E402
from cbir_faiss.nets.model import load_model, new_card, save_model  # noqa: E402
from cbir_faiss.testing import ExtractorContract  # noqa: E402

BITS = 12


def store(folder: Path, bits: int | None = BITS, classes: tuple[str, ...] | None = ("a", "b", "c")) -> Path:
    """A stored model with random weights, as `cbir train` leaves one."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = registry.make("networks", "plain", width=4, features=16)
    save_model(*new_card(network, bits, classes), folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("trained") / "all")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features only."""
    return store(tmp_path_factory.mktemp("trained") / "plain", None, None)


@pytest.fixture
def one_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exported is exported once for all tests that use this."""
    monkeypatch.setenv("CBIR_CACHE", str(tmp_path_factory.getbasetemp() / "exported-trained"))


def noise(*size: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


# ------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.usefixtures("one_cache")
class TestCodeContract(ExtractorContract):
    plugin = Trained

    @pytest.fixture(autouse=True)
    def the_folder(self, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "options", {"path": str(trained), "output": "code"})


@pytest.mark.usefixtures("one_cache")
class TestFeaturesContract(ExtractorContract):
    plugin = Trained

    @pytest.fixture(autouse=True)
    def the_folder(self, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "options", {"path": str(plain)})


@pytest.mark.usefixtures("one_cache")
class TestBothByOnnxRuntimeContract(ExtractorContract):
    plugin = Trained

    @pytest.fixture(autouse=True)
    def the_folder(self, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options = {"path": str(trained), "output": ["features", "code"], "runtime": "onnx"}
        monkeypatch.setattr(type(self), "options", options)


# ---------------------------------------------------------------------------------------------------------- its columns


@pytest.mark.parametrize(
    ("output", "widths"),
    [
        (None, {"embedding": BITS}),
        ("code", {"embedding": BITS}),
        ("features", {"embedding": 16}),
        (["code"], {"embedding": BITS}),
        (["features", "code"], {"features": 16, "code": BITS}),
        (["code", "features"], {"code": BITS, "features": 16}),
    ],
)
def test_columns(output: Any, widths: dict[str, int], trained: Path) -> None:
    extractor = Trained(path=str(trained), output=output, runtime="torch")
    assert list(extractor.embeddings) == list(widths)
    assert list(extractor.outputs) == [*widths, "probs"]
    assert dict(extractor.outputs) == {name: (w, "float32") for name, w in {**widths, "probs": 3}.items()}
    columns = extractor([noise(40, 30), noise(40, 30, seed=1)])
    assert (columns["probs"] > 0).all()
    np.testing.assert_allclose(columns["probs"].sum(axis=1), 1, rtol=1e-5)


def test_columns_are_the_models_outputs(trained: Path) -> None:
    image = noise(32, 32)
    card, model = load_model(trained)
    with torch.no_grad():
        x = torch.from_numpy(card.preprocess.normalise(np.asarray(image)[None]).transpose(0, 3, 1, 2).copy())
        expected = model(x)
    columns = Trained(path=str(trained), output=["features", "code"], runtime="torch")([image])
    for name in ("features", "code"):
        np.testing.assert_allclose(columns[name], expected[name].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(columns["probs"], torch.softmax(expected["logits"], 1).numpy(), rtol=1e-4)


@pytest.mark.usefixtures("one_cache")
@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_mirrored_columns_are_the_mean_of_both(runtime: str, trained: Path, tmp_path: Path) -> None:
    images = [noise(32, 32, seed=seed) for seed in range(3)]
    plain, both = (Trained(path=str(trained), runtime=runtime, mirrored=mirrored) for mirrored in (False, True))
    one, other = (plain(some) for some in (images, [ImageOps.mirror(image) for image in images]))
    got = both(images)
    for column, values in one.items():
        np.testing.assert_allclose(got[column], (values + other[column]) / 2, rtol=1e-4, atol=1e-5)
    assert np.abs(got["embedding"] - one["embedding"]).max() > 1e-3
    assert both.fingerprint() != plain.fingerprint()
    _, options = both.freeze(tmp_path)
    frozen = Onnx(**parse_options(Onnx.Options, options, folder=str(tmp_path)).model_dump(mode="json"))
    np.testing.assert_allclose(frozen(images)["embedding"], got["embedding"], rtol=1e-4, atol=1e-5)


def test_a_network_without_a_code(plain: Path) -> None:
    assert Trained(path=str(plain), runtime="torch").outputs == {"embedding": (16, "float32")}
    for output in ("code", ["features", "code"]):
        with pytest.raises(ConfigError, match="output: this network was trained without a code: output features"):
            _ = Trained(path=str(plain), output=output).outputs


@pytest.mark.parametrize("output", [[], ["code", "code"]])
def test_output_names_some_once(output: list[str], trained: Path) -> None:
    with pytest.raises(ConfigError, match="at least one output, and none twice"):
        Trained(path=str(trained), output=output)


def test_the_weights_count_not_the_place(trained: Path, tmp_path: Path) -> None:
    here = Trained(path=str(trained)).fingerprint()
    shutil.copytree(trained, tmp_path / "copy")
    assert Trained(path=str(tmp_path / "copy"), batch_size=2).fingerprint() == here
    assert Trained(path=str(trained), output="features").fingerprint() != here
    assert Trained(path=str(store(tmp_path / "other", 16))).fingerprint() != here


def test_no_folder_or_an_altered_one(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"path: .*gone: no trained model here .* cbir train CONFIG --out"):
        Trained(path=str(tmp_path / "gone")).fingerprint()
    shutil.copytree(trained, tmp_path / "copy")
    card = json.loads((tmp_path / "copy/model.json").read_text())
    (tmp_path / "copy/model.json").write_text(json.dumps({**card, "sha256": "0" * 64}))
    with pytest.raises(CorruptCollection, match=r"best.pth: altered"):
        _ = Trained(path=str(tmp_path / "copy")).outputs


def test_without_torch(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needed once, to run the network or to export it; what was exported is in the cache."""
    expected = Trained(path=str(trained), runtime="onnx")([noise(40, 30)])
    monkeypatch.setitem(sys.modules, "torch", None)
    got = Trained(path=str(trained), runtime="onnx")([noise(40, 30)])
    assert all(np.array_equal(got[name], values) for name, values in expected.items())
    for options in ({"runtime": "torch"}, {"runtime": "onnx", "output": "features"}):
        with pytest.raises(MissingDependency, match=r"'torch' is not installed: pip install 'cbir-faiss\[torch\]'"):
            _ = Trained(path=str(trained), **options).outputs


def test_what_was_exported_is_run_without_importing_torch(trained: Path) -> None:
    Trained(path=str(trained), runtime="onnx").load()
    code = (
        "import sys; from PIL import Image; from cbir_faiss.extractors.trained import Trained;"
        f"columns = Trained(path={str(trained)!r}, runtime='onnx')([Image.new('RGB', (9, 9))]);"
        "print(len(columns), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


# ------------------------------------------------------------------------------------------------------ frozen, indexed


@pytest.mark.usefixtures("one_cache")
def test_a_frozen_copy_has_the_side_column(trained: Path, tmp_path: Path) -> None:
    extractor = Trained(path=str(trained), output=["features", "code"], runtime="onnx")
    name, options = extractor.freeze(tmp_path)
    assert name == "onnx"
    assert (options["outputs"], options["side"]) == (["features", "code"], ["probs"])
    frozen = Onnx(**parse_options(Onnx.Options, options, folder=str(tmp_path)).model_dump(mode="json"))
    assert frozen.embeddings == ("features", "code")
    images = [noise(50, 40), noise(33, 60, seed=1)]
    expected, got = extractor(images), frozen(images)
    assert list(got) == list(expected)
    for column, values in expected.items():
        np.testing.assert_allclose(got[column], values, rtol=1e-4, atol=1e-5)


def document(pictures: Path, folder: Path, **changed: Any) -> dict[str, Any]:
    return {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "trained", "path": str(folder)}],
        "codecs": [{"name": "sign"}],
        "backends": [{"name": "faiss-binary-flat"}],
        **changed,
    }


@pytest.mark.usefixtures("one_cache")
def test_a_collection_outlives_the_trained_folder(trained: Path, pictures: Path, tmp_path: Path) -> None:
    """A code of 12 bits is stored in 2 bytes, 4 bits of which are always 0; searched without the trained folder."""
    folder = tmp_path / "trained"
    shutil.copytree(trained, folder)
    files = sorted(pictures.rglob("*.png"))
    expected = np.packbits(Trained(path=str(folder))([Image.open(f).convert("RGB") for f in files])["embedding"] > 0, 1)
    with Collection.build(parse_config(document(pictures, folder)), tmp_path / "x.cbir") as built:
        assert (built.manifest.dim, built.manifest.bits, built.manifest.width) == (BITS, BITS, 16)
    shutil.rmtree(folder)
    with Collection.open(tmp_path / "x.cbir") as collection:
        assert not collection.verify()
        codes = collection._store.fetch(np.arange(len(files)), "code")
        assert codes.shape == (len(files), 2)
        assert not (codes[:, 1] & 0x0F).any()
        # ONNX Runtime's values are torch's up to rounding, which can turn a bit whose value is about 0.
        assert (codes != expected).mean() < 0.02
        for file in files[::7]:
            (found,) = collection.search([file], k=1)
            assert found[0].distance == 0


@pytest.mark.usefixtures("one_cache")
def test_the_first_output_is_indexed(trained: Path, pictures: Path, tmp_path: Path) -> None:
    """Also when the embeddings come from the cache; and vectors can be added, which have no columns by name."""
    floats = {"codecs": [{"name": "raw"}], "backends": [{"name": "faiss-flat", "metric": "l2"}]}
    for order, width in ((["features", "code"], 16), (["code", "features"], BITS)):
        extractors = [{"name": "trained", "path": str(trained), "output": order}]
        config = parse_config(document(pictures, trained, extractors=extractors, **floats))
        for again in ("a", "b"):
            with Collection.build(config, tmp_path / f"{order[0]}-{again}.cbir") as collection:
                assert (collection.manifest.embedding, collection.manifest.dim) == (order[0], width)
        with Collection.open(tmp_path / f"{order[0]}-b.cbir") as collection:
            (found,) = collection.search([pictures / "checks/03.png"], k=1)
            assert found[0].path == "checks/03.png"
            assert found[0].distance == pytest.approx(0, abs=1e-6)
            extracted = collection.extractor([Image.open(pictures / "checks/03.png").convert("RGB")])
            assert collection.search_columns(extracted, k=1) == [found]
            vector = np.full((1, width), 50, np.float32)
            (new,) = collection.add_vectors(vector, [{"path": "mine"}])
            (found,) = collection.search(vector, k=1)
            assert (found[0].id, found[0].distance) == (new, 0)
            with pytest.raises(DimensionMismatch):
                collection.add_vectors(np.ones((1, width + 1), np.float32))
            noise(20, 20).save(tmp_path / "more.png")
            assert collection.add([tmp_path / "more.png"]).added == 1


@pytest.mark.usefixtures("one_cache")
def test_probabilities_are_there_for_a_rescorer(trained: Path, pictures: Path, tmp_path: Path) -> None:
    config = parse_config(document(pictures, trained, rescore=[{"name": "relevance", "t": 0.0}]))
    with Collection.build(config, tmp_path / "x.cbir") as collection:
        (found,) = collection.search([pictures / "blob/05.png"], k=3)
        assert len(found) == 3
        with pytest.raises(InputError, match="needs 'probs' of the items"):
            collection.add_vectors(np.ones((1, BITS), np.float32))


@pytest.mark.usefixtures("one_cache")
@pytest.mark.usefixtures("only_measured")
def test_a_comparison_of_code_and_features(trained: Path, plain: Path, pictures: Path, tmp_path: Path) -> None:
    """Both embeddings of one extractor, and a network without a code, by every codec that takes them."""
    (tmp_path / "c.yaml").write_text(
        f"""
source: {{name: folder, root: {pictures}}}
queries: {{every: 4}}
extractors:
  - {{name: trained, path: {trained}, output: [features, code]}}
  - {{name: trained, path: {plain}}}
codecs: [{{name: sign}}]
backends: [{{name: faiss-binary-flat}}]
metrics: {{k: [1, 5]}}
"""
    )
    results = run(load_config(tmp_path / "c.yaml"), tmp_path / "out")
    assert sorted(row["bits"] for row in results["rows"]) == [BITS, 16, 16]
