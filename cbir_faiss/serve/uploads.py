"""Pictures that are uploaded to stay: kept in a folder of the collection's own, and added from there.

What is deleted is deleted from the collection. Of files, only those of this folder are ever removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cbir_faiss._lib.files import write_durably
from cbir_faiss.collection.collection import Collection
from cbir_faiss.errors import CbirError
from cbir_faiss.serve.asking import original
from cbir_faiss.sources._paths import Paths
from cbir_faiss.storage.files import writing_to
from cbir_faiss.storage.lock import writer_lock

_PATIENCE = 60.0  # seconds to wait for another server that adds or removes files
_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}


class Uploads:
    """``folder`` is beside the collection, unless it is told otherwise: photos.uploads for photos.cbir."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @classmethod
    def beside(cls, collection: Path) -> Uploads:
        return cls(collection.absolute().with_name(collection.absolute().name.removesuffix(".cbir") + ".uploads"))

    def add(
        self, collection: Path, pictures: Sequence[tuple[bytes, str]]
    ) -> tuple[list[int], int, list[dict[str, str]]]:
        """Store pictures (bytes, format) by their content and add them; ids in their order, how many are new, failures.

        Raises CbirError; what was stored is removed then, unless it is an item's by now.
        """
        paths = [self._path(content, form) for content, form in pictures]
        with self._alone():
            new = [path for path in dict.fromkeys(paths) if not path.exists()]
            try:
                with writing_to(self.folder):
                    for path, (content, _) in zip(paths, pictures, strict=True):
                        if path in new:
                            write_durably(path, content)
                with Collection.open(collection) as opened:
                    done = opened.add(paths)
                    ids = _items(opened, paths)
            except BaseException:
                with suppress(CbirError):  # of a collection that cannot be read nobody knows
                    _forget(collection, [path for path in new if path.exists()])
                raise
        return [ids[path] for path in paths if path in ids], done.added, [failure.as_dict() for failure in done.failed]

    def delete(self, collection: Path, item: int) -> tuple[int, int]:
        """Delete an item, and its file if it was uploaded; how many were deleted, and are left. Raises CbirError."""
        with Collection.open(collection) as opened:
            file = original(opened.manifest, str(opened.documents([item])[0].get("path", "")))
            deleted = opened.delete([item])
            left = len(opened)
        if file is not None and Path(file).parent == self.folder:
            with suppress(OSError, CbirError), self._alone():
                _forget(collection, [Path(file)])
        return deleted, left

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other server sees which files are there, or removes one that is about to be an item."""
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with writer_lock(self.folder, _PATIENCE):
            yield

    def _path(self, content: bytes, form: str) -> Path:
        return self.folder / (hashlib.sha256(content).hexdigest()[:32] + _SUFFIXES.get(form, f".{form.lower()}"))


def _items(opened: Collection, paths: Sequence[Path]) -> dict[Path, int]:
    """The ids of those files that are items."""
    source = Paths(paths=[*dict.fromkeys(paths)], below=opened.manifest.root)
    names = [item.path for item in source.items()]
    records = {record.path: item for item, record in opened.store.records(names)}
    return {path: records[name] for path, name in zip(source.files.paths, names, strict=True) if name in records}


def _forget(collection: Path, paths: Sequence[Path]) -> None:
    """Remove those files that are no items."""
    with Collection.open(collection) as opened:
        items = _items(opened, paths) if paths else {}
    for path in paths:
        if path not in items:
            path.unlink(missing_ok=True)
