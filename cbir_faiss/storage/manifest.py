"""The manifest: one generation of a collection, and everything that must be true of its files."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from cbir_faiss._lib.files import sha256_of, write_durably
from cbir_faiss.base import Backend
from cbir_faiss.base.registry import Group, checked_options, load
from cbir_faiss.errors import CorruptCollection
from cbir_faiss.types import Kind, Metric

FORMAT = 1
CURRENT = "CURRENT"
_ALTERED = "altered: another SHA-256 than when it was written"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Entry):
    """Size and SHA-256 of one live file."""

    size: int
    sha256: str


class PluginEntry(_Entry):
    """A plugin as the collection needs it: name and options; paths are relative to the collection."""

    name: str
    options: dict[str, Any]

    def load(self, group: Group, folder: Path) -> Any:
        """The plugin; its path options are relative to ``folder``."""
        plugin = load(group, self.name)
        return plugin(**checked_options(plugin, self.options, str(folder)))


class SegmentEntry(_Entry):
    """A segment: its folder, how many rows it has, and the bitmap of those that live (None: all)."""

    name: str
    rows: int
    live_rows: int
    live: str | None = None


class Pending(_Entry):
    """What the engine that keeps its own storage has not been given yet: items from ``first_id`` on, and deletions.

    deleted: a file of ids.
    """

    first_id: int
    deleted: str | None = None


class Training(_Entry):
    """What the index has learnt: the folder of an empty one, and how many items the collection had then.

    Every segment's index goes on from there, so that their distances can be compared.
    """

    folder: str
    items: int


class Cutoff(_Entry):
    """Up to which ``distance`` a hit is meant, and of which share of hits that is wrong (``error``): learnt from
    ``labels``, or from ``distances`` alone, when there were so many ``items``."""

    distance: float
    error: float
    by: Literal["labels", "distances"]
    items: int


class Manifest(_Entry):
    """One generation. Immutable: a change writes the next one.

    previous: SHA-256 of the manifest before, whose files are still there for its readers.
    dim, bits, width: of the embedding, of the code (None for floats), and what an index of them is made for.
    kind, metric, trained: of the index: what it holds, what it ranks by, whether it learns from its items. Manifests
    of 0.1 do not say; ``read_manifest`` asks the backend then.
    search: options that every search of the index is given.
    name, owner: what the collection was called when it was first built, and an id that stays its own: tables that
    it makes in engines are called and marked by them. Earlier manifests have none.
    root: the folder that the items' paths are relative to. source_digest: what the source said of itself when it was
    last looked through (``survey`` in 0.1); None where the collection was changed otherwise. seen: a file of what a
    build knows of files that no item tells: which failed, and why. pending: for the engine, see ``Pending``.
    training: see ``Training``; None where nothing is learnt, by earlier versions, and of the few types of index that
    cannot be saved without an item. cutoff: see ``Cutoff``; None until the first search that asks for it.
    """

    format: int = FORMAT
    generation: int = 1
    previous: str | None = None
    config: dict[str, Any]
    extractor: PluginEntry | None
    fingerprint: str = ""
    codec: PluginEntry
    backend: PluginEntry
    rescore: PluginEntry
    embedding: str
    dim: int
    bits: int | None
    width: int
    kind: Kind | None = None
    metric: Metric | None = None
    trained: bool | None = None
    search: dict[str, Any] = Field(default_factory=dict)
    name: str | None = None
    owner: str | None = None
    next_id: int
    failed: int = 0
    root: str | None = None
    source_digest: str | None = Field(default=None, validation_alias=AliasChoices("source_digest", "survey"))
    seen: str | None = None
    pending: Pending | None = None
    training: Training | None = None
    cutoff: Cutoff | None = None
    segments: tuple[SegmentEntry, ...]
    files: dict[str, FileEntry]

    @property
    def items(self) -> int:
        """Items that a search can find."""
        return sum(segment.live_rows for segment in self.segments)


def name_of(folder: Path) -> str:
    """What the collection at ``folder`` is called."""
    return folder.absolute().name.removesuffix(".cbir")


def owner_of(folder: Path) -> str:
    """Whose the tables of a collection are that is made at ``folder``: the same where it is made there again."""
    return hashlib.sha256(f"{platform.node()}\0{folder.resolve()}".encode(errors="surrogateescape")).hexdigest()[:32]


def describe_files(folder: Path, names: list[str]) -> dict[str, FileEntry]:
    """The entries of files, by path relative to ``folder``."""
    return {
        name: FileEntry(size=(folder / name).stat().st_size, sha256=sha256_of(folder / name)) for name in sorted(names)
    }


def commit(folder: Path, manifest: Manifest) -> None:
    """Make ``manifest`` the current generation. Its files must be on disk already; readers see all of it or nothing."""
    if (folder / CURRENT).exists():
        manifest = manifest.model_copy(update={"previous": (folder / CURRENT).read_text().split()[1]})
    content = manifest.model_dump_json(indent=1).encode()
    name = f"manifest-{manifest.generation}.json"
    write_durably(folder / name, content)
    write_durably(folder / CURRENT, f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())


def read_manifest(folder: Path) -> Manifest:
    """The current manifest, its digest checked.

    Raises:
        CorruptCollection: no collection, a damaged CURRENT or manifest, or another format version (both are named).
    """
    try:
        name, digest = (folder / CURRENT).read_text().split()
        content = (folder / name).read_bytes()
    except (OSError, ValueError) as error:
        if not (folder / CURRENT).exists():
            raise CorruptCollection(
                f"{folder}: not a collection, or its build did not finish (it has no file {CURRENT})"
            ) from error
        raise CorruptCollection(f"{folder / CURRENT}: altered, or what it names cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise CorruptCollection(f"{folder / name}: altered: it does not have the digest that CURRENT gives")
    manifest = _parse(content, folder / name)
    return manifest if manifest.kind is not None else _asked(manifest, folder)


def index_facts(backend: Backend, kind: Kind, width: int) -> dict[str, Any]:
    """``kind``, ``metric`` and ``trained`` of an index of ``backend`` for ``width`` floats or bits; closes it.

    Raises:
        Unsupported, ConfigError: the backend does not take such codes.
    """
    try:
        metric = backend.metric_for(kind)
        if not backend.own_storage:  # to make it there would make a table
            backend.create(width, kind)
        return {"kind": kind, "metric": metric, "trained": backend.needs_training and not backend.own_storage}
    finally:
        backend.close()


def _asked(manifest: Manifest, folder: Path) -> Manifest:
    kind: Kind = "float" if manifest.bits is None else "binary"
    return manifest.model_copy(update=index_facts(manifest.backend.load("backends", folder), kind, manifest.width))


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises CorruptCollection where a live file is missing or not as long as the manifest says."""
    for name, entry in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != entry.size:
            met = "missing" if size is None else f"{size} bytes"
            raise CorruptCollection(f"{path}: {met}, the manifest says {entry.size} bytes")


