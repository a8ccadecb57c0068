"""`cbir data`, from a server on this machine: what arrives is checked and laid out, and half of it is gone on from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from _published import CLASSES, Server, jpeg, pixels_of, serving
from _published import publish as publish_at
from click.testing import CliRunner, Result
from PIL import Image

from cbir_faiss.base.registry import make_section
from cbir_faiss.cli import main
from cbir_faiss.datasets.published import PUBLISHED
from cbir_faiss.storage.lock import writer_lock


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish_at(server, monkeypatch)
    monkeypatch.chdir(tmp_path)


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
    assert (tmp_path / "datasets/caltech101/ant/image_0002.jpg").read_bytes() == jpeg(2)


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
            np.testing.assert_array_equal(np.asarray(image), pixels_of(label, batch).transpose(1, 2, 0))


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


def test_addresses_and_digests_of_mnist_are_those_of_torchvision() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    resources = {f"{datasets.MNIST.mirrors[0]}{name}": md5 for name, md5 in datasets.MNIST.resources}
    assert dict(PUBLISHED["mnist"].files) == resources


def test_addresses_and_digests_of_caltech_are_those_of_torchvision() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    source = Path(datasets.caltech.__file__).read_text(encoding="utf-8")
    if "drive.google.com" in source:
        pytest.skip(f"torchvision {version('torchvision')} names the address that Caltech 101 had before")
    for address, md5 in PUBLISHED["caltech101"].files.items():
        assert address in source
        assert md5 in source
