"""How the archives of a data set become the files that a source reads."""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import numpy as np
from PIL import Image


def caltech101(archives: Mapping[str, Path], folder: Path, first: int | None) -> None:
    """``<class>/image_0001.jpg`` of the 101 classes; pictures of the background are no class."""
    with ZipFile(archives["caltech-101.zip"]) as outer:
        name = next(name for name in outer.namelist() if name.endswith("caltech-101/101_ObjectCategories.tar.gz"))
        with outer.open(name) as inner, tarfile.open(fileobj=inner, mode="r|gz") as tar:
            for path, content in _files(tar):
                if path.parent.name in ("BACKGROUND_Google", "..", "") or not re.fullmatch(
                    r"image_\d+\.jpg", path.name
                ):
                    continue
                if first is None or int(path.stem.removeprefix("image_")) <= first:
                    _write(folder / path.parent.name / path.name, content)


def cifar10(archives: Mapping[str, Path], folder: Path, first: int | None) -> None:
    """``train/<class>/0000.png`` and ``test/<class>/0000.png``, numbered in the order of the batches."""
    with tarfile.open(archives["cifar-10-binary.tar.gz"], "r:gz") as tar:
        contents = {path.name: content for path, content in _files(tar)}
    classes = contents["batches.meta.txt"].decode().split()
    for part, batches in {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}.items():
        seen: Counter[str] = Counter()
        for batch in batches:
            # A record is a label, then the red, green and blue plane of 32 x 32 pixels.
            records = np.frombuffer(contents[batch], np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            for label, pixels in zip(records[:, 0], records[:, 1:].reshape(-1, 3, 32, 32), strict=True):
                name = classes[label]
                if first is None or seen[name] < first:
                    path = folder / part / name / f"{seen[name]:04}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(path, compress_level=1)
                seen[name] += 1


def mnist(archives: Mapping[str, Path], folder: Path, first: int | None) -> None:
    """``MNIST/raw/…``, the four files that torchvision reads."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, archive in archives.items():
        with gzip.open(archive) as packed, (raw / name.removesuffix(".gz")).open("wb") as file:
            shutil.copyfileobj(packed, file)


def _files(tar: tarfile.TarFile) -> Iterator[tuple[PurePosixPath, bytes]]:
    for member in tar:
        opened = tar.extractfile(member) if member.isfile() else None
        if opened is not None:
            yield PurePosixPath(member.name), opened.read()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
