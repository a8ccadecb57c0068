"""Transactions: each makes the next generation of a collection, or nothing.

New files are written and synced first, then the manifest, then CURRENT is renamed; whoever is killed before that has
changed nothing. What neither this generation nor the one before it lists is removed afterwards: readers keep what they
opened, and one that is just opening finds its files.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib.files import sync
from cbir_faiss.base import Backend
from cbir_faiss.pipeline.fill import Part, fill
from cbir_faiss.storage.files import save_array, sync_tree
from cbir_faiss.storage.lock import LOCK
from cbir_faiss.storage.manifest import (
    FileEntry,
    Manifest,
    Pending,
    SegmentEntry,
    Training,
    commit,
    describe_files,
    read_manifest,
)
from cbir_faiss.storage.segment import Block, Segment, write_live, write_segment
from cbir_faiss.storage.store import Store
from cbir_faiss.storage.tiers import Run, runs_of
from cbir_faiss.types import Ids, Kind

MAX_DEAD_SHARE = 0.2
GROWTH = 4
"""An index that learns does so anew when the items have become so many times as many."""
_MERGED_ROWS = 4096  # held at once while segments are merged
TRAINED = "trained"
NO_IDS: Ids = np.empty(0, np.int64)
_OURS = ("manifest-*", "seen-*", "deleted-*", "segments/**/*", f"{TRAINED}/**/*")
_ALWAYS = ("codec.npz", "rescore.npz", "extractor")


@dataclass(frozen=True)
class _Part:
    """A segment, and which of its rows will live."""

    segment: Segment
    live: NDArray[np.bool_]
    live_rows: int

    @classmethod
    def without(cls, segment: Segment, delete: Ids) -> _Part:
        dead = segment.rows_of(delete)
        dead = np.unique(dead[dead >= 0])
        if not len(dead):
            return cls(segment, segment.live, segment.entry.live_rows)
        live = segment.live.copy()
        live[dead] = False
        return cls(segment, live, segment.entry.live_rows - len(dead))

    @property
    def is_worn(self) -> bool:
        return len(self.live) - self.live_rows > MAX_DEAD_SHARE * len(self.live)


class _Next:
    """What the next generation will list of segments, as they are kept and written."""

    def __init__(self, store: Store, training: Training | None) -> None:
        self._store, self._training = store, training
        self.generation = store.manifest.generation + 1
        self.segments: list[SegmentEntry] = []
        self.files: dict[str, FileEntry] = {}

    def keep(self, part: _Part) -> None:
        """A segment as it is, with a new bitmap where rows died."""
        segment, entry = part.segment, part.segment.entry
        place = f"segments/{entry.name}"
        files = {n: e for n, e in self._store.manifest.files.items() if n.startswith(f"{place}/")}
        if part.live_rows < entry.live_rows:
            files.pop(f"{place}/{entry.live}", None)
            name = write_live(segment.folder, self.generation, part.live)
            entry = entry.model_copy(update={"live_rows": part.live_rows, "live": name})
            files |= describe_files(self._store.folder, [f"{place}/{name}"])
        self.segments.append(entry)
        self.files |= files

    def write(self, blocks: Iterable[Block]) -> None:
        """A new segment, if there is anything in it."""
        store, name = self._store, f"{self.generation}-{len(self.segments)}"
        make_backend = None if store.has_engine else store.make_backend
        trained = None if self._training is None else store.folder / self._training.folder
        entry = add_segment(store.folder, name, blocks, make_backend, shape_of(store.manifest), trained)
        if entry is not None:
            self.segments.append(entry)
            self.files |= files_of(store.folder, f"segments/{name}")


def change(
    store: Store,
    *,
    delete: Ids = NO_IDS,
    blocks: Iterable[Block] = (),
    expected: int = 0,
    conclude: Callable[[int], dict[str, Any]] = lambda generation: {},
) -> Manifest:
    """Commit the next generation: without the items ``delete``, with those of ``blocks`` (ids from ``next_id`` on),
    of which there are about ``expected``.

    The caller holds the writer's lock and has replayed what was pending. Segments are merged as ``tiers`` says, and
    written anew where too many of their rows are dead.

    ``conclude`` is given the number of the generation when all blocks are taken; it returns other fields of the
    manifest to change, and writes the file ``seen`` if that is among them.
    """
    before, folder = store.manifest, store.folder
    parts = [part for segment in store.segments if (part := _Part.without(segment, delete)).live_rows]
    incoming = _Peek(blocks, expected)
    training = _training(before, sum(part.live_rows for part in parts), incoming.rows)
    upcoming = _Next(store, training)
    if training is not None and training != before.training:
        shutil.rmtree(folder / training.folder, ignore_errors=True)  # of a writer that was killed
    for start, stop in _runs(parts, incoming.rows, whole=training != before.training):
        old = parts[start:stop]
        # Deleting must not make an index learn: of the few items that are left it may not be able to.
        if len(old) == stop - start == 1 and not (old[0].is_worn and (training or not before.trained)):
            upcoming.keep(old[0])
        else:
            upcoming.write(itertools.chain(_live_blocks(old), incoming if stop > len(parts) else ()))
    if training != before.training:
        training, files = described_training(folder, training)
        upcoming.files |= files
    after = before.model_copy(
        update={
            "generation": upcoming.generation,
            "next_id": max(before.next_id, incoming.last_id + 1),
            "segments": tuple(upcoming.segments),
            "training": training,
            "source_digest": None,
            **conclude(upcoming.generation),
        }
    )
    if store.has_engine and (len(delete) or incoming.rows):
        after = _left_to_do(store, after, before.next_id, delete)
    return publish(folder, _listing(folder, before, after, upcoming.files))


def publish(folder: Path, manifest: Manifest) -> Manifest:
    """Commit ``manifest``, whose files are written, and remove what no generation needs any more."""
    commit(folder, manifest)
    _collect(folder, manifest)
    return manifest


def amend(folder: Path, **fields: Any) -> Manifest:
    """Commit the next generation: the same items, with other ``fields`` of the manifest. The caller holds the lock."""
    before = read_manifest(folder)
    return publish(folder, before.model_copy(update={"generation": before.generation + 1, **fields}))


def open_replayed(folder: Path, *, adopt: bool = False) -> Store:
    """The current generation, after what the last one left to do; for those who hold the writer's lock.

    Raises:
        ConfigError: the engine's table is not this collection's, nor to be adopted. BackendError: the engine failed.
    """
    store = Store.open(folder)
    if store.engine is None:
        return store
    with store:  # which gives back an engine that may be open only once
        store.engine.claim(store.manifest.owner, adopt=adopt)
        if store.manifest.pending is not None:
            replay(store)
    return Store.open(folder)


def replay(store: Store) -> Manifest:
    """Give the engine that keeps its own storage what a commit left pending. It does no harm to do it twice."""
    pending, engine = store.manifest.pending, store.engine
    if pending is None or engine is None:
        return store.manifest
    kind, width = shape_of(store.manifest)
    if store.manifest.generation == 1 and engine.dim is not None and getattr(engine.options, "overwrite", False):
        engine.create(width, kind)  # of what was made before in the same place nothing stays

    def delete() -> None:
        if pending.deleted:
            engine.delete(np.load(store.folder / pending.deleted))

    fill(engine, _pushed(store, pending.first_id), kind=kind, width=width, prepared=delete)
    after = store.manifest.model_copy(update={"generation": store.manifest.generation + 1, "pending": None})
    segments = {n: e for n, e in store.manifest.files.items() if n.startswith("segments/")}
    return publish(store.folder, _listing(store.folder, store.manifest, after, segments))


def _pushed(store: Store, first_id: int) -> Iterator[Part]:
    for segment in store.segments:
        for block in segment.blocks(first_id=first_id):
            yield block.ids, block.codes, [record.document for record in block.records]


def shape_of(manifest: Manifest) -> tuple[Kind, int]:
    """What an index of this collection is made for: kind, and bits or floats."""
    assert manifest.kind is not None  # of one that was read, or made for a build
    return manifest.kind, manifest.width


def add_segment(
    folder: Path,
    name: str,
    blocks: Iterable[Block],
    make_backend: Callable[[], Backend] | None,
    shape: tuple[Kind, int],
    trained: Path | None = None,
) -> SegmentEntry | None:
    """Write segment ``name`` and its index (without ``make_backend``: none) durably; None where there are no items.

    A name begins with the generation that it is written for, so that it is never that of a segment in use.
    ``trained`` is for an index that learns, see ``Segment.write_index``.
    """
    place = folder / "segments" / name
    shutil.rmtree(place, ignore_errors=True)  # of a writer that was killed
    try:
        rows = write_segment(place, blocks)
        entry = SegmentEntry(name=name, rows=rows, live_rows=rows)
        if rows and make_backend is not None:
            segment = Segment(place, entry, make_backend)
            segment.write_index(*shape, trained)
            segment.close()
        if not rows:
            shutil.rmtree(place)
            return None
        sync_tree(place)
        sync(place.parent)
    except Exception:
        shutil.rmtree(place, ignore_errors=True)  # on a full disk above all
        raise
    return entry


def files_of(folder: Path, part: str) -> dict[str, FileEntry]:
    """The entries of every file below ``folder / part``, by name; the lock is none of them."""
    files = sorted(path for path in (folder / part).rglob("*") if path.is_file() and path.name != LOCK)
    return describe_files(folder, [str(path.relative_to(folder)) for path in files])


def described_training(folder: Path, training: Training | None) -> tuple[Training | None, dict[str, FileEntry]]:
    """What was just learnt, with its files; None where the index could not be saved without an item."""
    if training is None or not (folder / training.folder).exists():
        return None, {}
    sync_tree(folder / TRAINED)
    return training, files_of(folder, training.folder)


class _Peek(Iterator[Block]):
    """Blocks, of which can be asked about how many rows they have, and afterwards what the last id was."""

    def __init__(self, blocks: Iterable[Block], expected: int) -> None:
        self._rest = iter(blocks)
        self._first = next(self._rest, None)
        self.rows = 0 if self._first is None else max(expected, len(self._first.ids))
        self.last_id = -1

    def __next__(self) -> Block:
        block, self._first = self._first or next(self._rest), None
        self.last_id = int(block.ids[-1])
        return block


def _training(before: Manifest, old: int, incoming: int) -> Training | None:
    """What the next generation's index has learnt: the same, or from all items anew, which are many times as many."""
    known = before.training
    if not before.trained or not incoming or (known is not None and old + incoming <= GROWTH * known.items):
        return known
    return Training(folder=f"{TRAINED}/{before.generation + 1}", items=old + incoming)


