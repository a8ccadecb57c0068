"""Oxford5k and Paris6k: buildings, with a ground truth of good, ok and junk images for each of 55 queries."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import BadImage, InputError
from cbir_faiss.sources._file_source import FileOptions, FileSource
from cbir_faiss.sources._revisited import Asked, read_revisited
from cbir_faiss.sources.folder import existing_folder, images_below, shown

if TYPE_CHECKING:
    from PIL import Image

_LISTS = ("good", "ok", "junk")
_SHOWN = 3  # of the names that are missing
Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""


@dataclass(frozen=True)
class _Query:
    """One query of the ground truth: its name (``all_souls_1``), the name of its image, and where the building is."""

    name: str
    image: str
    box: Box
    lists: dict[str, frozenset[str]]


class Oxford(FileSource):
    """The images of Oxford5k or Paris6k as a database, or the building in each of the queries as queries.

    Lay the data out as it is distributed: ``images`` is the folder with the pictures (``all_souls_000013.jpg``; at any
    depth, as Paris6k has them), ``truth`` the one with four text files a query: ``all_souls_1_query.txt`` (one line,
    ``oxc1_all_souls_000013 136.5 34.1 648.5 955.7``: image and box; a leading ``oxc1_`` is dropped) and
    ``all_souls_1_good.txt``, ``_ok.txt`` and ``_junk.txt`` (an image name a line). Then

        source: {name: oxford, images: jpg/, truth: gt/}
        queries: {source: {name: oxford, images: jpg/, truth: gt/, part: queries}}

    A query's label is its own name, an image's labels are the queries whose good or ok image it is, and queries whose
    junk it is ignore it (also where it is listed as good or ok too). The query's own picture is among the good ones
    and counts, as in the data's own evaluation. That is ``map_trapezoid@k``, k the number of images; ``map_full@k`` is
    the AP of the rest of the literature.

    With a JSON file as ``truth`` the data is revisited Oxford or Paris (Radenović et al., CVPR 2018): the mapping of
    its ``gnd_roxford5k.pkl`` (``imlist``, ``qimlist``, ``gnd``) as JSON, because nothing is unpickled here.
    ``protocol`` says what is right and what ignored; queries with nothing to find under it are left out, and so are
    pictures that are not in ``imlist``.

    A listed name without a picture is an error, because the measure would be wrong; ``missing: skip`` leaves such
    names out, and the queries whose picture is missing.
    """

    name: ClassVar[str] = "oxford"

    class Options(FileOptions):
        """images, truth: the folders, or truth a JSON file of the revisited data. part: which side. crop: whether a
        query is its box or its whole image. protocol: of the revisited data; ``medium`` where left out."""

        images: RelativePath
        truth: RelativePath
        part: Literal["database", "queries"] = "database"
        crop: bool = True
        missing: Literal["error", "skip"] = "error"
        protocol: Literal["easy", "medium", "hard"] | None = None

        @model_validator(mode="after")
        def _goes_together(self) -> Oxford.Options:
            if self.protocol and self.truth.suffix != ".json":
                raise ValueError("a protocol is of the revisited data, whose truth is a .json file")
            return self

    options: Options

    @property
    def root(self) -> Path | None:
        return self.options.images if self.options.part == "database" else None

    def _find(self) -> Iterator[tuple[base.Item, Path]]:
        paths, queries = self._pictures, self._queries
        if self.options.part == "queries":
            for query in queries:
                payload = {"image": query.image, "box": list(query.box)}
                yield base.Item(query.name, (query.name,), payload), paths[query.image]
            return
        for image, path in paths.items():
            if self._revisited and image not in self._revisited[0]:
                continue
            labels = [q.name for q in queries if image in q.lists["good"] or image in q.lists["ok"]]
            ignored = [q.name for q in queries if image in q.lists["junk"]]
            yield base.Item(shown(path.relative_to(self.options.images)), tuple(labels), {}, tuple(ignored)), path

    @cached_property
    def _pictures(self) -> dict[str, Path]:
        """The pictures by the name that the ground truth has for them: the file's name without its suffix."""
        folder = existing_folder(self.options.images, self.name)
        found: dict[str, Path] = {}
        for path in images_below(folder):
            if path.stem in found:
                raise InputError(f"source 'oxford': two pictures are called '{path.stem}': {found[path.stem]}, {path}")
            found[path.stem] = path
        return found

    @cached_property
    def _revisited(self) -> tuple[frozenset[str], list[Asked]] | None:
        if self.options.truth.suffix != ".json":
            return None
        return read_revisited(self.options.truth, self.options.protocol or "medium")

    def _asked(self) -> list[_Query]:
        if self._revisited:
            return [
                _Query(
                    asked.image, asked.image, asked.box, {"good": asked.right, "ok": frozenset(), "junk": asked.ignored}
                )
                for asked in self._revisited[1]
            ]
        folder = existing_folder(self.options.truth, self.name)
        queries = [_read_query(path) for path in sorted(folder.glob("*_query.txt"))]
        if not queries:
            raise InputError(f"source 'oxford': no *_query.txt in {folder}")
        return queries

    @cached_property
    def _queries(self) -> list[_Query]:
        queries = self._asked()
        if self._revisited and self.options.missing == "error":
            self._check_all_there(self._revisited[0])
        for query in queries:
            lost = sorted({query.image, *frozenset().union(*query.lists.values())} - set(self._pictures))
            if lost and self.options.missing == "error":
                raise InputError(
                    f"source 'oxford': query '{query.name}' names {len(lost)} images that are not below "
                    f"{self.options.images}, '{lost[0]}' first; missing: skip goes on without them"
                )
        return [query for query in queries if query.image in self._pictures]

    def _check_all_there(self, listed: frozenset[str]) -> None:
        """Most of the revisited database is in no query's lists, and makes the search harder all the same."""
        lost = sorted(listed - set(self._pictures))
        if lost:
            first = ", ".join(f"'{name}'" for name in lost[:_SHOWN])
            raise InputError(
                f"source 'oxford': {len(lost):,} of {len(listed):,} images of imlist are not below "
                f"{self.options.images}: {first}{', …' if len(lost) > _SHOWN else ''}; "
                "missing: skip goes on without them"
            )

    def _place(self) -> str:
        return (
            f"no image file (by suffix) below {self.options.images}, or none that a query in {self.options.truth} names"
        )

    def _read(self, index: int) -> Image.Image:
        return self._cropped(index, super()._read(index))

    def _read_reduced(self, index: int, min_side: int) -> Image.Image:
        # A box is in pixels of the whole picture.
        return super()._read_reduced(index, min_side) if self._box(index) is None else self._read(index)

    def _content_key(self, index: int) -> bytes:
        return self._key(index, super()._content_key(index))

    def _content(self, index: int) -> base.Content:
        whole = super()._content(index)
        if self._box(index) is None:
            return whole
        return base.Content(self._key(index, whole.key), lambda min_side: self._cropped(index, whole.read(None)))

    def _key(self, index: int, whole: bytes) -> bytes:
        box = self._box(index)
        return whole if box is None else hashlib.sha256(whole + repr(box).encode()).digest()

    def _cropped(self, index: int, image: Image.Image) -> Image.Image:
        box = self._box(index)
        if box is None:
            return image
        left, top, right, bottom = (round(edge) for edge in box)
        left, top, right, bottom = max(0, left), max(0, top), min(image.width, right), min(image.height, bottom)
        if left >= right or top >= bottom:
            raise BadImage(f"its box {box} lies outside of its {image.width} x {image.height} pixels")
        return image.crop((left, top, right, bottom))

    def _box(self, index: int) -> Box | None:
        """The part that item ``index`` is of its picture, None where it is all of it."""
        if self.options.part == "database" or not self.options.crop:
            return None
        x1, y1, x2, y2 = self.items()[index].payload["box"]
        return x1, y1, x2, y2


