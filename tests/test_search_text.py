"""Search by text: the text tower lies in the collection, and neither torch nor the model's library is asked."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import _models
import numpy as np
import pytest
from _page import CHROMIUM, chromium, settled
from _serving import TOKEN, Serving, serving
from click.testing import CliRunner
from PIL import Image

_models.quietly_imported("torch", "torchvision", "onnxruntime", "open_clip", "tokenizers")

import open_clip  # noqa: E402
import torch  # noqa: E402

from cbir_faiss.cli import main  # noqa: E402
from cbir_faiss.collection import Collection  # noqa: E402
from cbir_faiss.collection.relevance import kept  # noqa: E402
from cbir_faiss.config import parse_config  # noqa: E402
from cbir_faiss.errors import ConfigError, CorruptCollection, InputError, Unsupported  # noqa: E402
from cbir_faiss.extractors import _text, _tokenizer  # noqa: E402
from cbir_faiss.extractors.joined import Joined  # noqa: E402
from cbir_faiss.extractors.onnx import Onnx  # noqa: E402
from cbir_faiss.extractors.open_clip import OpenClip  # noqa: E402
from cbir_faiss.serve.client import connect  # noqa: E402
from cbir_faiss.storage.manifest import Cutoff  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, the model, and the collection of the one by the other."""
    place = tmp_path_factory.mktemp("texts")
    (place / "pictures").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "pictures" / f"{number:02}.png")
    _models.open_clip_folder(place / "model")
    document: dict[str, Any] = {
        "source": {"name": "folder", "root": str(place / "pictures")},
        "extractors": [{"name": "open_clip", "model": str(place / "model"), "embed": "image+text"}],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat", "metric": "cosine"}],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CBIR_CACHE", str(place / "cache"))
        Collection.build(parse_config(document), place / "x.cbir").close()
    return place


@pytest.fixture(scope="module")
def expected(place: Path) -> Any:
    """Embeddings of the texts by open_clip itself."""
    model = open_clip.create_model(f"local-dir:{place / 'model'}").eval()
    with torch.inference_mode():
        return model.encode_text(open_clip.get_tokenizer("ViT-B-32")(_models.TEXTS), normalize=True).numpy()


def test_a_collection_is_searched_by_text(place: Path, expected: Any) -> None:
    with Collection.open(place / "x.cbir") as collection:
        found = collection.search_text(_models.TEXTS, k=12)
        by_vector = collection.search(expected, k=12)
        assert [[match.path for match in row] for row in found] == [[match.path for match in row] for row in by_vector]
        for row, same in zip(found, by_vector, strict=True):
            np.testing.assert_allclose([m.distance for m in row], [m.distance for m in same], atol=1e-5)
        assert len(collection.search_text(["a red bus"], k=2, where="path != '03.png'")[0]) == 2


