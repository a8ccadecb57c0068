"""Any other FAISS index: by its factory string, or from a file that already exists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from cbir_faiss import base
from cbir_faiss.backends.faiss._any import AnyIndex, reason
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import InputError
from cbir_faiss.types import Kind, Metric

_BINARY = re.compile(r"(^|,)B(Flat|IVF|HNSW|Hash)")
_LISTS = re.compile(r"IVF(\d+)")
_HASHING = re.compile(r"(^|,)(LSH|SH)")


class FaissIndex(AnyIndex):
    """``factory: PQ32``, ``SQ8``, ``"RR512,IVF256,RaBitQ"``, ``BIVF16``, …, or ``file: existing.index``.

    What it can do by itself depends on the type: filters, range search and giving vectors back are native, emulated or,
    for vectors, refused or decoded (see ``capabilities`` of the instance).
    """

    name: ClassVar[str] = "faiss"
    needs_training: ClassVar[bool] = True

    class Options(base.Options):
        factory: str | None = Field(None, description="FAISS factory string; ids are kept beside it, so without IDMap")
        file: RelativePath | None = Field(None, description="an index that FAISS wrote, instead of a factory string")
        mmap: bool = Field(False, description="leave the file's codes in the file; read-only")
        metric: Literal["l2", "ip", "cosine"] | None = Field(None, description="of floats; None: L2, or the file's")

        @model_validator(mode="after")
        def _one_origin(self) -> FaissIndex.Options:
            if (self.factory is None) == (self.file is None):
                raise ValueError("give a factory string or a file, and not both")
            if "IDMap" in (self.factory or ""):
                raise ValueError("leave IDMap out of the factory string: ids are kept beside the index")
            if self.mmap and self.file is None:
                raise ValueError("mmap goes with a file")
            return self

    @classmethod
    def kinds(cls, options: Mapping[str, Any]) -> frozenset[Kind]:
        factory = options.get("factory")
        return super().kinds(options) if factory is None else frozenset({_kind_of(factory)})

    @classmethod
    def lists(cls, options: Mapping[str, Any], items: int) -> int:
        found = _LISTS.search(options.get("factory") or "")
        return int(found[1]) if found else 0

    @classmethod
    def with_lists(cls, options: Mapping[str, Any], count: int) -> dict[str, Any]:
        factory = options.get("factory")
        return dict(options) if factory is None else {**options, "factory": _LISTS.sub(f"IVF{count}", factory)}

    def _setup(self) -> None:
        super()._setup()
        if self.options.file is not None:
            self._open(str(self.options.file))
        else:
            self._declare(accepts=frozenset({_kind_of(self.options.factory)}))

    def _metric_for(self, kind: Kind) -> Metric:
        return "hamming" if _HASHING.search(self.options.factory or "") else super()._metric_for(kind)

    def _create(self) -> None:
        if self.options.file is not None:
            raise InputError(f"backend '{self.name}' was opened from {self.options.file}: it has its width already")
        self._declare(needs_training=not self._new_index(None).is_trained)
        super()._create()

    def _factory(self, n: int) -> str:
        return cast("str", self.options.factory)

    def _open(self, path: str) -> None:
        faiss, flags = self._faiss, self._faiss.IO_FLAG_MMAP_IFC if self.options.mmap else 0
        try:
            index = faiss.read_index(path, flags)
        except RuntimeError as error:
            try:
                index = faiss.read_index_binary(path, flags)
            except RuntimeError:
                raise InputError(f"{path}: FAISS cannot read an index from it: {reason(error)}") from error
        self._adopt(index, self.options.metric)
        self._read_only = self.options.mmap


def _kind_of(factory: str) -> Kind:
    return "binary" if _BINARY.search(factory) else "float"


class Wrapped(AnyIndex):
    """An index object that somebody else made; see ``wrap``."""

    name: ClassVar[str] = "faiss"

    class Options(base.Options):
        metric: Literal["l2", "ip", "cosine"] | None = None

    def __init__(self, index: Any, metric: Metric | None = None) -> None:
        super().__init__(**({"metric": metric} if metric else {}))
        self._adopt(index, metric)
