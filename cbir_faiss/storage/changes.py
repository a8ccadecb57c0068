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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base import Backend
from cbir_faiss.pipeline.fill import Part, fill
from cbir_faiss.storage.files import save_array, sync_tree
from cbir_faiss.storage.lock import LOCK
from cbir_faiss.storage.manifest import FileEntry, Manifest, Pending, SegmentEntry, commit, describe_files
from cbir_faiss.storage.segment import Block, Segment, write_live, write_segment
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Ids, Kind

MAX_SEGMENTS = 8
MAX_DEAD_SHARE = 0.2
NO_IDS: Ids = np.empty(0, np.int64)
_OURS = ("manifest-*", "seen-*", "deleted-*", "segments/**/*")
_ALWAYS = ("codec.npz", "rescore.npz", "extractor")
Live = Sequence[NDArray[np.bool_]]
"""Bitmaps of the rows that will live, one a segment."""


@dataclass
class _Next:
    """What the next generation will list of segments."""

    segments: list[SegmentEntry] = field(default_factory=list)
    files: dict[str, FileEntry] = field(default_factory=dict)


def change(
    store: Store,
    *,
    delete: Ids = NO_IDS,
    blocks: Iterable[Block] = (),
    conclude: Callable[[int], dict[str, Any]] = lambda generation: {},
) -> Manifest:
    """Commit the next generation: without the items ``delete``, with those of ``blocks`` (ids from ``next_id`` on).

    The caller holds the writer's lock and has replayed what was pending. Old segments are merged into the new one
    where there would be too many of them, or too many dead rows in them.

    ``conclude`` is given the number of the generation when all blocks are taken; it returns other fields of the
    manifest to change, and writes the file ``seen`` if that is among them.
    """
    before = store.manifest
    generation = before.generation + 1
    live = [segment.live & ~np.isin(segment.ids, delete) for segment in store.segments]
    incoming = _Peek(blocks)
    merge = _wants_merging(store, live, grows=not incoming.empty)
    upcoming = _Next() if merge else _kept(store, live, generation)
    content = itertools.chain(_live_blocks(store, live) if merge else (), incoming)
    make_backend = None if store.has_engine else store.make_backend
    added = add_segment(store.folder, str(generation), content, make_backend, shape_of(before))
    if added is not None:
        upcoming.segments.append(added)
        upcoming.files |= files_of(store.folder, f"segments/{added.name}")
    numbers = {"generation": generation, "next_id": max(before.next_id, incoming.last_id + 1)}
    after = before.model_copy(
        update={**numbers, "segments": tuple(upcoming.segments), "source_digest": None, **conclude(generation)}
    )
    if store.has_engine and (len(delete) or not incoming.empty):
        after = _left_to_do(store, after, before.next_id, delete)
    return publish(store.folder, _listing(store.folder, before, after, upcoming.files))


def publish(folder: Path, manifest: Manifest) -> Manifest:
    """Commit ``manifest``, whose files are written, and remove what no generation needs any more."""
    commit(folder, manifest)
    _collect(folder, manifest)
    return manifest


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
) -> SegmentEntry | None:
    """Write segment ``name`` and its index (without ``make_backend``: none) durably; None where there are no items.

    A name begins with the generation that it is written for, so that it is never that of a segment in use.
    """
    place = folder / "segments" / name
    shutil.rmtree(place, ignore_errors=True)  # of a writer that was killed
    try:
        rows = write_segment(place, blocks)
        entry = SegmentEntry(name=name, rows=rows, live_rows=rows)
        if rows and make_backend is not None:
            segment = Segment(place, entry, make_backend)
            segment.write_index(*shape)
            segment.close()
        if not rows:
            shutil.rmtree(place)
            return None
        sync_tree(place)
    except Exception:
        shutil.rmtree(place, ignore_errors=True)  # on a full disk above all
        raise
    return entry


def files_of(folder: Path, part: str) -> dict[str, FileEntry]:
    """The entries of every file below ``folder / part``, by name; the lock is none of them."""
    files = sorted(path for path in (folder / part).rglob("*") if path.is_file() and path.name != LOCK)
    return describe_files(folder, [str(path.relative_to(folder)) for path in files])


class _Peek(Iterator[Block]):
    """Blocks, of which can be asked whether there are any, and afterwards what the last id was."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._rest = iter(blocks)
        self._first = next(self._rest, None)
        self.empty = self._first is None
        self.last_id = -1

    def __next__(self) -> Block:
        block, self._first = self._first or next(self._rest), None
        self.last_id = int(block.ids[-1])
        return block


def _wants_merging(store: Store, live: Live, grows: bool) -> bool:
    rows = sum(len(bits) for bits in live if bits.any())
    dead = sum(int(np.count_nonzero(~bits)) for bits in live if bits.any())
    many = sum(bool(bits.any()) for bits in live) + grows > MAX_SEGMENTS
    return many or dead > MAX_DEAD_SHARE * rows or (grows and rows > 0 and bool(store.manifest.trained))


def _kept(store: Store, live: Live, generation: int) -> _Next:
    """The segments as they are, with new bitmaps where rows died; those without a live row are left out."""
    kept = _Next()
    for segment, bits in zip(store.segments, live, strict=True):
        alive = int(np.count_nonzero(bits))
        entry, part = segment.entry, f"segments/{segment.entry.name}"
        files = {n: e for n, e in store.manifest.files.items() if n.startswith(f"{part}/")}
        if alive and alive < entry.live_rows:
            files.pop(f"{part}/{entry.live}", None)
            entry = entry.model_copy(update={"live_rows": alive, "live": write_live(segment.folder, generation, bits)})
            files |= describe_files(store.folder, [f"{part}/{entry.live}"])
        if alive:
            kept.segments.append(entry)
            kept.files |= files
    return kept


def _live_blocks(store: Store, live: Live) -> Iterator[Block]:
    for segment, bits in zip(store.segments, live, strict=True):
        yield from segment.blocks(bits)


def _left_to_do(store: Store, after: Manifest, first_id: int, delete: Ids) -> Manifest:
    name = None
    if len(delete):
        name = f"deleted-{after.generation}.npy"
        save_array(store.folder / name, delete)
    return after.model_copy(update={"pending": Pending(first_id=first_id, deleted=name)})


def _listing(folder: Path, before: Manifest, after: Manifest, segments: dict[str, FileEntry]) -> Manifest:
    """``after`` with its files: those of ``segments``, and the others as they were or as they are now."""
    own = {name for name in (after.seen, after.pending.deleted if after.pending else None) if name}
    common = {n: e for n, e in before.files.items() if n in own or n.split("/")[0] in _ALWAYS}
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