def damaged_files(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Every file that is missing, cut short or altered, and how; reads all of them.

    Those of the generation before are looked at too, as far as they are there: a reader may still have them open. What
    a writer has replaced and removed meanwhile is no damage.
    """
    damaged = _damaged(folder, {**_files_before(folder, manifest), **manifest.files})
    if not damaged or (now := read_manifest(folder)).generation == manifest.generation:
        return damaged
    listed = {**_files_before(folder, now), **now.files}
    return [(name, how) for name, how in damaged if name in listed]


def check_still_there(folder: Path, manifest: Manifest) -> None:
    """Raises CorruptCollection where the generation is gone, or another collection has taken its place."""
    path = _file_of(folder, manifest.generation)
    if not path.exists() or _parse(path.read_bytes(), path).files != manifest.files:
        raise CorruptCollection(f"{folder}: was replaced while it was opened; open it again")


def check_content(folder: Path, manifest: Manifest, part: str) -> None:
    """Raises CorruptCollection where a file below ``part`` is not what the manifest says."""
    files = {name: entry for name, entry in manifest.files.items() if name.startswith(f"{part}/")}
    for name, how in _damaged(folder, files):
        raise CorruptCollection(
            f"{folder / name}: {how}; or the collection was replaced since it was opened: open it again"
        )


def _file_of(folder: Path, generation: int) -> Path:
    return folder / f"manifest-{generation}.json"


def _files_before(folder: Path, manifest: Manifest) -> dict[str, FileEntry]:
    """What the generation before has besides, its manifest included, as far as it is there."""
    path = _file_of(folder, manifest.generation - 1)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    if manifest.previous is None:
        return {}
    own = {path.name: FileEntry(size=len(content), sha256=manifest.previous)}
    if hashlib.sha256(content).hexdigest() != manifest.previous:
        return own
    return own | {name: entry for name, entry in _parse(content, path).files.items() if (folder / name).exists()}


def _damaged(folder: Path, files: Mapping[str, FileEntry]) -> list[tuple[str, str]]:
    damaged = []
    for name, entry in files.items():
        try:
            size = (folder / name).stat().st_size
            if size != entry.size:
                damaged.append((name, f"{size} bytes instead of {entry.size}"))
            elif sha256_of(folder / name) != entry.sha256:
                damaged.append((name, _ALTERED))
        except FileNotFoundError:
            damaged.append((name, "missing"))
    return damaged


def _parse(content: bytes, path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise CorruptCollection(f"{path}: not a manifest of format {FORMAT}: {error.errors()[0]['msg']}") from error
    if manifest.format != FORMAT:
        raise CorruptCollection(f"{path}: format {manifest.format}, this version reads format {FORMAT}")
    return manifest
