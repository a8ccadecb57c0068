"""Requests and answers: what checks them is what describes them at ``/openapi.json``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cbir_faiss.collection.recalled import Answer
from cbir_faiss.serve.limits import Limits

LIMITS = Limits()
Id = Annotated[int, Field(ge=0, lt=1 << 63)]
Text = Annotated[str, Field(max_length=10_000)]
Where = Annotated[Text | dict[str, Any], Field(description='A filter: `label = "cat" and year >= 1990`, or a mapping.')]
Scalar = str | int | float | bool | None


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Search(_Request):
    """Queries, and how they are answered."""

    ids: Annotated[list[Id], Field(max_length=LIMITS.queries, description="Items to begin from.")] = []
    vectors: Annotated[
        list[Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1)]],
        Field(max_length=LIMITS.queries, description="Embeddings as the collection's extractor makes them."),
    ] = []
    text: Annotated[
        Text | Annotated[list[Text], Field(max_length=LIMITS.queries)],
        Field(description="What is to be seen: `a red bus`, or several; where the collection's `texts` is true."),
    ] = []
    k: Annotated[int, Field(ge=1, le=LIMITS.k, description="How many items for each query.")] = 5
    where: Where | None = None
    rescore: Annotated[
        Literal["none", "exact"] | None,
        Field(description="null: as the collection was built; none: the code alone; exact: the floats of every item."),
    ] = None
    combine: Annotated[bool, Field(description="All queries are one: the mean of their embeddings.")] = False
    unlike: Annotated[
        list[Id], Field(max_length=LIMITS.queries, description="Items to lead away from; with `combine`.")
    ] = []

    @property
    def texts(self) -> list[str]:
        return [self.text] if isinstance(self.text, str) else self.text

    @model_validator(mode="after")
    def _unlike_with_combine(self) -> Search:
        if self.unlike and not self.combine:
            raise ValueError("'unlike' goes with 'combine': true")
        return self


class Hit(BaseModel):
    id: int
    path: str
    label: Any = None
    distance: float
    relevant: bool | None = Field(description="Whether it is within the collection's cut-off; null: not known.")
    missing: bool = Field(default=False, description="The original file is not there any more.")


class Found(BaseModel):
    """One list for each query, nearest first."""

    results: list[list[Hit]]
    took_ms: float


class Page(_Request):
    offset: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    limit: Annotated[int, Field(ge=1, le=LIMITS.page)] = 100
    where: Text | None = None


class Listed(BaseModel):
    id: int
    path: str
    label: Any = None


class Listing(BaseModel):
    total: int
    items: list[Listed]


class Item(BaseModel):
    """An item; `payload` is all else that is stored of it."""

    id: int
    path: str
    label: Any = None
    missing: bool
    payload: dict[str, Any]


class Filtered(_Request):
    where: Text | None = None


class Facets(BaseModel):
    """By field, its most frequent values and how many items have each."""

    fields: dict[str, list[Annotated[list[Scalar], Field(min_length=2, max_length=2)]]]


class Thumb(_Request):
    size: Annotated[int, Field(ge=16, le=1024)] = 256


class Radius(_Request):
    radius: Annotated[
        int | None,
        Field(
            ge=0,
            le=1 << 16,
            description="Bits; a 32nd of the code unless given. 422 where that takes too long among so many items.",
        ),
    ] = None


class Duplicate(BaseModel):
    id: int
    path: str
    label: Any = None
    distance: int


class Duplicates(BaseModel):
    """Groups of items of the same bytes, and of nearly the same code, the first thousand of each."""

    exact: list[list[Duplicate]]
    alike: list[list[Duplicate]]
    total: int = Field(description="Groups there are, whether listed or not.")


class Points(_Request):
    points: Annotated[int, Field(ge=1, le=100_000)] = 20_000


class Map(BaseModel):
    """Items in a plane, each coordinate between -1 and 1."""

    how: Literal["axes", "umap"] = Field(description="Along the two principal axes, or by UMAP where it is installed.")
    ids: list[int]
    x: list[float]
    y: list[float]
    total: int
    labels: list[Scalar] = Field(description="The most frequent labels.")
    label: list[int] = Field(description="Of each item, the number of its label among `labels`; -1: another, or none.")


class Named(BaseModel):
    name: str
    items: int | None = Field(description="null: it cannot be served now, `problem` says why.")
    problem: str | None = None


class Collections(BaseModel):
    collections: list[Named]


class Recalled(Answer):
    """What `cbir recall` said last of the collection."""

    current: bool = Field(description="Whether it is of the generation that is served.")


class Info(BaseModel):
    """What a collection is, and how it does."""

    model_config = ConfigDict(extra="allow")
    name: str
    items: int
    deleted: int
    failed: int
    generation: int
    segments: int
    dim: int
    bits: int | None
    extractor: dict[str, Any] | None
    codec: dict[str, Any]
    backend: dict[str, Any]
    rescore: dict[str, Any]
    metric: str | None
    labels: dict[str, int]
    bytes: dict[str, int]
    recall: Recalled | None = Field(description="null: it was not measured.")
    floats: bool = Field(description="Whether `rescore: exact` can be asked for.")
    images: bool = Field(description="Whether pictures can be searched for: it has an extractor of pictures.")
    texts: bool = Field(description="Whether `text` can be searched for: its extractor has a text tower.")
    write: bool = Field(description="Whether adding and deleting is allowed.")
    latency_ms: dict[str, float | None]


class RunName(BaseModel):
    name: str
    rows: int | None = Field(description="null: it cannot be read, `problem` says why.")
    report: bool
    problem: str | None = None


class Runs(BaseModel):
    runs: list[RunName]


class Run(BaseModel):
    """`results.json` as `cbir compare` wrote it; each row with its `name` for people."""

    model_config = ConfigDict(extra="allow")
    name: str
    measure: str | None = Field(default=None, description="The measure that tables begin with.")
    knn: str | None = Field(default=None, description="That of exact neighbours found.")
    rows: list[dict[str, Any]]


class Added(BaseModel):
    """Ids in the order of the uploads; a picture that is there already has the id that it had."""

    ids: list[int]
    added: int
    failed: list[dict[str, str]]


class Deleted(BaseModel):
    deleted: int
    items: int


class ProblemDetails(BaseModel):
    """What went wrong, and what to do (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
