"""Any data set class of torchvision by name: MNIST, CIFAR10, Caltech101, Flowers102, …, and COCO with its labels."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath, need, resolve_path
from cbir_faiss.errors import BadImage, ConfigError, InputError
from cbir_faiss.sources._file_source import FileOptions, Files

if TYPE_CHECKING:
    from PIL import Image

# Where torchvision's classes keep the class number of each item; not one name is common to all.
_TARGETS = ("targets", "labels", "_labels", "y")
_CLASSES = ("classes", "categories")


class Torchvision(base.Source):
    """``torchvision.datasets.<dataset>(root, **args)``; the path of an item is its number in the data set.

    Labels are class names where the data set has them, else class numbers. They are taken from its list of targets;
    a data set without one is read once to get them. ``CocoDetection`` needs ``args: {annFile: …}``; an item is
    an image there, and its labels are the names of all categories annotated in it.
    """

    name: ClassVar[str] = "torchvision"

    class Options(FileOptions):
        """dataset: the name of the class. root: the folder of the data, where it has one. args: what else the class
        takes, such as ``train``, ``split`` or ``annFile`` (relative to the config file). download: get the data where
        it is absent."""

        dataset: str
        root: RelativePath | None = None
        args: dict[str, Any] = Field(default_factory=dict)
        download: bool = False

        @field_validator("args")
        @classmethod
        def _resolve(cls, args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
            return {key: str(resolve_path(value, info)) if key == "annFile" else value for key, value in args.items()}

    options: Options

    @cached_property
    def _rows(self) -> Files | _Dataset:
        if self.options.dataset == "CocoDetection":
            return Files(_coco(self.options.root, self.options.args), self.options.max_megapixels)
        return _Dataset(_open(self.options))

    def _items(self) -> Sequence[base.Item]:
        return self._rows.items

    def _read(self, index: int) -> Image.Image:
        return self._rows.read(index)

    def _read_reduced(self, index: int, min_side: int) -> Image.Image:
        return self._rows.read(index, min_side)

    def _content_key(self, index: int) -> bytes:
        return self._content(index).key

    def _content(self, index: int) -> base.Content:
        return self._rows.content(index)

    def _stamp(self, index: int) -> base.Stamp | None:
        return self._rows.stamp(index) if isinstance(self._rows, Files) else None


class _Dataset:
    """Items of an open torchvision data set of ``(image, class)`` pairs."""

    def __init__(self, data: Any) -> None:
        self._data = data
        digits = len(str(max(0, len(data) - 1)))
        self.items = [base.Item(f"{row:0{digits}d}", (label,)) for row, label in enumerate(_labels(data))]

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        from cbir_faiss.images.reading import to_rgb

        try:
            image = self._data[index][0]
            return to_rgb(image)
        except Exception as error:  # whatever the data set's own reader meets
            raise BadImage(f"{type(error).__name__}: {error}".splitlines()[0]) from error

    def content(self, index: int) -> base.Content:
        image = self.read(index)
        key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        return base.Content(key, lambda min_side: image)


def _open(options: Torchvision.Options) -> Any:
    datasets = need("torchvision.datasets", "torch")
    kind = getattr(datasets, options.dataset, None)
    if options.dataset not in datasets.__all__ or kind is None:
        near = difflib.get_close_matches(options.dataset, datasets.__all__, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"torchvision has no data set '{options.dataset}'{hint}", path="dataset")
    known = inspect.signature(kind).parameters
    args = dict(options.args)
    if options.root is not None:
        args["root"] = str(options.root)
    if "download" in known:
        args["download"] = options.download
    unknown = sorted(set(args) - set(known))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise ConfigError(f"{options.dataset} does not take {', '.join(unknown)}, but {', '.join(known)}", path="args")
    try:
        return kind(**args)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        hint = "; `download: true` gets it" if "download" in known and not options.download else ""
        reason = " ".join(str(error).split())
        raise InputError(f"source 'torchvision': {options.dataset} in {options.root}: {reason}{hint}") from error


def _labels(data: Any) -> Iterator[str]:
    names = next((getattr(data, key) for key in _CLASSES if isinstance(getattr(data, key, None), (list, tuple))), ())
    for target in _targets(data):
        yield str(names[target]) if isinstance(target, int) and 0 <= target < len(names) else str(target)


def _targets(data: Any) -> Iterable[Any]:
    for key in _TARGETS:
        targets = getattr(data, key, None)
        if targets is not None and len(targets) == len(data):
            return targets.tolist() if hasattr(targets, "tolist") else list(targets)
    return (data[row][1] for row in range(len(data)))


def _coco(root: Path | None, args: dict[str, Any]) -> Iterator[tuple[base.Item, Path]]:
    """Images and category names of a COCO annotation file; JSON that needs no library of its own."""
    if root is None or set(args) != {"annFile"}:
        raise ConfigError("CocoDetection takes root and, in args, annFile: the JSON file of annotations")
    file = Path(args["annFile"])
    try:
        content = json.loads(file.read_bytes())
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        labels: dict[Any, set[str]] = {image["id"]: set() for image in content["images"]}
        for annotation in content["annotations"]:
            labels[annotation["image_id"]].add(names[annotation["category_id"]])
        files = [(image["file_name"], tuple(sorted(labels[image["id"]]))) for image in content["images"]]
    except OSError as error:
        raise InputError(f"source 'torchvision': {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"source 'torchvision': {file} is not a COCO annotation file ({error!r})") from error
    for path, classes in files:
        yield base.Item(path, classes), root / path
