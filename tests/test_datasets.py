"""`cbir data`, from a server on this machine: what arrives is checked and laid out, and half of it is gone on from."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from cbir_faiss.base.registry import make_section
from cbir_faiss.cli import main
from cbir_faiss.datasets import published
from cbir_faiss.datasets.published import PUBLISHED
from cbir_faiss.storage.lock import writer_lock

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@dataclass
class Server:
    """Files by name; ``breaks_after`` bytes it hangs up, and it may know nothing of ranges."""

    files: dict[str, bytes]
    ranges: bool = True
    breaks_after: int | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of files, on a port of its own."""
    state = Server({})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, part = self.path.lstrip("/"), self.headers.get("Range")
            state.asked.append((name, part))
            content = state.files.get(name)
            if content is None:
                self.send_error(404)
                return
            start = int(part.removeprefix("bytes=").rstrip("-")) if part and state.ranges else 0
            if part and state.ranges and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = len(content) if state.breaks_after is None else state.breaks_after
            self.wfile.write(content[start : max(start, end)])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        state.address = f"http://127.0.0.1:{served.server_port}"
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        served.shutdown()
        thread.join()


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The three data sets, tiny, at the server, under the names that they have where they are published."""
    contents = {**_caltech101(), **_cifar10(), **_mnist()}
    for name, entry in list(PUBLISHED.items()):
        local = {}
        for address in entry.files:
            file = address.rsplit("/", 1)[1]
            server.files[file] = contents[file]
            local[f"{server.address}/{file}"] = hashlib.md5(contents[file], usedforsecurity=False).hexdigest()
        monkeypatch.setitem(PUBLISHED, name, replace(entry, files=local))
    monkeypatch.chdir(tmp_path)


def _tar(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def _caltech101() -> dict[str, bytes]:
    inner = _tar(
        {
            **{f"101_ObjectCategories/{c}/image_{i:04}.jpg": _jpeg(i) for c in ("ant", "bass") for i in (1, 2, 3)},
            "101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": _jpeg(9),
            "101_ObjectCategories/ant/._image_0001.jpg": b"what a Mac leaves",
            "101_ObjectCategories/../../outside/image_0001.jpg": _jpeg(1),
        }
    )
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr("__MACOSX/caltech-101/._101_ObjectCategories.tar.gz", b"what a Mac leaves")
        file.writestr("caltech-101/Annotations.tar", b"")
        file.writestr("caltech-101/101_ObjectCategories.tar.gz", inner)
    return {"caltech-101.zip": outer.getvalue()}


def _pixels(label: int, number: int) -> np.ndarray:
    return np.full((3, 32, 32), [[[label * 20]], [[number]], [[7]]], np.uint8)


def _cifar10() -> dict[str, bytes]:
    files = {"batches.meta.txt": "\n".join([*CLASSES, ""]).encode()}
    for i, batch in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        files[f"{batch}.bin"] = b"".join(bytes([label]) + _pixels(label, i).tobytes() for label in range(10))
    # In the order of the archive, which is not that of the batches.
    return {"cifar-10-binary.tar.gz": _tar({f"cifar-10-batches-bin/{name}": files[name] for name in sorted(files)})}


def _mnist() -> dict[str, bytes]:
    files = {}
    for part, n in (("train", 5), ("t10k", 3)):
        head = np.array([2051, n, 28, 28], ">i4").tobytes()
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(head + bytes(n * 28 * 28))
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(np.array([2049, n], ">i4").tobytes() + bytes(range(n)))
    return files


def cbir(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("publish")
def test_caltech_is_laid_out_by_classes_without_the_background(tmp_path: Path) -> None:
    done = cbir("data", "caltech101")
    assert done.exit_code == 0, done.stderr
    assert names(tmp_path) == [
        *(f"datasets/caltech101/{c}/image_{i:04}.jpg" for c in ("ant", "bass") for i in (1, 2, 3)),
        "datasets/caltech101/outside/image_0001.jpg",  # a name that climbs out of the archive stays below the folder
    ]
    assert (tmp_path / "datasets/caltech101/ant/image_0002.jpg").read_bytes() == _jpeg(2)


@pytest.mark.usefixtures("publish")
def test_the_first_pictures_of_each_class(tmp_path: Path) -> None:
    assert cbir("data", "caltech101", "--first", "2", "--out", "d").exit_code == 0
    assert [name for name in names(tmp_path / "d/caltech101") if name.startswith("ant/")] == [
        "ant/image_0001.jpg",
        "ant/image_0002.jpg",
    ]
    assert cbir("data", "cifar10", "--first", "1", "--out", "d").exit_code == 0
    assert len(names(tmp_path / "d/cifar10")) == 20


@pytest.mark.usefixtures("publish")
def test_cifar_keeps_every_pixel_in_the_order_of_the_batches(tmp_path: Path) -> None:
    assert cbir("data", "cifar10", "--out", ".").exit_code == 0
    folder = tmp_path / "cifar10"
    assert names(folder) == sorted(
        [f"train/{c}/{i:04}.png" for c in CLASSES for i in range(5)] + [f"test/{c}/0000.png" for c in CLASSES]
    )
    for path, (label, batch) in {"train/cat/0003.png": (3, 3), "test/truck/0000.png": (9, 5)}.items():
        with Image.open(folder / path) as image:
            np.testing.assert_array_equal(np.asarray(image), _pixels(label, batch).transpose(1, 2, 0))


@pytest.mark.usefixtures("publish")
@pytest.mark.parametrize(("name", "items"), [("caltech101", 7), ("cifar10", 50), ("mnist", 5)])
def test_the_source_that_is_printed_reads_it(name: str, items: int) -> None:
    if name == "mnist":
        pytest.importorskip("torchvision")
    done = cbir("data", name)
    assert done.exit_code == 0, done.stderr
    section = yaml.safe_load(done.stdout.splitlines()[-1])["source"]
    assert len(make_section("sources", section).items()) == items


@pytest.mark.usefixtures("publish")
def test_half_a_download_is_gone_on_from(server: Server, tmp_path: Path) -> None:
    whole = len(server.files["caltech-101.zip"])
    server.breaks_after = whole // 2
    broken = cbir("data", "caltech101")
    assert broken.exit_code == 1
    assert broken.stderr.count("\n") == 1
    assert f"broke off after {whole // 2:,} of {whole:,} bytes; run this again" in broken.stderr
    assert not (tmp_path / "datasets/caltech101").exists()

    server.breaks_after = None
    assert cbir("data", "caltech101").exit_code == 0
    assert server.asked[-1] == ("caltech-101.zip", f"bytes={whole // 2}-")
    assert len(names(tmp_path / "datasets/caltech101")) == 7
    assert not (tmp_path / "datasets/.caltech101").exists()


@pytest.mark.usefixtures("publish")
def test_a_server_without_ranges_sends_it_all_again(server: Server) -> None:
    server.breaks_after = 100
    assert cbir("data", "caltech101").exit_code == 1
    server.breaks_after, server.ranges = None, False
    assert cbir("data", "caltech101").exit_code == 0


@pytest.mark.usefixtures("publish")
def test_what_is_whole_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    by_hand = tmp_path / "datasets/.mnist"
    by_hand.mkdir(parents=True)
    for name in list(server.files):
        if name.startswith("train"):
            (by_hand / name).write_bytes(server.files[name])
    assert cbir("data", "mnist").exit_code == 0
    assert [name.partition("-")[0] for name, _ in server.asked] == ["t10k", "t10k"]


@pytest.mark.usefixtures("publish")
@pytest.mark.parametrize("left", ["longer", "other"])
def test_a_wrong_file_is_removed_and_the_next_run_is_right(server: Server, tmp_path: Path, left: str) -> None:
    archive = tmp_path / "datasets/.caltech101/caltech-101.zip"
    archive.parent.mkdir(parents=True)
    content = server.files["caltech-101.zip"]
    archive.write_bytes(content + b"more" if left == "longer" else b"other" + content[5:100])
    wrong = cbir("data", "caltech101")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (1, 1)
    assert "not what was published" in wrong.stderr
    assert not archive.exists()
    assert cbir("data", "caltech101").exit_code == 0


@pytest.mark.usefixtures("publish")
def test_what_a_killed_run_had_laid_out_is_not_taken_for_whole(tmp_path: Path) -> None:
    half = tmp_path / "datasets/.caltech101/laid/ghost"
    half.mkdir(parents=True)
    (half / "image_0001.jpg").write_bytes(b"half")
    assert cbir("data", "caltech101").exit_code == 0
    assert not (tmp_path / "datasets/caltech101/ghost").exists()


@pytest.mark.usefixtures("publish")
def test_a_folder_that_is_there_is_left_alone(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "datasets/mnist/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    done = cbir("data", "mnist")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "exists; remove it" in done.stderr
    assert mine.read_text() == "mine"
    assert server.asked == []


@pytest.mark.usefixtures("publish")
def test_only_one_process_fetches_a_data_set(server: Server, tmp_path: Path) -> None:
    (tmp_path / "datasets/.mnist").mkdir(parents=True)
    with writer_lock(tmp_path / "datasets/.mnist"):
        done = cbir("data", "mnist")
    assert done.exit_code == 1
    assert "another process" in done.stderr
    assert server.asked == []


@pytest.mark.usefixtures("publish")
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["cifar11"], 2, "'cifar11' is no data set that is known here; there are: caltech101, cifar10, mnist"),
        (["corel1k"], 2, "'corel1k' is published without a digest"),
        (["mnist", "--first", "3"], 2, "leave --first out"),
        (["mnist", "--out", "file/below"], 1, "cannot be written"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], status: int, said: str) -> None:
    Path("file").write_text("in the way")
    done = cbir("data", *arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (status, 1)
    assert said in done.stderr


@pytest.mark.usefixtures("publish")
def test_a_server_that_has_not_got_it_or_is_not_there(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    del server.files["caltech-101.zip"]
    gone = cbir("data", "caltech101")
    assert (gone.exit_code, gone.stderr.count("\n")) == (1, 1)
    assert "404" in gone.stderr
    monkeypatch.setitem(PUBLISHED, "mnist", replace(PUBLISHED["mnist"], files={"http://127.0.0.1:9/x.gz": "0"}))
    absent = cbir("data", "mnist")
    assert (absent.exit_code, absent.stderr.count("\n")) == (1, 1)
    assert "127.0.0.1:9" in absent.stderr


def test_addresses_and_digests_are_those_of_torchvision() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    resources = {f"{datasets.MNIST.mirrors[0]}{name}": md5 for name, md5 in datasets.MNIST.resources}
    assert dict(published.PUBLISHED["mnist"].files) == resources
    source = Path(datasets.caltech.__file__).read_text(encoding="utf-8")
    for address, md5 in published.PUBLISHED["caltech101"].files.items():
        assert address in source
        assert md5 in source