def _read_query(path: Path) -> _Query:
    """A query and its three lists, from the files beside ``path``.

    Raises:
        InputError: a file that is missing, or a line of another form; the message says which.
    """
    name = path.name.removesuffix("_query.txt")
    lines = _lines(path)
    if len(lines) != 1:
        raise InputError(f"{path}: one line 'image x1 y1 x2 y2', got {len(lines)} lines")
    image, box = _parse_query(path, lines[0])
    lists = {kind: frozenset(_names(path.with_name(f"{name}_{kind}.txt"))) for kind in _LISTS}
    return _Query(name, image, box, lists)


def _parse_query(path: Path, line: str) -> tuple[str, Box]:
    image, *numbers = line.split()
    try:
        x1, y1, x2, y2 = (float(number) for number in numbers)
    except ValueError as error:
        raise InputError(f"{path}: must be 'image x1 y1 x2 y2', not '{line}'") from error
    if not (math.isfinite(x1 + y1 + x2 + y2) and x1 < x2 and y1 < y2):
        raise InputError(f"{path}: a box with x1 < x2 and y1 < y2, not '{line}'")
    return image.removeprefix("oxc1_"), (x1, y1, x2, y2)


def _names(path: Path) -> Iterator[str]:
    for line in _lines(path):
        if len(line.split()) != 1:
            raise InputError(f"{path}: one image name a line, not '{line}'")
        yield line


def _lines(path: Path) -> list[str]:
    """The lines of a text file, stripped; empty ones left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"source 'oxford': cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"source 'oxford': {path}: not UTF-8 text") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
