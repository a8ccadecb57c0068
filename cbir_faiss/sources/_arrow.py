"""Tables of a data set in Arrow or Parquet files: which files a split has, and what their schema says of columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cbir_faiss.base.options import need
from cbir_faiss.errors import InputError

_SHARD = re.compile(
    r"(?:.*?-)??(?P<split>[A-Za-z0-9_.]+?)(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))?\.(?:parquet|arrow)"
)


def files_of(folder: Path, split: str | None) -> list[Path]:
    """The files of one split of a data set that ``datasets`` saved, or that was downloaded as Parquet files.

    Raises:
        InputError: no such split, several to choose from, or not all of its files are there.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    if (folder / "dataset_dict.json").is_file():
        folder = folder / _chosen(folder, _json(folder / "dataset_dict.json").get("splits", []), split)
    if (folder / "state.json").is_file():
        files = [folder / entry["filename"] for entry in _json(folder / "state.json")["_data_files"]]
        return _all_there(folder, files, len(files))
    found: dict[str, dict[str, Path]] = {}
    counts: dict[str, int] = {}
    for file in sorted(file for kind in ("parquet", "arrow") for file in folder.rglob(f"*.{kind}")):
        shard = _SHARD.fullmatch(file.name)
        if shard is None or file.name.startswith("cache-"):
            continue
        name = file.parent.name if shard["split"].isdecimal() else shard["split"]
        found.setdefault(name, {})[str(file)] = file
        counts[name] = max(counts.get(name, 0), int(shard["count"] or 0))
    chosen = _chosen(folder, sorted(found), split)
    files = list(found[chosen].values())
    return _all_there(folder, files, counts[chosen] or len(files))


class Table:
    """Rows of several files, one after the other."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._arrow: Any = need("pyarrow", "parquet")
        self.schema = self._open(files[0])[0]
        told = json.loads((self.schema.metadata or {}).get(b"huggingface", b"{}"))
        self.features: dict[str, Any] = (told.get("info") or {}).get("features") or {}

    def blocks(self, columns: list[str]) -> Iterator[tuple[Path, int, Any]]:
        """File, number of the block in it, and the block: an Arrow table of these columns (or parts, as ``image.path``)."""
        for file in self.files:
            for number in range(self._open(file)[1]):
                yield file, number, self.block(file, number, columns)

    def block(self, file: Path, number: int, columns: list[str]) -> Any:
        """One block of one file. InputError where the file is damaged."""
        try:
            if file.suffix == ".parquet":
                with need("pyarrow.parquet", "parquet").ParquetFile(file) as parquet:
                    return parquet.read_row_group(number, columns=columns)
            with self._stream(file) as stream:
                for _ in range(number):
                    stream.read_next_batch()
                table = self._arrow.Table.from_batches([stream.read_next_batch()])
            return _selected(table, columns)
        except (OSError, ValueError, StopIteration) as error:
            raise InputError(f"{file} is cut short or damaged: {' '.join(str(error).split())}") from error

    def _open(self, file: Path) -> tuple[Any, int]:
        """Schema and number of blocks."""
        try:
            if file.suffix == ".parquet":
                with need("pyarrow.parquet", "parquet").ParquetFile(file) as parquet:
                    return parquet.schema_arrow, parquet.num_row_groups
            with self._stream(file) as stream:
                return stream.schema, sum(1 for _ in stream)
        except (OSError, ValueError) as error:  # pyarrow's own errors are among these
            raise InputError(f"{file} is cut short or damaged: {' '.join(str(error).split())}") from error

    def _stream(self, file: Path) -> Any:
        return self._arrow.ipc.open_stream(self._arrow.memory_map(str(file)))


def _selected(table: Any, columns: list[str]) -> Any:
    """As Parquet selects, ``image.path`` is one field of the column ``image``."""
    whole = [name for name in dict.fromkeys(name.split(".")[0] for name in columns)]
    return table.select(whole)


def _chosen(folder: Path, splits: list[str], split: str | None) -> str:
    if not splits:
        raise InputError(f"no Arrow or Parquet files below {folder}")
    if split is None and len(splits) > 1:
        raise InputError(f"{folder} has several splits; choose one by option split: {', '.join(splits)}")
    if split is not None and split not in splits:
        raise InputError(f"{folder} has no split '{split}', but {', '.join(splits)}")
    return split or splits[0]


def _all_there(folder: Path, files: list[Path], count: int) -> list[Path]:
    there = [file for file in files if file.is_file()]
    if len(there) < count:
        raise InputError(f"{folder} was copied or downloaded in part: {len(there)} of {count} files are there")
    return files


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no JSON object")
    return content