def _runs(parts: Sequence[_Part], incoming: int, *, whole: bool) -> list[Run]:
    """Which segments become one; the one behind them is what comes in, if anything does."""
    rows = [part.live_rows for part in parts] + [incoming] * bool(incoming)
    if whole:
        return [(0, len(rows))]
    return runs_of(rows) if incoming else [(i, i + 1) for i in range(len(rows))]


def _live_blocks(parts: Sequence[_Part]) -> Iterator[Block]:
    for part in parts:
        yield from part.segment.blocks(part.live, size=_MERGED_ROWS)


def _left_to_do(store: Store, after: Manifest, first_id: int, delete: Ids) -> Manifest:
    name = None
    if len(delete):
        name = f"deleted-{after.generation}.npy"
        save_array(store.folder / name, delete)
    return after.model_copy(update={"pending": Pending(first_id=first_id, deleted=name)})


def _listing(folder: Path, before: Manifest, after: Manifest, segments: dict[str, FileEntry]) -> Manifest:
    """``after`` with its files: those of ``segments``, and the others as they were or as they are now."""
    own = {name for name in (after.seen, after.pending.deleted if after.pending else None) if name}
    always = {*_ALWAYS, *([after.training.folder] if after.training else ())}
    common = {n: e for n, e in before.files.items() if n in own or always & {n.split("/")[0], n.rpartition("/")[0]}}
    new = describe_files(folder, sorted(own - set(common)))
    return after.model_copy(update={"files": dict(sorted({**common, **new, **segments}.items()))})


def _collect(folder: Path, manifest: Manifest) -> None:
    """Remove files of ours that neither ``manifest`` nor the one before it lists, and folders that are empty then."""
    keep = {f"manifest-{manifest.generation}.json", *manifest.files}
    earlier = folder / f"manifest-{manifest.generation - 1}.json"
    if earlier.exists():
        keep |= {earlier.name, *json.loads(earlier.read_bytes())["files"]}
    ours = itertools.chain.from_iterable(folder.glob(pattern) for pattern in _OURS)
    for path in sorted(ours, reverse=True):  # what is in a folder before the folder
        with suppress(OSError):  # the change is made; what cannot be removed now is removed after the next one
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif str(path.relative_to(folder)) not in keep:
                path.unlink()
