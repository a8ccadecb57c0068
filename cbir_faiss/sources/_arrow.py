"""Tables in Arrow or Parquet files: which files a data set's split has, and their rows, block by block."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cbir_faiss.base.options import need
from cbir_faiss.errors import InputError

_FILE = re.compile(r"(?P<name>.+?)(?:-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]{16})?)?\.(?:parquet|arrow)")


def files_of(folder: Path, split: str | None) -> list[Path]:
    """The files of one split of a data set that ``datasets`` saved, or that was downloaded as Parquet files.

    Raises:
        InputError: no such split, several to choose from, or not all of its files are there.
    """
    if not folder.is_dir():
        raise wrong(f"no such folder: {folder}")
    if (folder / "dataset_dict.json").is_file():
        folder = folder / _chosen(folder, _json(folder / "dataset_dict.json").get("splits", []), split)
        if not (folder / "state.json").is_file():
            raise wrong(f"{folder} was copied in part: there is no state.json")
    if (folder / "state.json").is_file():
        try:
            files = [folder / entry["filename"] for entry in _json(folder / "state.json")["_data_files"]]
        except (KeyError, TypeError) as error:
            raise wrong(f"{folder} is damaged: its state.json does not say which files there are") from error
        return _all_there(folder, files, max(1, len(files)))
    return _by_name(folder, split)


def _by_name(folder: Path, split: str | None) -> list[Path]:
    """``train-00000-of-00004.parquet``, or ``train/0000.parquet``; a data set's configurations lie in folders."""
    found: dict[str, dict[tuple[Path, str, int, str], dict[int, Path]]] = {}
    for file in sorted(file for kind in ("parquet", "arrow") for file in folder.rglob(f"*.{kind}")):
        shard = _FILE.fullmatch(file.name)
        if shard is None or file.name.startswith("cache-"):
            continue
        name, number = shard["name"], shard["number"]
        chosen = name.rpartition("-")[2]  # datasets puts the data set's name before the split's
        if number is None and name.isdecimal():
            number, chosen, name = name, file.parent.name, ""
        whole = file.parent, name, int(shard["count"] or 0), file.suffix
        found.setdefault(chosen, {}).setdefault(whole, {})[int(number or 0)] = file
    chosen = _chosen(folder, sorted(found), split)
    if len(found[chosen]) > 1:
        first = ", ".join(str(next(iter(files.values())).relative_to(folder)) for files in found[chosen].values())
        raise wrong(f"{folder} has several data sets with a split '{chosen}'; give the folder of one as path: {first}")
    ((_, _, count, _), numbered) = next(iter(found[chosen].items()))
    count = count or max(numbered) + 1
    return _all_there(folder, [numbered[number] for number in range(count) if number in numbered], count)


class Table:
    """Rows of several files, one after the other; of Parquet a block is a row group, of Arrow the mapped file.

    features: what ``datasets`` notes of the columns, by name.

    Raises:
        InputError: a file is cut short or damaged.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._arrow: Any = need("pyarrow", "parquet")
        self._parquet: Any = need("pyarrow.parquet", "parquet")
        self.schema = self._read(files[0], lambda opened: getattr(opened, "schema_arrow", None) or opened.schema)
        try:
            told = json.loads((self.schema.metadata or {}).get(b"huggingface", b"{}"))
            self.features: dict[str, Any] = dict((told.get("info") or {}).get("features") or {})
        except (ValueError, TypeError, AttributeError) as error:
            raise wrong(f"{files[0]} is damaged: what it says of its columns cannot be read") from error

    def blocks(self, columns: list[str]) -> Iterator[tuple[Path, int, Any]]:
        """File, number of the block in it, and an Arrow table of these columns; ``image.path`` is a part of one."""
        for file in self.files:
            for number in range(self._read(file, lambda opened: getattr(opened, "num_row_groups", 1))):
                yield file, number, self.block(file, number, columns)

    def block(self, file: Path, number: int, columns: list[str]) -> Any:
        """One of them."""
        if file.suffix == ".parquet":
            return self._read(file, lambda opened: opened.read_row_group(number, columns=columns))
        whole = list(dict.fromkeys(name.partition(".")[0] for name in columns))
        return self._read(file, lambda opened: opened.read_all().select(whole))

    def _read(self, file: Path, what: Any) -> Any:
        try:
            if file.suffix == ".parquet":
                with self._parquet.ParquetFile(file) as opened:
                    return what(opened)
            return what(self._arrow.ipc.open_stream(self._arrow.memory_map(str(file))))
        except (OSError, ValueError) as error:  # pyarrow's own errors are among these
            raise wrong(f"{file} is cut short or damaged: {' '.join(str(error).split())}") from error


def wrong(what: str) -> InputError:
    """The error that says so."""
    return InputError(f"source 'huggingface': {what}")


def _chosen(folder: Path, splits: list[str], split: str | None) -> str:
    if not splits:
        raise wrong(f"no Arrow or Parquet files below {folder}")
    if split is None and len(splits) > 1:
        raise wrong(f"{folder} has several splits; choose one by option split: {', '.join(splits)}")
    if split is not None and split not in splits:
        raise wrong(f"{folder} has no split '{split}', but {', '.join(splits)}")
    return split or splits[0]


def _all_there(folder: Path, files: list[Path], count: int) -> list[Path]:
    there = sum(file.is_file() for file in files)
    if there < max(count, len(files)):
        raise wrong(f"{folder} was copied or downloaded in part: {there} of {max(count, len(files))} files are there")
    return files


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise wrong(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise wrong(f"{file} is no JSON object")
    return content