def test_the_cutoff_between_pictures_is_not_one_of_texts(place: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(place / "x.cbir", tmp_path / "x.cbir")
    with Collection.open(folder) as collection:
        kept(collection.store, Cutoff(distance=0.5, error=0.1, by="labels", items=12))
    with Collection.open(folder) as collection:
        assert collection.search_ids([0])[0][0].relevant is not None
        assert collection.search_text(["a red bus"])[0][0].relevant is None
        with pytest.raises(Unsupported, match="those of texts"):
            collection.search_text(["a red bus"], relevant=True)
    told = CliRunner().invoke(main, ["search", str(folder), "--text", "a red bus", "--relevant"])
    assert told.exit_code == 1
    assert "those of texts" in told.stderr
    with serving(folder) as server, connect(f"{server.url}/x", token=TOKEN) as remote:
        assert remote.search_ids([0])[0][0].relevant is not None
        assert remote.search_text(["a red bus"])[0][0].relevant is None
        with pytest.raises(Unsupported, match="those of texts"):
            remote.search_text(["a red bus"], relevant=True)


def test_neither_torch_nor_the_library_is_loaded(place: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(place / "x.cbir", tmp_path / "moved.cbir")
    code = (
        "import sys\nfrom cbir_faiss import Collection\n"
        f"with Collection.open({str(moved)!r}) as c: print(c.search_text(['a red bus'], 1)[0][0].path)\n"
        "assert not {'torch', 'open_clip', 'transformers', 'PIL'} & set(sys.modules)\n"
        "assert '_model' not in c._frozen.__dict__ and '_loaded' not in c._frozen.__dict__\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(".png")


def test_the_command(place: Path) -> None:
    done = CliRunner().invoke(main, ["search", str(place / "x.cbir"), "--text", "a red bus", "-k", "2", "--json"])
    assert done.exit_code == 0, done.output
    ((first, _),) = json.loads(done.stdout)
    assert sorted(first) == ["distance", "id", "label", "path"]
    said = CliRunner().invoke(main, ["search", str(place / "x.cbir"), "--text", "a red bus", "--text", "two dogs"])
    assert [line for line in said.stdout.splitlines() if not line.startswith(" ")] == ["a red bus", "two dogs"]
    both = CliRunner().invoke(main, ["search", str(place / "x.cbir"), "--text", "a red bus", "--id", "1"])
    assert (both.exit_code, "give images, or --id, or --vector, or --text" in both.output) == (2, True)


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Serving]:
    """The collection, and two that take no texts: one of pictures, one of vectors."""
    for name in ("pictures", "vectors"):
        shutil.copytree(Path(__file__).parent / "fixtures" / f"{name}-0.1", place / f"{name}.cbir")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CBIR_CACHE", str(place / "cache"))
        with serving(place / "x.cbir", place / "pictures.cbir", place / "vectors.cbir", write=True) as server:
            yield server


def test_a_served_collection_is_searched_by_text(served: Serving, place: Path) -> None:
    with Collection.open(place / "x.cbir") as here:
        expected = here.search_text(_models.TEXTS, k=12)
        few = here.search_text(["a red bus"], 2, "path != '03.png'")
    paths = [[match.path for match in row] for row in expected]
    assert [[hit["path"] for hit in row] for row in served.search("x", text=_models.TEXTS, k=12)] == paths
    assert [[hit["path"] for hit in row] for row in served.search("x", text=_models.TEXTS[0], k=12)] == paths[:1]
    form = served.client.post(
        "/api/v1/collections/x/search", files=[("k", (None, "12"))], data={"text": _models.TEXTS[0]}
    )
    assert [hit["path"] for hit in form.json()["results"][0]] == paths[0]
    with connect(f"{served.url}/x", token=TOKEN) as there:
        found = there.search_text(["a red bus"], 2, "path != '03.png'")
        assert [m.path for m in found[0]] == [m.path for m in few[0]]
        assert len(there.search_text(["a red bus"] * 70, 1)) == 70
        for wrong in ("a red bus", [], [""], [3]):
            with pytest.raises(InputError, match="text"):
                there.search_text(wrong)  # type: ignore[arg-type]
    both = served.search("x", text="a red bus", ids=[3], combine=True, k=5)
    assert len(both) == 1
    assert 3 not in [hit["id"] for hit in both[0]]
    assert "with 'combine'" in served.problem("POST", "collections/x/search", 422, json={"text": "a", "ids": [1]})


def test_the_text_tower_is_loaded_once_for_all_generations(served: Serving) -> None:
    served.search("x", text="a red bus")
    live = served.server.api.collections["x"]
    assert live._current is not None
    before = live.loaded(live._current.collection, "texts")
    picture = served.client.get("/api/v1/collections/x/items/1/image").content
    other = Image.open(io.BytesIO(picture)).rotate(90)
    out = io.BytesIO()
    other.save(out, "PNG")
    added = served.client.post("/api/v1/collections/x/items", files=[("image", ("new.png", out.getvalue()))])
    assert added.json()["added"] == 1
    served.search("x", text="a red bus")
    assert live.loaded(live._current.collection, "texts") is before
    assert served.client.delete(f"/api/v1/collections/x/items/{added.json()['ids'][0]}").status_code == 200


def test_who_serves_says_which_take_texts(served: Serving) -> None:
    can = {name: served.get(f"collections/{name}")["texts"] for name in ("x", "pictures", "vectors")}
    assert can == {"x": True, "pictures": False, "vectors": False}
    asked = {"json": {"text": "a red bus"}}
    assert "has no text tower" in served.problem("POST", "collections/pictures/search", 422, **asked)
    assert "not pictures or texts" in served.problem("POST", "collections/vectors/search", 422, **asked)
    for wrong in ("", " ", ["a", ""], ["x" * 10_001], ["x"] * 101, 5, [5], None):
        assert "text" in served.problem("POST", "collections/x/search", 422, json={"text": wrong})
    surrogate = b'{"text": "a \\ud800 bus"}'
    headers = {"Content-Type": "application/json"}
    served.problem("POST", "collections/x/search", 422, content=surrogate, headers=headers)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_page_finds_what_the_words_say(served: Serving, place: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with Collection.open(place / "x.cbir") as here:
        nearest = [match.path for match in here.search_text(["a red bus"], 12)[0]]
    with chromium() as browser, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{served.url}/?token={quote(TOKEN)}#/c/x")
        page.get_by_label("Say what is to be seen").fill("a red bus")
        page.get_by_role("search").get_by_role("button", name="Search").click()
        page.locator(".told", has_text="results, nearest first").wait_for()
        settled(page)
        assert page.locator(".grid .photo").evaluate_all("all => all.map((one) => one.title)") == nearest
        page.goto(f"{served.url}/#/c/pictures")
        page.locator(".told", has_text="items").wait_for()
        assert page.get_by_role("search").count() == 0


def test_the_command_asks_a_server(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBIR_TOKEN", TOKEN)
    done = CliRunner().invoke(main, ["search", f"{served.url}/x", "--text", "a red bus", "-k", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)[0]) == 2
    done = CliRunner().invoke(main, ["search", f"{served.url}/pictures", "--text", "a red bus"])
    assert (done.exit_code, "has no text tower" in done.stderr) == (1, True)


def test_a_collection_without_a_text_tower() -> None:
    folder = Path(__file__).parent / "fixtures" / "pictures-0.1"
    with Collection.open(folder) as collection, pytest.raises(Unsupported, match="has no text tower: a collection is"):
        collection.search_text(["a red bus"])
    vectors = Path(__file__).parent / "fixtures" / "vectors-0.1"
    with Collection.open(vectors) as collection, pytest.raises(InputError, match="not pictures or texts"):
        collection.search_text(["a red bus"])


@pytest.mark.parametrize("wrong", ["a red bus", [], [""], [" \n"], [3], ["a \ud800 bus"]])
def test_what_is_no_text(wrong: Any, place: Path) -> None:
    with Collection.open(place / "x.cbir") as collection, pytest.raises(InputError, match="text"):
        collection.search_text(wrong)


def test_a_damaged_text_tower(place: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(place / "x.cbir", tmp_path / "x.cbir"))
    content = bytearray((damaged / "extractor" / "text.onnx").read_bytes())
    content[-100] ^= 0xFF
    (damaged / "extractor" / "text.onnx").write_bytes(content)
    with Collection.open(damaged) as collection, pytest.raises((CorruptCollection, ConfigError)):
        collection.search_text(["a red bus"])
    (damaged / "extractor" / "text.onnx").write_bytes((damaged / "extractor" / "model.onnx").read_bytes())
    with pytest.raises(ConfigError, match=r"text: .*text\.onnx is no text tower that was exported here"):
        _text.TextModel(damaged / "extractor" / "text.onnx")


def test_a_frozen_copy_is_frozen_again(place: Path, expected: Any, tmp_path: Path) -> None:
    kept = place / "x.cbir" / "extractor"
    extractor = Onnx(
        model=str(kept / "model.onnx"),
        text=str(kept / "text.onnx"),
        preprocess={"resize": 32, "crop": 32, "layout": "nhwc"},
    )
    parts = [{"name": "histogram"}, {"name": "onnx", **extractor.options.model_dump(mode="json")}]
    joined = Joined(of=parts, embeddings=["onnx.embedding", "embedding"])
    assert list(joined.embed_text(_models.TEXTS)) == ["onnx.embedding"]
    name, options = joined.freeze(tmp_path)
    assert (tmp_path / "1" / "text.onnx").is_file()
    assert options["of"][1]["text"] == "1/text.onnx"
    np.testing.assert_allclose(joined.embed_text(_models.TEXTS)["onnx.embedding"], expected, atol=1e-5)
    first = Joined(of=parts)
    with pytest.raises(Unsupported, match="'histogram' has no text tower"):
        first.embed_text(["a red bus"])
    assert name == "joined"


def test_a_tokenizer_that_would_give_other_ids(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tokenizer, "_WORDS", r"\S+")
    with pytest.raises(ConfigError, match="embed: its tokenizer has no form without its library"):
        OpenClip(model=str(place / "model"), embed="image+text", runtime="torch").load()


def test_the_tokenizer_is_open_clips() -> None:
    theirs = open_clip.get_tokenizer("ViT-B-32")
    ours = _text.tokenizer_of(_tokenizer.of_open_clip(theirs))
    texts = [
        "it’s “quoted”, don't I'LL we've",
        "  lots   of\tspace\n",
        "ÉCLAIR: naïve café, l’été à Paris",
        "emoji 😀 red🚗car, —dash… –",
        "3.14159 and 2,000 a_b-c/d\\e",
        "日本の猫 кот γάτα",
    ]
    assert [ids for ids, _ in _text.tokens_of(ours, texts)] == theirs(texts).tolist()
