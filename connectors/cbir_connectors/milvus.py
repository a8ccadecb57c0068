"""Milvus: a server (``uri``), or Milvus Lite, its embedded edition, for one file (``path``).

Both are asked only what both understand: ids, and terms (see ``_terms``), as digests in a JSON field, so that nothing
of a payload is ever part of an expression.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field, StringConstraints, field_validator, model_validator

from cbir_connectors import _milvus_lite
from cbir_connectors._foreign import as_payload
from cbir_connectors._keys import Keys
from cbir_connectors._terms import balanced, compile_terms, term, terms
from cbir_faiss import base
from cbir_faiss.backends.database import (
    FIRST_PAUSE,
    Database,
    Shape,
    batches,
    engine_errors,
    need_version,
    one_line,
    payload_of,
    present,
    to_hits,
)
from cbir_faiss.base import Capabilities
from cbir_faiss.base.checks import directions, within
from cbir_faiss.base.filters import In, Where
from cbir_faiss.base.item_bytes import ROW_BYTES, ItemBytes, graph_bytes
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import BackendError, ConfigError, Unsupported
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric, Payload, RangeHits, missing_hits

_METRICS: dict[str, Metric] = {"COSINE": "cosine", "L2": "l2", "IP": "ip", "HAMMING": "hamming"}
_INDEXES = {
    "float": {"flat": "FLAT", "hnsw": "HNSW", "ivf_flat": "IVF_FLAT"},
    "binary": {"flat": "BIN_FLAT", "ivf_flat": "BIN_IVF_FLAT"},
}
_EXACT = {"FLAT", "BIN_FLAT"}
_LISTS = {"IVF_FLAT", "BIN_IVF_FLAT"}  # exact where every list is looked into
_EMBEDDED = {"FLAT", "IVF_FLAT", "BIN_FLAT"}
_WIDEST = {"float": 32_768, "binary": 262_144}
_WIDEST_EMBEDDED = 32_768
_FEW = 256  # hits that a range search asks for first
_MOST = 16_384  # rows that one answer may have; also the ids and the queries of one request
_REQUEST_BYTES = 16_000_000
_MOST_VALUES = 1000  # that each term of each item is compared with
_CONNECTING = 10  # seconds
_ANSWERS = 1_000_000  # hits of one request, over all of its queries
_TEXT = 65_535  # bytes of a text field
_PAYLOAD = ("payload", "payload_2", "payload_3", "payload_4")
_MOST_TERMS = 3000  # what fits into the 64 KB of a JSON field
Name = Annotated[str, StringConstraints(max_length=240, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Column = Annotated[str, StringConstraints(max_length=255, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Milvus(Database):
    """Exact search, or HNSW or IVF on floats and IVF on codes; filters that are not about equality are applied here.

    A token (or ``user:password``) is read from CBIR_MILVUS_TOKEN. With ``path``, one process at a time has the file
    open. A collection that somebody else made has all its other fields as its payload.
    """

    name = "milvus"
    capabilities = Capabilities(filter="emulated", range="emulated")
    name_option = "collection"
    longest_name = 200

    class Options(base.Options):
        uri: str | None = Field(None, description="a server, such as http://localhost:19530")
        path: RelativePath | None = Field(None, description="a file: Milvus Lite runs beside this process")
        database: str = Field("", description="which database of a server")
        collection: Name = Field("cbir", description="name of the collection")
        vector_field: Column = Field("vector", description="its field of vectors or codes")
        metric: Literal["l2", "ip", "cosine", "hamming"] | None = Field(None, description="None: hamming or cosine")
        overwrite: bool = Field(False, description="a collection that is there is dropped when it is made")
        index: Literal["flat", "hnsw", "ivf_flat"] = Field("flat", description="flat: exact; codes have no hnsw")
        hnsw_m: int = Field(16, ge=2, le=2048, description="links a node keeps")
        hnsw_ef_construct: int = Field(128, ge=8, description="candidates while building: quality against build time")
        nlist: int = Field(128, ge=1, le=65_536, description="inverted lists of ivf_flat")
        timeout: int = Field(60, ge=1, description="seconds that a server may take for a request, trials included")

        @field_validator("uri")
        @classmethod
        def _no_secret(cls, uri: str | None) -> str | None:
            if uri is not None and not re.match(r"(https?|tcp|grpc|unix):", uri):
                raise ValueError("a uri begins with http:// or https://; a file of Milvus Lite is a 'path'")
            if uri is not None and "@" in uri:
                raise ValueError("no secrets in addresses: put the token in CBIR_MILVUS_TOKEN")
            return uri

        @model_validator(mode="after")
        def _one_place(self) -> Milvus.Options:
            if (self.uri is None) == (self.path is None):
                raise ValueError("give one of 'uri' (a server) or 'path' (a file of Milvus Lite)")
            return self

    class SearchOptions(base.Options):
        exact: bool = Field(False, description="look into every list of ivf_flat; others cannot")
        nprobe: int | None = Field(None, ge=1, description="lists that a search looks into; None: 8")
        hnsw_ef: int = Field(64, ge=1, description="candidates that a search keeps: recall against time")

    options: Options

    @classmethod
    def scoped(cls, options: Mapping[str, Any], scope: str) -> dict[str, Any]:
        moved = super().scoped(options, scope)
        return {**moved, "collection": _name(moved["collection"])}

    @classmethod
    def named(cls, options: Mapping[str, Any], name: str) -> dict[str, Any]:
        return {"collection": _name(super().named({}, name)["collection"]), **options}

    # -- life

    def _connect(self) -> None:
        pymilvus = need_version("pymilvus", "pymilvus", "milvus", (2, 5))
        for logger in ("pymilvus", "pymilvus.milvus_client"):  # they also print what they raise
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self._types: Any = pymilvus.DataType
        self._keys = Keys()
        self._client: Any = None
        self._file: Path | None = None
        self._ours, self._key_field, self._index = True, "id", {"index_type": "FLAT"}
        self._token = os.environ.get("CBIR_MILVUS_TOKEN", "")
        try:
            with self._errors("cannot be opened"):
                self._client = self._connected(pymilvus)
        except BaseException:
            self.close()
            raise

    def _connected(self, pymilvus: Any) -> Any:
        address, chosen = self.options.uri, self.options
        if chosen.path is not None:
            address, self._file = _milvus_lite.started(chosen.path)
        return pymilvus.MilvusClient(
            address,
            token=self._token,
            db_name=chosen.database,
            timeout=min(chosen.timeout, _CONNECTING),
            alias=uuid.uuid4().hex,  # clients of one alias close each other's connection
        )

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
        file, self._file = self._file, None
        if file is not None:
            _milvus_lite.ended(file)

    def _stored(self) -> Shape | None:
        chosen = self.options
        with self._errors("cannot be opened"):
            if not self._live.has_collection(chosen.collection, **self._patience):
                return None
            found = self._live.describe_collection(chosen.collection, **self._patience)
        fields = {field["name"]: field for field in found["fields"]}
        marked = _marked(found.get("description", ""))
        self._ours = marked is not None
        self._key_field = next(name for name, field in fields.items() if field.get("is_primary"))
        vector = fields.get(chosen.vector_field)
        if vector is None:
            there = ", ".join(name for name, field in fields.items() if "VECTOR" in field["type"].name)
            raise ConfigError(f"{self._place()} has no such field; it has {there}", path="vector_field")
        kinds: dict[Any, Kind] = {self._types.FLOAT_VECTOR: "float", self._types.BINARY_VECTOR: "binary"}
        if vector["type"] not in kinds:
            raise Unsupported(f"{self._place()}: '{chosen.vector_field}' is a {vector['type'].name}, which is not read")
        kind, dim = kinds[vector["type"]], int(vector["params"]["dim"])
        return Shape(dim, kind, self._ready(marked, kind), (marked or {}).get("owner") or self._adopted())

    def _ready(self, marked: Mapping[str, Any] | None, kind: Kind) -> Metric:
        """The metric of the index, which is loaded; one that was never made, because its maker died, is."""
        name = self.options.collection
        with self._errors("cannot be opened"):
            found = self._live.list_indexes(name, self.options.vector_field, **self._patience)
            if not found:
                if marked is None:
                    raise Unsupported(f"{self._place()} has no index on '{self.options.vector_field}': make one there")
                self._make_index(marked["index"])
                found = [self.options.vector_field]
            self._index = self._live.describe_index(name, found[0], **self._patience)
            self._live.load_collection(name, **self._patience)
        metric = _METRICS.get(self._index["metric_type"])
        if metric is None or (metric == "hamming") != (kind == "binary"):
            raise Unsupported(f"{self._place()}: an index under {self._index['metric_type']} cannot be used")
        return metric

    def _check_shape(self, shape: Shape) -> None:
        chosen, embedded = self.options, self.options.path is not None
        widest = _WIDEST_EMBEDDED if embedded else _WIDEST[shape.kind]
        if not 2 <= shape.dim <= widest:
            raise Unsupported(f"Milvus stores 2 to {widest:,} dimensions or bits here, not {shape.dim:,}")
        if embedded and shape.kind == "binary" and not version("milvus-lite").startswith("2."):
            raise Unsupported(
                f"Milvus Lite {version('milvus-lite')} has no binary vectors: pip install 'milvus-lite==2.5.1' "
                "'setuptools<81', or run a server and give its 'uri'"
            )
        if chosen.vector_field in ("id", "terms", *_PAYLOAD):
            raise ConfigError(f"Milvus: '{chosen.vector_field}' is the name of another field", path="vector_field")
        index = _INDEXES[shape.kind].get(chosen.index)
        if index is None or (embedded and index not in _EMBEDDED):
            whose = "Milvus Lite has" if embedded else "Milvus has"
            raise ConfigError(f"{whose} no index '{chosen.index}' for {shape.kind} vectors", path="index")

    def _make(self, shape: Shape) -> None:
        chosen, types = self.options, self._types
        index: dict[str, Any] = {
            "index_type": _INDEXES[shape.kind][chosen.index],
            "metric_type": next(theirs for theirs, ours in _METRICS.items() if ours == shape.metric),
            "params": {
                "hnsw": {"M": chosen.hnsw_m, "efConstruction": chosen.hnsw_ef_construct},
                "ivf_flat": {"nlist": chosen.nlist},
            }.get(chosen.index, {}),
        }
        noted = json.dumps({"cbir": {"owner": shape.owner, "index": index}})
        with self._errors("cannot be made"):
            schema = self._live.create_schema(auto_id=False, enable_dynamic_field=False, description=noted)
            schema.add_field("id", types.INT64, is_primary=True)
            kind = types.BINARY_VECTOR if shape.kind == "binary" else types.FLOAT_VECTOR
            schema.add_field(chosen.vector_field, kind, dim=shape.dim)
            for field in _PAYLOAD:
                schema.add_field(field, types.VARCHAR, max_length=_TEXT)
            schema.add_field("terms", types.JSON)
            self._live.drop_collection(self._beside, **self._patience)  # of one that somebody else has dropped
            self._live.create_collection(chosen.collection, schema=schema, consistency_level="Strong", **self._patience)
            try:
                self._make_index(index)
                self._live.load_collection(chosen.collection, **self._patience)
            except BaseException:
                self._live.drop_collection(chosen.collection, **self._patience)
                raise
        self._ours, self._key_field, self._index = True, "id", {**index, **index["params"]}

    def _make_index(self, index: Mapping[str, Any]) -> None:
        field = self.options.vector_field
        wanted = self._live.prepare_index_params(field, index_name=field, **index)
        # Of an empty collection there is nothing to wait for.
        self._live.create_index(self.options.collection, wanted, **self._patience, sync=False)

    def _drop(self) -> None:
        with self._errors("cannot be dropped"):
            for name in (self.options.collection, self._beside):
                self._live.drop_collection(name, **self._patience)

    @property
    def _beside(self) -> str:
        """An empty collection, made when this one is taken over: Milvus Lite changes nothing of what it has made."""
        return f"{self.options.collection}_cbir_owner"

    def _adopted(self) -> str | None:
        with self._errors("cannot be opened"):
            if not self._live.has_collection(self._beside, **self._patience):
                return None
            found = self._live.describe_collection(self._beside, **self._patience)
        return (_marked(found.get("description", "")) or {}).get("owner")

    def _adopt(self, owner: str) -> None:
        if not self._ours:
            raise self._foreign()
        with self._errors("cannot be taken over"):
            noted = json.dumps({"cbir": {"owner": owner}})
            schema = self._live.create_schema(auto_id=False, enable_dynamic_field=False, description=noted)
            schema.add_field("id", self._types.INT64, is_primary=True)
            schema.add_field("vector", self._types.FLOAT_VECTOR, dim=2)  # none may be without
            self._live.create_collection(self._beside, schema=schema, **self._patience)

    def _place(self) -> str:
        return f"milvus {self.options.path or self.options.uri} collection '{self.options.collection}'"

    # -- content

    def _upsert(self, ids: Ids, vectors: Codes, payload: Sequence[Payload] | None) -> None:
        if not self._ours:
            raise self._foreign()
        texts = [json.dumps(document) for document in payload_of(payload, slice(0, len(ids)))]
        rows = [
            {
                "id": i,
                self.options.vector_field: vector,
                **{field: text[n * _TEXT : (n + 1) * _TEXT] for n, field in enumerate(_PAYLOAD)},
                "terms": {"t": found},
            }
            for i, vector, text, found in zip(
                ids.tolist(), self._to_engine(vectors), texts, self._terms(ids, texts), strict=True
            )
        ]
        for some in self._requests(texts):
            with self._errors("not all of this batch is stored"):
                self._live.upsert(self.options.collection, rows[some], **self._patience)

    def _terms(self, ids: Ids, texts: Sequence[str]) -> list[list[int]]:
        """The digests of every payload's terms."""
        found = []
        for i, text in zip(ids.tolist(), texts, strict=True):
            mine = terms(json.loads(text))
            if len(mine) > _MOST_TERMS or len(text) > _TEXT * len(_PAYLOAD):
                raise Unsupported(
                    f"{self._place()}: the payload of id {i} has {len(text):,} bytes and {len(mine):,} values; at most "
                    f"{_TEXT * len(_PAYLOAD):,} and {_MOST_TERMS:,} are stored"
                )
            found.append([_digest(one) for one in mine])
        return found

    def _requests(self, texts: Sequence[str]) -> Iterator[slice]:
        """Slices of rows that one request may have."""
        start, taken = 0, 0
        for n, text in enumerate(texts):
            size = self._row_bytes + 4 * len(text)  # the text, and at most as many terms, which are longer
            if n > start and (taken + size > _REQUEST_BYTES or n - start >= _MOST):
                yield slice(start, n)
                start, taken = n, 0
            taken += size
        yield slice(start, len(texts))

    @property
    def _row_bytes(self) -> int:
        dim = cast("int", self.dim)
        return 256 + (dim // 8 if self.kind == "binary" else 4 * dim)

    def _flush(self) -> None:
        if self.dim is None or not self._ours:
            return
        with self._errors("indexing failed"):
            self._live.flush(self.options.collection, **self._patience)
            while self._indexing():
                time.sleep(FIRST_PAUSE)

    def _indexing(self) -> bool:
        """Whether items wait for the index; they are compared one by one meanwhile."""
        found = self._live.describe_index(self.options.collection, self.options.vector_field, **self._patience)
        if found.get("state") == "Failed":
            raise BackendError(f"{self._place()}: indexing failed: {found.get('reason', 'no reason is given')}")
        return found.get("state") != "Finished" and int(found.get("pending_index_rows") or 0) > 0

    def _delete(self, ids: Ids) -> None:
        if not self._ours:
            raise self._foreign()
        for some in batches(len(ids), _MOST):
            with self._errors("deleting failed"):
                self._live.delete(self.options.collection, filter=self._among(ids[some]), **self._patience)

    def _count(self) -> int:
        return int(self._query("", ["count(*)"])[0]["count(*)"])

    def _fetch(self, ids: Ids) -> Codes:
        found = self._read(ids, [self.options.vector_field])
        return self._from_engine([found[i] for i in present(ids, found)])

    def _payload(self, ids: Ids) -> list[dict[str, Any]]:
        found = self._read(ids, self._payload_fields)
        return [self._document(found[i]) for i in present(ids, found)]

    def _read(self, ids: Ids, fields: Sequence[str]) -> dict[int, Mapping[str, Any]]:
        wanted, found = np.unique(ids), dict[int, Mapping[str, Any]]()
        for some in batches(len(wanted), self._page):
            for row in self._query(self._among(wanted[some]), [self._key_field, *fields]):
                found[self._keys.id(row[self._key_field])] = row
        return found

    def _scroll(self, batch_size: int) -> Iterator[Batch]:
        return self._scroll_after(None, batch_size)

    def _scroll_after(self, after: Any, batch_size: int) -> Iterator[Batch]:
        for rows in self._pages([self.options.vector_field, *self._payload_fields], None, batch_size, after):
            keys = [row[self._key_field] for row in rows]
            yield Batch(
                np.array([self._keys.id(key) for key in keys], np.int64),
                self._from_engine(rows),
                [self._keys.labelled(key, self._document(row)) for key, row in zip(keys, rows, strict=True)],
                cursor=keys[-1],
            )

    def _pages(
        self, fields: Sequence[str], test: str | None, size: int = _MOST, after: Any = None
    ) -> Iterator[list[Mapping[str, Any]]]:
        """Rows that pass ``test``, in the order of keys, from behind ``after``."""
        size = min(size, self._page)
        while True:
            tests = [f"({test})"] if test else []
            tests += [f"{self._key_field} > {self._literal(after)}"] if after is not None else []
            rows = self._query(" and ".join(tests), [self._key_field, *fields], limit=size)
            if rows:
                yield rows
            if len(rows) < size:
                return
            after = rows[-1][self._key_field]

    def _query(self, test: str, fields: list[str], **more: Any) -> list[Mapping[str, Any]]:
        # As its iterator asks, so that what a limit leaves are the first keys; that iterator quotes no keys.
        paged = {"iterator": "True", "reduce_stop_for_best": "True"} if more else {}
        with self._errors("reading failed"):
            return list(
                self._live.query(
                    self.options.collection,
                    filter=test,
                    output_fields=fields,
                    **self._patience,
                    **paged,
                    **more,
                )
            )

    @property
    def _page(self) -> int:
        return max(1, min(_MOST, _REQUEST_BYTES // (4 * self._row_bytes)))

    @property
    def _payload_fields(self) -> list[str]:
        return list(_PAYLOAD) if self._ours else ["*"]

    def _document(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self._ours:
            return dict(json.loads("".join(row[field] for field in _PAYLOAD)))
        known = (self._key_field, self.options.vector_field)
        return as_payload({key: value for key, value in row.items() if key not in known})

    def _among(self, ids: Ids) -> str:
        return f"{self._key_field} in [{', '.join(self._literal(self._keys.key(i)) for i in ids.tolist())}]"

    def _literal(self, key: Any) -> str:
        if isinstance(key, int):
            return str(key)
        if self.options.path is not None and re.search(r"[\r\n]", key):
            raise Unsupported(f"{self._place()}: Milvus Lite cannot be asked for a key with a line break: {key[:50]!r}")
        escaped = str(key).translate({92: r"\\", 34: r"\"", 10: r"\n", 13: r"\r"})
        return f'"{escaped}"'

    def _to_engine(self, vectors: Codes) -> list[Any]:
        return [bytes(code) for code in vectors] if self.kind == "binary" else list(vectors)

    def _from_engine(self, rows: Sequence[Mapping[str, Any]]) -> Codes:
        stored, dim = [row[self.options.vector_field] for row in rows], cast("int", self.dim)
        if self.kind == "binary":
            return np.frombuffer(b"".join(code[0] for code in stored), np.uint8).reshape(len(rows), dim // 8)
        vectors = np.asarray(stored, np.float32).reshape(len(rows), dim)
        return directions(vectors) if self.metric == "cosine" and not self._ours else vectors

    # -- search

    def _search(self, vectors: Codes, k: int, where: Where | None, options: Any) -> Hits:
        test, whole = (None, where is None) if where is None or not self._ours else _compiled(where)
        least = k if k <= _MOST else min(k, max(1, self._count()))
        if whole and least <= _MOST:
            return _padded(self._nearest(vectors, least, test, options), k)
        # More than one answer may have, or a filter that is not all said: the nearest of parts of what may be found.
        ids = self._matching(None if whole else where, test)
        parts = [
            self._nearest(vectors, min(least, _MOST), self._among(ids[some]), options)
            for some in batches(len(ids), _MOST)
        ]
        return _padded(_merged(parts, len(vectors)), k)

    def _matching(self, where: Where | None, test: str | None) -> Ids:
        """Ids of what passes ``test`` and ``where`` matches."""
        fields = [] if where is None else self._payload_fields
        return np.array(
            [
                self._keys.id(row[self._key_field])
                for rows in self._pages(fields, test)
                for row in rows
                if where is None or where.matches(self._document(row))
            ],
            np.int64,
        )

    def _nearest(self, vectors: Codes, k: int, test: str | None, options: Any) -> Hits:
        wanted, found = self._search_parameters(k, options), []
        for some in batches(len(vectors), max(1, min(_MOST, _ANSWERS // k, _REQUEST_BYTES // self._row_bytes))):
            with self._errors("searching failed"):
                found += self._live.search(
                    self.options.collection,
                    data=self._to_engine(vectors[some]),
                    filter=test or "",
                    limit=k,
                    anns_field=self.options.vector_field,
                    search_params=wanted,
                    **self._patience,
                )
        return to_hits(
            [[(self._keys.id(hit["id"]), self._distance(hit["distance"])) for hit in row] for row in found], k
        )

    def _search_parameters(self, k: int, options: Any) -> dict[str, Any]:
        kind = self._index["index_type"]
        if kind not in _EXACT and kind not in _LISTS and options.exact:
            raise Unsupported(f"{self._place()}: its index is {kind.lower()}, which cannot compare with everything")
        if kind == "HNSW":
            return {"params": {"ef": max(k, options.hnsw_ef)}}
        if "IVF" in kind:
            every = int(self._index.get("nlist", 128))
            return {"params": {"nprobe": every if options.exact else min(every, options.nprobe or 8)}}
        return {"params": {}}

    def _range(self, vectors: Codes, radius: float, where: Where | None) -> RangeHits:
        exact, total = self._search_options({"exact": True}), max(1, self._count())
        for most in (_FEW, _MOST, total):
            hits = self._search(vectors, min(most, total), where, exact)
            if most >= total or bool((hits.distances[:, -1] > radius).all()):
                break
        return within(hits, radius)

    def _distance(self, score: float) -> float:
        return 1 - score if self.metric == "cosine" else -score if self.metric == "ip" else score

    @classmethod
    def item_bytes(cls, options: Mapping[str, Any], dim: int, kind: Kind) -> ItemBytes:
        chosen = cls.Options.model_validate(dict(options))
        vector = dim * 4 if kind == "float" else dim / 8
        links = graph_bytes(chosen.hnsw_m) if chosen.index == "hnsw" else 0
        index = 0 if chosen.index == "flat" else vector + links  # a copy of its own
        return ItemBytes.of(vector + links + ROW_BYTES, vector + index + ROW_BYTES)

    def _exact_by_default(self) -> bool:
        return self._index["index_type"] in _EXACT

    @property
    def in_process(self) -> bool:
        return False  # Milvus Lite is a process of its own, whose memory is not this one's

    def disk_bytes(self) -> int | None:
        """Of the whole file, with all of its collections."""
        return self._file.stat().st_blocks * 512 if self._file is not None and self._file.is_file() else None

    # -- how

    @property
    def _live(self) -> Any:
        if self._client is None:
            raise BackendError(f"{self._place()} is closed")
        return self._client

    @property
    def _patience(self) -> dict[str, int]:
        """A server may be busy; an engine beside this process answers, or has ended."""
        return {"timeout": self.options.timeout} if self.options.path is None else {"retry_times": 3}

    def _foreign(self) -> Unsupported:
        return Unsupported(f"{self._place()} was made by another program: it can be read, not written")

    def _errors(self, doing: str) -> Any:
        return engine_errors(f"{self._place()}: {doing}", secrets=[self._token], explain=self._explained)

    def _explained(self, error: BaseException) -> str:
        """Milvus's own words for an error, without its codes."""
        said = str(getattr(error, "message", ""))
        if self.options.path is not None and re.search("fail(ed)? (to )?connect", said, re.IGNORECASE):
            return "the engine of this file has ended: close what has it open here, and open it again"
        return one_line(Exception(said), [self._token]) if said else ""


def _name(name: str) -> str:
    """``name`` in letters that Milvus takes, which are fewer than elsewhere."""
    cleaned = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return cleaned if cleaned[:1].isalpha() else f"_{cleaned}"


def _marked(description: str) -> dict[str, Any] | None:
    """What a collection that was made here says of itself."""
    try:
        return dict(json.loads(description)["cbir"])
    except (ValueError, KeyError, TypeError):
        return None


def _digest(text: str) -> int:
    """63 bits: Milvus Lite ends where it compares many texts of more than 15 letters."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _compiled(where: Where) -> tuple[str | None, bool]:
    def among(found: In) -> str:
        digests = [_digest(term(found.key, value)) for value in found.values]
        return f'json_contains_any(terms["t"], {digests})' if digests else "id < 0"

    # Milvus Lite has no NOT, and nests some forty deep, one test after the other too.
    return compile_terms(where, among, most=_MOST_VALUES, negates=False, deepest=4, join=balanced)


def _merged(parts: Sequence[Hits], queries: int) -> Hits:
    """The nearest of several answers to the same queries, nearest first."""
    if not parts:
        return missing_hits(queries, 1)
    ids = np.concatenate([part.ids for part in parts], axis=1)
    distances = np.concatenate([part.distances for part in parts], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")
    return Hits(np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1))


def _padded(hits: Hits, k: int) -> Hits:
    """The first ``k`` of each row, which had as many or fewer."""
    found = missing_hits(len(hits.ids), k)
    width = min(k, hits.ids.shape[1])
    found.ids[:, :width], found.distances[:, :width] = hits.ids[:, :width], hits.distances[:, :width]
    return found
