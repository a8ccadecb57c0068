"""What has been read from an engine so far, on disk, so that a pull that was killed goes on, and by id.

    vectors.npy      float32 (n, dim), or codes; its head says n when all is read
    ids, ends        int64 (n,): the id of each row, and where its document ends
    documents        JSON, one after the other
    state.json       how much of these files counts, and where the engine is to go on

Rows are appended and synced, then the state is replaced; what was appended after the last state is cut off.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from cbir_faiss._lib.files import flush_durably, write_durably
from cbir_faiss.base import Backend
from cbir_faiss.types import Batch, Codes, Ids

_EXAMPLES = 5


@dataclass
class LeftOut:
    """How many items were left out for one reason, and the keys of the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, keys: Sequence[str]) -> None:
        self.count += len(keys)
        self.examples += keys[: _EXAMPLES - len(self.examples)]


@dataclass
class _State:
    """key: whose rows these are. text: bytes of documents. cursor: what the engine's ``scroll`` goes on from."""

    key: str
    rows: int = 0
    text: int = 0
    cursor: int | str | None = None
    left_out: dict[str, LeftOut] = field(default_factory=dict)


class Spool:
    """Rows in ``folder``: those of an earlier run if they have the same ``key``, else none."""

    def __init__(self, folder: Path, key: str, backend: Backend) -> None:
        """For what ``backend`` holds, which is there: its floats or codes."""
        binary, dim = backend.kind == "binary", int(backend.dim or 0)
        self.folder, self._dtype = folder, np.dtype(np.uint8 if binary else np.float32)
        self._width = dim // 8 if binary else dim
        self._head = len(self._head_of(0))
        folder.mkdir(parents=True, exist_ok=True)
        self._state = self._stored(key) or _State(key)
        self._files: dict[str, IO[bytes]] = {}
        self._open()

    @property
    def rows(self) -> int:
        return self._state.rows

    @property
    def cursor(self) -> int | str | None:
        return self._state.cursor

    @property
    def left_out(self) -> dict[str, LeftOut]:
        """By reason."""
        return self._state.left_out

    @property
    def vectors(self) -> Path:
        """The file of them, which is whole after ``close``."""
        return self.folder / "vectors.npy"

    def restart(self) -> None:
        """Forget what was read."""
        self.close()
        self._state = _State(self._state.key)
        self._open()

    def append(self, batch: Batch) -> None:
        """The rows of ``batch``, durably, and what it left out."""
        texts = [json.dumps(payload).encode() for payload in batch.payload]
        ends = self._state.text + np.cumsum([len(text) for text in texts], dtype=np.int64)
        self._write("vectors.npy", np.ascontiguousarray(batch.vectors, self._dtype).tobytes())
        self._write("ids", batch.ids.tobytes())
        self._write("ends", ends.tobytes())
        self._write("documents", b"".join(texts))
        for key, reason in batch.left_out:
            self._leave_out(reason, [key])
        self._state.rows += len(batch.ids)
        self._state.text += sum(map(len, texts))
        self._state.cursor = batch.cursor if batch.cursor is not None else int(batch.ids[-1])
        write_durably(self.folder / "state.json", json.dumps(asdict(self._state)).encode())

    def read(self, rows: Ids) -> tuple[Ids, Codes, list[dict[str, Any]]]:
        """Ids, vectors and documents of some rows."""
        ids, ends = self._map("ids", np.int64), self._map("ends", np.int64)
        vectors = self._map("vectors.npy", self._dtype, self._head).reshape(self.rows, self._width)
        text = self._map("documents", np.uint8)
        spans = zip(np.where(rows > 0, ends[rows - 1], 0).tolist(), ends[rows].tolist(), strict=True)
        return ids[rows], vectors[rows], [json.loads(bytes(text[start:end])) for start, end in spans]

    def order(self) -> Ids:
        """The rows in the order of their ids; of an id that occurs several times, the first."""
        ids, rows = np.unique(self._map("ids", np.int64), return_index=True)
        if len(ids) < self.rows:
            again = np.setdiff1d(np.arange(self.rows), rows)
            self._leave_out("another item has its id", self._map("ids", np.int64)[again].tolist())
        return rows

    def close(self) -> None:
        """Say in the head of the vectors how many there are, and give the files back."""
        for name, file in self._files.items():
            if name == "vectors.npy":
                file.seek(0)
                file.write(self._head_of(self.rows))
            file.close()
        self._files = {}

    def _stored(self, key: str) -> _State | None:
        """The state of an earlier run; None where there is none of this ``key``, or its files are not whole."""
        try:
            said = json.loads((self.folder / "state.json").read_text())
            said["left_out"] = {reason: LeftOut(**some) for reason, some in said["left_out"].items()}
            state = _State(**said)
            whole = all((self.folder / name).stat().st_size >= size for name, size in self._sizes(state).items())
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return state if whole and state.key == key else None

    def _sizes(self, state: _State) -> dict[str, int]:
        rows = 8 * state.rows
        vectors = self._head + self._dtype.itemsize * self._width * state.rows
        return {"vectors.npy": vectors, "ids": rows, "ends": rows, "documents": state.text}

    def _open(self) -> None:
        for name, size in self._sizes(self._state).items():
            path = self.folder / name
            path.touch()
            self._files[name] = file = path.open("r+b")
            if name == "vectors.npy":
                file.write(self._head_of(0))
            file.truncate(size)
            file.seek(size)

    def _write(self, name: str, content: bytes) -> None:
        file = self._files[name]
        file.write(content)
        flush_durably(file)

    def _map(self, name: str, dtype: Any, offset: int = 0) -> Any:
        return np.memmap(self.folder / name, dtype, "r", offset)

    def _leave_out(self, reason: str, keys: Sequence[object]) -> None:
        self.left_out.setdefault(reason, LeftOut()).add([str(key) for key in keys])

    def _head_of(self, rows: int) -> bytes:
        """The head of the ``.npy`` file, as long for one number of rows as for another."""
        head, descr = io.BytesIO(), np.lib.format.dtype_to_descr(self._dtype)
        shape = (rows, self._width)
        np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
        return head.getvalue()


class InOrder:
    """A backend that is read in the order of ids where it does not scroll so: its keys are texts. Uses ``folder``."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self._backend, self._folder = backend, folder
        self.dim, self.kind, self.metric = backend.dim, backend.kind, backend.metric
        self.count, self.search = backend.count, backend.search

    def scroll(self, batch_size: int = 1000) -> Iterator[Batch]:
        spool = Spool(self._folder, "", self._backend)
        for batch in self._backend.scroll(batch_size):
            spool.append(batch)
        spool.close()
        order = spool.order()
        for start in range(0, len(order), batch_size):
            yield Batch(*spool.read(order[start : start + batch_size]))
