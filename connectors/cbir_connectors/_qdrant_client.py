"""Qdrant behind its client: a server, a cluster or the cloud by REST or gRPC, or the client's own ``:memory:``."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from cbir_connectors._qdrant_filter import Dialect
from cbir_connectors._qdrant_target import Point, Query, Scored, Upload, Vectors, named, pick
from cbir_faiss.backends.database import Answer, engine_errors, need_version, retried
from cbir_faiss.errors import BackendError, Unsupported

API_KEY = "CBIR_QDRANT_API_KEY"
MEMORY = ":memory:"
_ENCODINGS = {"binary": "one_bit", "binary-1.5": "one_and_half_bits", "binary-2": "two_bits"}
_OWNER = "cbir_owner"  # in the metadata of a collection
_INDEXING_LIMIT = 24 * 3600.0
_BUSY_STATUS = {408, 429, 500, 502, 503, 504}
_BUSY_RPC = {"RESOURCE_EXHAUSTED", "ABORTED"}
_LOST_RPC = {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


class ClientTarget:
    """A collection behind ``qdrant_client``. Reads and writes are tried again: all of them can be done twice."""

    def __init__(self, options: Any) -> None:
        client: Any = need_version("qdrant_client", "qdrant-client", "qdrant", (1, 19))
        self.models: Any = client.models
        self.dialect = Dialect(self.models)
        self.options, self.name = options, options.collection
        self.place = f"qdrant {options.url} collection '{self.name}'"
        self.local = options.url == MEMORY
        self.guard: Any = threading.RLock() if self.local else nullcontext()  # the local client is for one thread
        self.secret = os.environ.get(API_KEY, "")
        self.shared, self.reserved = False, frozenset[str]()
        with self._errors("cannot be opened"):
            if self.local:
                self.client = client.QdrantClient(MEMORY)
            else:
                self.client = client.QdrantClient(
                    url=options.url,
                    api_key=self.secret or None,
                    prefer_grpc=options.prefer_grpc,
                    grpc_port=options.grpc_port,
                    timeout=options.timeout,
                    check_compatibility=False,
                )

    # -- collection

    def stored(self) -> Vectors | None:
        with self._errors("cannot be opened"):
            config = self._retry(self._config, busy)
        if config is None:
            return None
        params = config.params.vectors
        vectors = params if isinstance(params, dict) else {"": params} if params else {}
        self.shared = len(vectors) + len(config.params.sparse_vectors or {}) > 1
        found = pick(vectors, self.options.vector, self.place)
        if found.multivector_config is not None:
            raise Unsupported(f"{self.place}: several vectors an item cannot be used")
        datatype = found.datatype.value if found.datatype else "float32"
        quantized = bool(config.quantization_config or found.quantization_config)
        return Vectors(found.size, found.distance.value, datatype, (config.metadata or {}).get(_OWNER), quantized)

    def _config(self) -> Any:
        return self.client.get_collection(self.name).config if self.client.collection_exists(self.name) else None

    def make(self, vectors: Vectors, hnsw_m: int) -> None:
        self._make(self.name, vectors, hnsw_m)
        self.shared = False

    def rehearse(self, vectors: Vectors, hnsw_m: int) -> None:
        name = f"{self.name[:200]}.{secrets.token_hex(4)}"
        try:
            self._make(name, vectors, hnsw_m)
        finally:
            with suppress(Exception):  # what went wrong before is what is said
                self.client.delete_collection(name)

    def _make(self, name: str, vectors: Vectors, hnsw_m: int) -> None:
        chosen, models = self.options, self.models
        params = models.VectorParams(
            size=vectors.size,
            distance=models.Distance(vectors.distance),
            datatype=models.Datatype(vectors.datatype),
            on_disk=chosen.on_disk,
        )
        with self._errors("cannot be made"):
            self.client.create_collection(
                name,
                vectors_config={chosen.vector: params} if chosen.vector else params,
                shard_number=chosen.shard_number,
                replication_factor=chosen.replication_factor,
                write_consistency_factor=chosen.write_consistency_factor,
                hnsw_config=models.HnswConfigDiff(
                    m=0 if chosen.tenant else hnsw_m,  # each tenant has a graph of its own
                    payload_m=hnsw_m if chosen.tenant else None,
                    ef_construct=chosen.hnsw_ef_construct,
                    full_scan_threshold=chosen.full_scan_threshold,
                ),
                optimizers_config=models.OptimizersConfigDiff(indexing_threshold=chosen.indexing_threshold),
                quantization_config=self._quantization(),
                metadata={_OWNER: vectors.owner} if vectors.owner else None,
            )
            if not self.local:  # the client's own storage has no indexes, and warns
                for key, kind in chosen.payload_indexes.items():
                    self.client.create_payload_index(name, key, models.PayloadSchemaType(kind))
                if chosen.tenant:
                    schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
                    self.client.create_payload_index(name, chosen.tenant.key, schema)

    def adopt(self, owner: str) -> None:
        with self._errors("cannot be taken over"):
            self._retry(lambda: self.client.update_collection(self.name, metadata={_OWNER: owner}))

    def _quantization(self) -> Any:
        chosen, models = self.options.quantization, self.models
        if chosen == "none":
            return None
        if chosen == "scalar":
            scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
            return models.ScalarQuantization(scalar=scalar)
        encoding = models.BinaryQuantizationEncoding(_ENCODINGS[chosen])
        query = models.BinaryQuantizationQueryEncoding(self.options.query_encoding)
        config = models.BinaryQuantizationConfig(encoding=encoding, query_encoding=query, always_ram=True)
        return models.BinaryQuantization(binary=config)

    def drop(self) -> None:
        with self._errors("cannot be dropped"):
            self.client.delete_collection(self.name)

    # -- behind an alias

    def standby(self) -> str:
        """The name of the collection that the alias ``self.name`` is to be switched to: one of two, in turn."""
        return f"{self.name}-2" if self._named() == f"{self.name}-1" else f"{self.name}-1"

    def swap(self) -> None:
        """Switch the alias to ``standby``; who asks by the alias gets the one or the other."""
        models, operations = self.models, []
        if self._named() is not None:
            old = models.DeleteAlias(alias_name=self.name)
            operations.append(models.DeleteAliasOperation(delete_alias=old))
        new = models.CreateAlias(alias_name=self.name, collection_name=self.standby())
        operations.append(models.CreateAliasOperation(create_alias=new))
        with self._errors("the alias cannot be switched"):
            self.client.update_collection_aliases(change_aliases_operations=operations)

    def _named(self) -> str | None:
        """The collection that the alias stands for; None where there is no alias yet."""
        with self._errors("its aliases cannot be read"):
            aliases = {alias.alias_name: str(alias.collection_name) for alias in self.client.get_aliases().aliases}
            if self.name not in aliases and self.client.collection_exists(self.name):
                raise Unsupported(
                    f"{self.place} is a collection, and only an alias can be switched: "
                    "leave --swap out, or push to a name that is none"
                )
        return aliases.get(self.name)

    # -- content

    def upsert(self, items: int, uploads: Iterable[Upload]) -> None:
        """Send the batches from ``options.parallel`` threads; each is applied when it is acknowledged."""
        done = 0
        if self.local or self.options.parallel == 1:
            for upload in uploads:
                with self._errors(self._stopped(done, items)):
                    done += self._send(upload)
            return
        with ThreadPoolExecutor(self.options.parallel) as pool:
            running: set[Future[int]] = set()
            for upload in uploads:
                # A bounded queue, so that the caller's data is not converted all at once.
                if len(running) > self.options.parallel:
                    done += self._collect(running, done, items)
                running.add(pool.submit(self._send, upload))
            while running:
                done += self._collect(running, done, items)

    def _collect(self, running: set[Future[int]], done: int, items: int) -> int:
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        running -= finished
        with self._errors(self._stopped(done, items)):
            return sum(future.result() for future in finished)

    def _send(self, upload: Upload) -> int:
        keys, vectors, payload = upload
        name = self.options.vector
        if self.shared:
            operations = self._beside(upload)
            self._retry(lambda: self.client.batch_update_points(self.name, operations, wait=True))
            return len(keys)
        batch = self.models.Batch(ids=keys, vectors={name: vectors} if name else vectors, payloads=payload)
        # wait: a server that has only queued a batch may still refuse it
        self._retry(lambda: self.client.upsert(self.name, batch, wait=True))
        return len(keys)

    def _beside(self, upload: Upload) -> list[Any]:
        """Points that are not there are stored whole; of the others, one vector and some payload keys are set."""
        models, name, each = self.models, self.options.vector, list(zip(*upload, strict=True))
        new = [models.PointStruct(id=key, vector={name: vector}, payload=value) for key, vector, value in each]
        old = [models.PointVectors(id=key, vector={name: vector}) for key, vector, _ in each]
        return [
            models.UpsertOperation(upsert=models.PointsList(points=new, update_mode=models.UpdateMode.INSERT_ONLY)),
            models.UpdateVectorsOperation(update_vectors=models.UpdateVectors(points=old)),
            *(
                models.SetPayloadOperation(set_payload=models.SetPayload(payload=value, points=[key]))
                for key, _, value in each
                if value
            ),
        ]

    @staticmethod
    def _stopped(done: int, items: int) -> str:
        return f"storing stopped, {done} of {items} items are known to be stored; upserting again is safe"

    def delete(self, keys: list[Any]) -> None:
        selector = self.models.PointIdsList(points=keys)
        with self._errors("deleting failed"):
            self._retry(lambda: self.client.delete(self.name, selector, wait=True))

    def mark(self, payload: dict[str, Any], where: Any) -> None:
        with self._errors("cannot be taken over"):
            self._retry(lambda: self.client.set_payload(self.name, payload, where, wait=True))

    def erase(self, where: Any) -> None:
        with self._errors("deleting failed"):
            self._retry(lambda: self.client.delete(self.name, where, wait=True))

    def _retry(self, call: Callable[[], Answer], transient: Callable[[Exception], bool] | None = None) -> Answer:
        return retried(
            call,
            retries=self.options.retries,
            transient=transient or busy_or_lost,
            asked=asked,
            patience=self.options.timeout,
        )

    # -- reading

    def query(self, vectors: list[list[float]], query: Query, where: Any) -> list[list[Scored]]:
        name = self.options.vector
        requests = [
            self.models.QueryRequest(
                query=vector,
                using=name or None,
                limit=query.limit,
                filter=where,
                params=self._params(query),
                score_threshold=query.threshold,
                with_vector=query.with_vectors,
                with_payload=False,
            )
            for vector in vectors
        ]
        with self._errors("searching failed"):
            answers = self._retry(lambda: self.client.query_batch_points(self.name, requests))
        return [
            [(p.id, p.score, query.with_vectors and named(p.vector, name)) for p in answer.points] for answer in answers
        ]

    def _params(self, query: Query) -> Any:
        if self.local:  # exact in any case, and warns
            return None
        quantization = self.models.QuantizationSearchParams(rescore=query.rescore, oversampling=query.oversampling)
        return self.models.SearchParams(hnsw_ef=query.hnsw_ef, exact=query.exact, quantization=quantization)

    def retrieve(self, keys: list[Any], *, vectors: bool, payload: bool) -> list[Point]:
        with self._errors("reading failed"):
            records = self._retry(
                lambda: self.client.retrieve(self.name, keys, with_payload=payload, with_vectors=vectors)
            )
        return [(r.id, named(r.vector, self.options.vector), r.payload) for r in records]

    def scroll(self, batch_size: int, offset: Any = None, where: Any = None) -> Iterator[list[Point]]:
        while True:
            with self._errors("reading failed"):
                ask = partial(self.client.scroll, self.name, where, limit=batch_size, offset=offset)
                records, offset = self._retry(partial(ask, with_payload=True, with_vectors=True))
            if records:
                yield [(r.id, named(r.vector, self.options.vector), r.payload) for r in records]
            if offset is None:
                return

    def count(self, where: Any = None) -> int:
        with self._errors("counting failed"):
            return int(self._retry(lambda: self.client.count(self.name, where, exact=True)).count)

    # -- life

    def settle(self) -> None:
        """Wait until the optimizers are done: green.

        Raises:
            BackendError: an optimizer failed (red), or it takes longer than a day.
        """
        deadline, pause = time.monotonic() + _INDEXING_LIMIT, 0.05
        while not self.local:
            with self._errors("indexing failed"):
                info = self._retry(lambda: self.client.get_collection(self.name))
                if info.status == "grey":  # after a restart the optimizers wait for any change of the configuration
                    self.client.update_collection(self.name, optimizers_config=self.models.OptimizersConfigDiff())
            if info.status == "green":
                return
            if info.status == "red" or time.monotonic() > deadline:
                raise BackendError(f"{self.place} is {info.status.value}: {info.optimizer_status}")
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def disk_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        self.client.close()

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        with self.guard, engine_errors(f"{self.place}: {doing}", secrets=[self.secret], explain=explain):
            yield


def busy(error: BaseException) -> bool:
    """Whether a server answered, and may do what it was asked a little later."""
    # A bare QdrantException is the client's about a Retry-After that is a date.
    exhausted = type(error).__name__ in {"ResourceExhaustedResponse", "QdrantException"}
    return exhausted or getattr(error, "status_code", None) in _BUSY_STATUS or _rpc_code(error) in _BUSY_RPC


def busy_or_lost(error: BaseException) -> bool:
    """``busy``, or the connection to it was lost."""
    return busy(error) or type(error).__name__ == "ResponseHandlingException" or _rpc_code(error) in _LOST_RPC


def asked(error: BaseException) -> float:
    """Seconds that the server asks to wait; 0 where it does not say, or says a date."""
    told = getattr(error, "retry_after_s", None) or getattr(error, "headers", None) or 0
    told = told.get("retry-after", 0) if hasattr(told, "get") else told
    try:
        return float(told)
    except ValueError:
        return 0.0


def _rpc_code(error: BaseException) -> str:
    code = getattr(error, "code", None)
    return str(getattr(code(), "name", "")) if callable(code) else ""


def explain(error: BaseException) -> str:
    """What to do about the usual failures; '' where the client's own words must do."""
    status, name = getattr(error, "status_code", None), _rpc_code(error)
    if status in {401, 403} or name in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
        return f"the server refused the API key; it is read from {API_KEY}"
    if status == 413:
        return "the server refuses requests of this size; lower 'batch_size', or raise its limit"
    source = type(getattr(error, "source", error)).__name__
    if source in {"ConnectError"} or name == "UNAVAILABLE":
        return "no server answers at this address"
    if "Timeout" in source or name == "DEADLINE_EXCEEDED":
        return "no answer within 'timeout' seconds"
    return ""
