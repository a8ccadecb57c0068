"""Floats, or codes of them, in an HNSW graph."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cbir_faiss.backends.faiss._graph import Graph, GraphOptions, WalkOptions
from cbir_faiss.base import Capabilities
from cbir_faiss.types import Kind, Metric

Storage = Literal[
    "float32", "float16", "sq8", "sq6", "sq4",
    "rabitq1", "rabitq2", "rabitq3", "rabitq4", "rabitq5", "rabitq6", "rabitq7", "rabitq8", "rabitq9",
]  # fmt: skip
_FACTORY = {"float32": "Flat", "float16": "SQfp16"}  # the others learn a range or a centre


class FaissHNSW(Graph):
    """IndexHNSW: the graph and what ``storage`` keeps of the vectors are in memory.

    ``sq8``, ``sq6``, ``sq4``: so many bits a dimension, its range in the training sample cut into equal steps.
    ``rabitq…``: RaBitQ of so many bits a dimension, of randomly rotated vectors.
    """

    name: ClassVar[str] = "faiss-hnsw"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"float"})
    metrics: ClassVar[tuple[Metric, ...]] = ("l2", "ip", "cosine")
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated", filter="emulated", range="emulated")
    SearchOptions = WalkOptions

    class Options(GraphOptions):
        metric: Literal["l2", "ip", "cosine"] = Field("l2", description="squared L2, inner product, or cosine distance")
        storage: Storage = Field("float32", description="what is kept of a vector")

        @model_validator(mode="after")
        def _known(self) -> FaissHNSW.Options:
            if self.storage.startswith("rabitq") and self.metric != "l2":
                raise ValueError(
                    f"storage {self.storage} is compared by l2 only (of vectors of length 1: as by cosine)"
                )
            return self

    def _setup(self) -> None:
        super()._setup()
        self._declare(needs_training=self.options.storage not in _FACTORY)

    def _factory(self, n: int) -> str:
        storage, graph = self.options.storage, f"HNSW{self.options.m}"
        if storage.startswith("rabitq"):
            return f"RR{self.dim},{graph},RaBitQ{storage.removeprefix('rabitq')}"
        return f"{graph},{_FACTORY.get(storage, storage.upper())}"
