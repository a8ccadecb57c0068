"""The data sets of the configs: where each is published, with which digest, and how it is laid out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cbir_faiss.datasets import layouts
from cbir_faiss.datasets.download import download
from cbir_faiss.errors import CbirError, ConfigError
from cbir_faiss.storage.files import writing_to
from cbir_faiss.storage.lock import writer_lock

Layout = Callable[[Mapping[str, Path], Path, int | None], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Published:
    """Addresses of archives with their MD5, and what is made of them: ``source`` reads the folder ``{root}``."""

    files: Mapping[str, str]
    layout: Layout
    source: str
    classes: bool = True


# Addresses and digests are those of torchvision; CIFAR-10's, of the version without pickles, are of its authors' page.
PUBLISHED: dict[str, Published] = {
    "caltech101": Published(
        {"https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip": "3138e1922a9193bfa496528edbbc45d0"},
        layouts.caltech101,
        "{{name: folder, root: {root}}}",
    ),
    "cifar10": Published(
        {"https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        layouts.cifar10,
        "{{name: folder, root: {root}/train}}",
    ),
    "mnist": Published(
        {
            f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}-ubyte.gz": md5
            for name, md5 in {
                "train-images-idx3": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1": "d53e105ee54ea40749a09fcbcd1e9432",
                "t10k-images-idx3": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1": "ec29112dd5afa0611ce80d1b7f02629c",
            }.items()
        },
        layouts.mnist,
        "{{name: torchvision, dataset: MNIST, root: {root}}}",
        classes=False,
    ),
}
_BY_HAND = {
    "corel1k": "is published without a digest, so it is not fetched here; lay it out as corel1k/<class>/*.jpg",
    "oxford": "is laid out as distributed; docs/configuration.md says how",
    "holidays": "is laid out as distributed; docs/configuration.md says how",
}


def fetch(
    name: str,
    out: Path,
    *,
    first: int | None = None,
    progress: Callable[[str], Progress | None] = lambda file: None,
) -> Path:
    """Download a published data set, check it and lay it out as the folder ``out / name``, which is returned.

    Archives wait in ``out / ".name"``, from where a stopped run goes on; the folder appears whole.

    Args:
        first: so many pictures of each class, all where it is None.
        progress: gives what counts the bytes of the file of that name.

    Raises:
        ConfigError: no such data set, or ``first`` of one that is not laid out by classes.
        CbirError: the folder exists, another process fetches the same, the network or the disk fails.
    """
    published = _published(name, first)
    folder, work = out / name, out / f".{name}"
    _refuse_existing(folder)
    with writing_to(work):
        work.mkdir(parents=True, exist_ok=True)
    with writer_lock(work):
        _refuse_existing(folder)
        archives = {}
        for address, md5 in published.files.items():
            archive = work / address.rsplit("/", 1)[1]
            download(address, md5, archive, progress(archive.name))
            archives[archive.name] = archive
        with writing_to(folder):
            laid = work / "laid"
            shutil.rmtree(laid, ignore_errors=True)
            laid.mkdir()
            published.layout(archives, laid, first)
            laid.replace(folder)
            shutil.rmtree(work)
    return folder


def _published(name: str, first: int | None) -> Published:
    if name not in PUBLISHED:
        why = _BY_HAND.get(name, "is no data set that is known here")
        raise ConfigError(f"'{name}' {why}; there are: {', '.join(sorted(PUBLISHED))}")
    if first is not None and not PUBLISHED[name].classes:
        raise ConfigError(f"'{name}' is laid out as torchvision reads it, whole: leave --first out")
    return PUBLISHED[name]


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise CbirError(f"{folder}: exists; remove it to have it fetched again, or give another --out")
