"""Every command in the documents is run, or, where it would take hours or two machines, is at least possible."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from _pages import ROOT, blocks, check_line, lines, run_page
from _published import publish, serving
from _qdrant_server import QdrantServer
from PIL import Image

from cbir_faiss.base.registry import make
from cbir_faiss.config import load_config
from cbir_faiss.training.config import load_training

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("", "docs", "connectors")
    for path in (ROOT / folder).glob("*.md" if not folder else "**/*.md")
)
RUN = [
    "README.md",
    "docs/backends.md",
    "docs/collections.md",
    "docs/howto/data.md",
    "docs/howto/million.md",
    "docs/howto/qdrant.md",
    "docs/howto/train.md",
    "docs/tutorial.md",
]
NOT_RUN = {
    "CHANGELOG.md": "says what is new, not how it is done",
    "CONTRIBUTING.md": "lists targets of make, which are checked below",
    "docs/papers.md": "hours of training on data of others; each config is read by test_docs.py",
    "docs/performance.md": "benchmarks",
    "docs/ray.md": "two nodes, which tests/test_distributed.py starts",
    "docs/recall.md": "engines that run; tests/test_recall.py, test_plan.py and test_doctor.py run each command",
    "docs/reference/commands.md": "examples of the commands' own help",
    "docs/reference/python.md": "docstrings",
    "docs/serve.md": "a server that ends when it is told to; tests/test_serve_changes.py starts it",
    "docs/training.md": "the weights of a large network would be downloaded; its configs are read below",
    "docs/tuning.md": "data of others; tests/test_tune.py tunes, and builds what comes out",
}
SERVER = "http://localhost:6333"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photos/cat and photos/dog."""
    place = tmp_path / "place"
    rng = np.random.default_rng(0)
    for name, low in (("cat", 0), ("dog", 120)):
        (place / "photos" / name).mkdir(parents=True)
        for i in range(80):
            pixels = rng.integers(low, low + 120, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).resize((64, 64)).save(place / "photos" / name / f"{i}.jpg")
    monkeypatch.chdir(place)
    monkeypatch.setattr("cbir_faiss.comparison.timing.BUSY_CORES", float("inf"))
    return place


@pytest.fixture
def qdrant() -> Iterator[str]:
    """The address of a server."""
    with QdrantServer() as server:
        yield server.url


def store_photos(address: str) -> None:
    """What somebody has in production: 200 vectors of 64 floats with labels, as ``photos``."""
    backend = make("backends", "qdrant", url=address, collection="photos", metric="cosine")
    backend.create(64, "float")
    vectors = np.random.default_rng(1).standard_normal((200, 64), dtype=np.float32)
    backend.upsert(np.arange(200), vectors, [{"label": "cat" if i % 2 else "dog"} for i in range(200)])
    backend.flush()
    backend.close()


@pytest.mark.usefixtures("place")
def test_the_readme(qdrant: str) -> None:
    store_photos(qdrant)
    assert len(run_page(ROOT / "README.md", {SERVER: qdrant})) >= 10
    assert Path("runs/photos/report.html").exists()


@pytest.mark.usefixtures("place")
def test_the_tutorial() -> None:
    assert len(run_page(ROOT / "docs/tutorial.md")) >= 10
    assert Path("duplicates.html").exists()


def test_collections(place: Path) -> None:
    Path("photos.yaml").write_text(
        "source: {name: folder, root: photos/}\ncodecs: [{name: lsh, bits: 64}]\n"
        "backends: [{name: faiss-binary-flat}]\n"
    )
    Path("new").mkdir()
    for new, old in {"new/0.jpg": "photos/cat/0.jpg", "query.jpg": "photos/dog/0.jpg"}.items():
        (place / new).write_bytes((place / old).read_bytes())
    assert len(run_page(ROOT / "docs/collections.md")) == 8


@pytest.mark.usefixtures("place")
def test_from_a_qdrant_collection_to_codes(qdrant: str) -> None:
    store_photos(qdrant)
    assert len(run_page(ROOT / "docs/howto/qdrant.md", {SERVER: qdrant})) == 9


def test_backends(qdrant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).standard_normal((80, 32), dtype=np.float32))
    Path("photos.yaml").write_text(
        "source: {name: vectors, file: x.npy}\ncodecs: [{name: raw}]\nbackends: [{name: faiss-flat, metric: cosine}]\n"
    )
    assert run_page_of("cbir build photos.yaml")
    assert len(run_page(ROOT / "docs/backends.md", {SERVER: qdrant})) == 3


def run_page_of(line: str) -> list[str]:
    """Run one line, as a page of it would be."""
    page = Path("page.md")
    page.write_text(f"```sh\n{line}\n```\n", encoding="utf-8")
    return run_page(page)


@pytest.mark.usefixtures("place")
def test_a_million_photos() -> None:
    assert len(run_page(ROOT / "docs/howto/million.md", {"bits: 256": "bits: 64"})) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_train_your_own() -> None:
    pytest.importorskip("torch")
    assert len(run_page(ROOT / "docs/howto/train.md", {"epochs: 20": "epochs: 1"})) == 4


def test_the_data_of_the_configs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        publish(server, monkeypatch)
        assert len(run_page(ROOT / "docs/howto/data.md")) == 4
    assert (place / "datasets/caltech101/ant/image_0001.jpg").exists()
    assert (place.parent / "shared/datasets/cifar10/train").is_dir()
    assert (place.parent / "shared/datasets/mnist/MNIST/raw").is_dir()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_or_possible(page: str) -> None:
    """A page with commands is in one of the lists above; a block of sh means that they are run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = [block for language, block in blocks(ROOT / page) if language in ("sh", "text")]
    shown += re.findall(r"^    (cbir (?:.*\\\n)*.*)", text, re.MULTILINE)
    commands = [
        words for block in shown for line in block.splitlines() if line.startswith("cbir ") for words in lines(line)
    ]
    for words in commands:
        check_line(words)
    if commands:
        assert (page in RUN) != (page in NOT_RUN), f"{page} has commands: run it in a test, or say why not"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN])
def test_every_config_in_a_page_is_right(page: str, tmp_path: Path) -> None:
    loaders: dict[str, Callable[[Path], object]] = {"losses": load_training, "codecs": load_config}
    for language, text in blocks(ROOT / page):
        document = yaml.safe_load(text) if language == "yaml" else {}
        for key, loader in loaders.items():
            if {"source", key} <= set(document):
                (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
                loader(tmp_path / "c.yaml")


def test_targets_of_make_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z-]+)(?:`|  |$)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, page
