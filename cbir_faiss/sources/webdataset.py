"""WebDataset: images in tar files, each with what is known of it in the members beside it."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import BadImage, InputError, NoAccess
from cbir_faiss.sources._file_source import FileOptions
from cbir_faiss.sources._given import named_item, plain_row
from cbir_faiss.sources._packed import PackedSource

_BLOCK = 512
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_FACTS = ("json", "txt", "cls")
_LONGEST_FACT = 1 << 20


class _Place(NamedTuple):
    shard: Path
    offset: int
    size: int


class WebDataset(PackedSource):
    """One sample an item: members of one name up to its first dot, one of which is an image: ``0.jpg`` rather than
    ``0.depth.png``.

    ``.cls`` is the label, the fields of ``.json`` are payload, ``.txt`` is the payload ``caption``. An item's path is
    ``<shard>/<member>``; fields called ``path``, or ``label`` where that is not the label, are ``payload.path`` and
    ``payload.label``.
    """

    name: ClassVar[str] = "webdataset"

    class Options(FileOptions):
        """shards: a tar file, a folder of them, or a pattern: ``train-{0000..0146}.tar``, ``train-*.tar``. Every number
        between braces has to be there. image: what follows the first dot of the images' names, as ``depth.png``; to be
        given where samples have several images. label: the field of ``.json`` that is the label, where there is no
        ``.cls``."""

        shards: RelativePath
        image: str | None = None
        label: str = "label"

    options: Options

    def _find(self) -> Iterator[tuple[base.Item, _Place]]:
        for shard in _shards(self.options.shards):
            try:
                yield from self._samples(shard)
            except (tarfile.TarError, EOFError) as error:
                raise InputError(
                    f"source 'webdataset': {shard} is not a whole, uncompressed tar file: {error}"
                ) from error
            except OSError as error:
                raise InputError(f"source 'webdataset': {shard}: {error.strerror or error}") from error

    def _samples(self, shard: Path) -> Iterator[tuple[base.Item, _Place]]:
        samples: dict[str, dict[str, Any]] = {}
        end = 0
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isreg():
                    self._note(samples, shard, tar, member)
        with shard.open("rb") as file:
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("it is cut short")
        for name, sample in samples.items():
            images = self._images(sample["images"])
            if len(images) > 1:
                kinds = ", ".join(images)
                raise InputError(
                    f"source 'webdataset': {shard}: sample '{name}' has several images: choose by option image: {kinds}"
                )
            for path, place in images.values():
                yield self._item(f"{shard.stem}/{path}", sample), place

    def _note(self, samples: dict[str, dict[str, Any]], shard: Path, tar: Any, member: tarfile.TarInfo) -> None:
        from cbir_faiss.images.reading import image_suffixes

        name = PurePosixPath(os.fsencode(member.name).decode("utf-8", "backslashreplace"))
        stem, _, kind = name.name.partition(".")
        if not stem:
            return
        sample = samples.setdefault(str(name.with_name(stem)), {"images": {}})
        if name.suffix.lower() in image_suffixes():
            # Of members of one name the last counts, as when they are unpacked.
            sample["images"][kind.lower()] = str(name), _Place(shard, member.offset_data, member.size)
        elif kind.lower() in _FACTS and member.size <= _LONGEST_FACT:
            sample[kind.lower()] = tar.extractfile(member).read()

    def _images(self, there: dict[str, Any]) -> dict[str, Any]:
        """Of the images of a sample, by kind, those that may be its own: the wanted one, or those named most simply."""
        if self.options.image is not None:
            wanted = self.options.image.lower()
            return {kind: image for kind, image in there.items() if kind == wanted}
        return {kind: image for kind, image in there.items() if "." not in kind} or there

    def _item(self, path: str, sample: dict[str, Any]) -> base.Item:
        try:
            document = json.loads(sample.get("json", b"{}"))
            if not isinstance(document, dict):
                raise ValueError("its JSON is no object")
            document = plain_row(path, document)
            facts = {"caption": sample["txt"].decode().strip()} if "txt" in sample else {}
            label = sample["cls"].decode().strip() if "cls" in sample else document.pop(self.options.label, None)
            return named_item(path, label, {**facts, **document})
        except (ValueError, RecursionError, InputError) as error:
            raise InputError(f"source 'webdataset': {path}: {error}") from error

    def _bytes(self, place: _Place, most: int) -> bytes:
        try:
            with place.shard.open("rb") as file:
                file.seek(place.offset)
                data = file.read(min(place.size, most + 1))
        except OSError as error:
            raise NoAccess(str(error.strerror or error)) from error
        if len(data) < min(place.size, most + 1):
            raise BadImage("the tar file is cut short")
        return data

    def _holder(self, place: _Place) -> Path:
        return place.shard

    def _place(self) -> str:
        return f"no image (by suffix) in {self.options.shards}"


def _shards(where: Path) -> list[Path]:
    """The tar files. InputError where there are none, or not all that were named."""
    if where.is_dir():
        found = sorted(where.glob("*.tar"))
    elif numbers := _NUMBERS.search(where.name):
        first, last = numbers.groups()
        names = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        found = [where.with_name(_NUMBERS.sub(name, where.name, count=1)) for name in names]
    else:
        found = sorted(where.parent.glob(where.name)) if "*" in where.name else [where]
    missing = [shard for shard in found if not shard.is_file()]
    if missing:
        raise InputError(f"source 'webdataset': {len(missing)} of {len(found)} shards are not there: {missing[0]}")
    if not found:
        raise InputError(f"source 'webdataset': no tar file: {where}")
    return found
