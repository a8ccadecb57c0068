"""A data set that FiftyOne has exported as ``FiftyOneDataset``, read without it."""

from __future__ import annotations

import datetime
import difflib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import InputError
from cbir_faiss.sources._file_source import FileOptions, FileSource
from cbir_faiss.sources._given import is_text, named_item, plain_row
from cbir_faiss.sources.folder import existing_folder

_DEFAULT = "ground_truth"
_INSIDE = ("classifications", "detections")  # fields of a label that is a list of labels
_NO_FACTS = ("filepath", "metadata")


class FiftyOne(FileSource):
    """One sample an item, called by its ``filepath``. Samples that are no images are passed over.

    The payload has the sample's ``id``, its ``tags`` and its other fields; of a field of labels, the names of the
    classes. What lies in the sample as bytes (embeddings, masks) stays there. Fields called ``path`` and ``label`` are
    ``payload.path`` and ``payload.label``.
    """

    name: ClassVar[str] = "fiftyone"

    class Options(FileOptions):
        """path: the folder of the export, with ``metadata.json`` and ``samples.json``. label_field: its labels are
        those of the items; ``ground_truth``, or else the only field of classifications, where left out. root: what
        relative paths are relative to, where the images were not exported; the folder itself where left out."""

        path: RelativePath
        label_field: str | None = None
        root: RelativePath | None = None

    options: Options

    @property
    def root(self) -> Path:
        return self.options.root or self.options.path

    def _find(self) -> Iterator[tuple[base.Item, Path]]:
        field, seen = self._field, set[str]()
        for number, sample in enumerate(self._samples, start=1):
            if sample.get("_media_type", "image") != "image":
                continue
            item = self._item(f"sample {number}", sample, field)
            if item.path in seen:
                raise self._wrong(f"sample {number}: '{item.path}' is there twice")
            seen.add(item.path)
            yield item, self.root / item.path

    def _item(self, where: str, sample: dict[str, Any], field: str | None) -> base.Item:
        path = sample.get("filepath")
        if not isinstance(path, str) or not path or "\0" in path:
            raise self._wrong(f"{where}: 'filepath' must be the path of an image, not {path!r}")
        facts = {"id": _plain(sample.get("_id"))}
        facts |= {key: _plain(value) for key, value in sample.items() if _is_fact(key) and key != field}
        labels = _labels(sample.get(field)) if field else []
        item = named_item(path, labels, plain_row(where, facts))
        if not is_text(item):
            raise self._wrong(f"{where}: it holds a lone surrogate, which is no text")
        return item

    @cached_property
    def _field(self) -> str | None:
        """The field whose labels are those of the items; None where there is none."""
        wanted = self.options.label_field
        fields = {key: value for sample in self._samples for key, value in sample.items() if _is_fact(key)}
        if wanted in fields or (wanted is None and _DEFAULT in fields):
            return wanted or _DEFAULT
        if wanted is not None:
            near = difflib.get_close_matches(wanted, fields, n=3) or sorted(fields)
            raise self._wrong(f"no sample has a field '{wanted}'; did you mean {', '.join(near)}?")
        known = sorted({key for sample in self._samples for key, value in sample.items() if _is_class(value)})
        if len(known) > 1:
            raise self._wrong(
                f"there are several fields of classifications: give option label_field: {', '.join(known)}"
            )
        return known[0] if known else None

    @cached_property
    def _samples(self) -> list[dict[str, Any]]:
        folder = existing_folder(self.options.path, self.name)
        files = sorted((folder / "samples").glob("*.json")) or [folder / "samples.json"]
        for file in (folder / "metadata.json", *files[:1]):
            if not file.is_file():
                raise self._wrong(f"no {file.name} there: give the folder of an export as FiftyOneDataset")
        self._read_json(folder / "metadata.json")
        documents = [self._read_json(file) for file in files]
        samples = documents[0].get("samples") if files[0].name == "samples.json" else documents
        if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
            raise self._wrong("samples.json has no list 'samples': give the folder of an export as FiftyOneDataset")
        return samples

    def _read_json(self, file: Path) -> dict[str, Any]:
        try:
            document = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"{file.name} is not whole: {error}") from error
        except OSError as error:
            raise self._wrong(f"{file.name}: {error.strerror}") from error
        if not isinstance(document, dict):
            raise self._wrong(f"{file.name} must be a JSON object, not {type(document).__name__}")
        return document

    def _wrong(self, what: str) -> InputError:
        return InputError(f"source 'fiftyone': {self.options.path}: {what}")

    def _place(self) -> str:
        return f"no sample that is an image in {self.options.path}"


def _is_fact(key: str) -> bool:
    return not key.startswith("_") and key not in _NO_FACTS


def _is_class(value: Any) -> bool:
    return isinstance(value, dict) and value.get("_cls") in ("Classification", "Classifications")


def _labels(value: Any) -> list[str]:
    """The names of the classes in a field, each once."""
    plain = _plain(value)
    some = plain if isinstance(plain, list) else [plain]
    return list(dict.fromkeys(str(one) for one in some if isinstance(one, str | int | float)))


def _plain(value: Any) -> Any:
    """A value of MongoDB's extended JSON as JSON, a label as the name of its class; None of what has no such form."""
    if isinstance(value, list):
        return [one for one in map(_plain, value) if one is not None]
    if not isinstance(value, dict):
        return value
    for key in ("$oid", "$date", "$numberInt", "$numberLong", "$numberDouble"):
        if key in value:
            return _extended(key, value[key])
    if any(key.startswith("$") for key in value):
        return None
    inside = next((key for key in _INSIDE if key in value), None)
    if inside or "label" in value:
        return _plain(value[inside or "label"])
    plain = {key: _plain(one) for key, one in value.items() if _is_fact(key)}
    return {key: one for key, one in plain.items() if one is not None}


def _extended(kind: str, value: Any) -> Any:
    try:
        if kind == "$date" and not isinstance(value, str):
            since = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
            return (since + datetime.timedelta(milliseconds=_plain(value))).isoformat()
        return str(value) if kind in ("$oid", "$date") else float(value) if kind == "$numberDouble" else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
