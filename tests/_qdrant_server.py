"""A Qdrant server small enough for a test: its REST interface on a real socket, Qdrant's own engine behind it.

It can be told to misbehave: to refuse a key, to answer some requests with an error or not at all, or to die in the
middle of a push, and it comes back on the same port with what it had acknowledged.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from _http import Handler, HttpServer
from _qdrant_engine import Collection, Engine, Refused
from qdrant_client import QdrantClient

_REASONS = {
    401: "Invalid API key or JWT",
    413: "Payload error: JSON payload is larger than allowed",
    429: "Rate limiting exceeded: retry later",
    500: "Service internal error",
    503: "Service temporarily unavailable",
}


@dataclass
class Fault:
    """What the next ``times`` requests of a kind meet instead of an answer."""

    status: int | Literal["silence", "hang up"]
    """A status of HTTP; no answer for as long as the client waits; or a connection that is closed."""
    on: Literal["read", "write", "any"] = "write"
    times: int = 1
    retry_after: int | None = None
    """Seconds of the header Retry-After."""
    done: bool = False
    """Whether the request is carried out before: only its answer is lost."""


class _Handler(Handler):
    owner: QdrantServer

    def _handle(self) -> None:
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        call = "/".join([self.command, *parts[2:]])
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        self.owner.requests.append(f"{self.command} {address.path}")
        kind = "read" if call in _READS or self.command == "GET" else "write"
        if self.owner.api_key and self.headers.get("api-key") != self.owner.api_key:
            return self._refuse(401)
        if length > self.owner.max_bytes:
            return self._refuse(413)
        fault = self.owner.fault(kind)
        if fault is not None:
            if fault.done:
                self._served(parts, call, address.query, body)
            return self._fail(fault)
        if kind == "write" and parts[2:3] == ["points"] and self.owner.dies_now():
            return self._hang_up()
        return self._answer(*self._served(parts, call, address.query, body))

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _handle

    def _fail(self, fault: Fault) -> None:
        if isinstance(fault.status, int):
            return self._refuse(fault.status, fault.retry_after)
        if fault.status == "silence":  # until the client gives up and closes its end
            select.select([self.connection], [], [], 30)
        return self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _refuse(self, status: int, retry_after: int | None = None) -> None:
        header = {} if retry_after is None else {"retry-after": str(retry_after)}
        self._answer(status, {"status": {"error": _REASONS.get(status, "refused")}, "time": 0.0}, header)

    def _answer(self, status: int, document: Any, header: dict[str, str] | None = None) -> None:
        self.answer(status, json.dumps(document).encode(), {"content-type": "application/json", **(header or {})})

    def _served(self, parts: list[str], call: str, query: str, body: bytes) -> tuple[int, Any]:
        wait = parse_qs(query).get("wait", ["false"]) == ["true"]
        with self.owner.lock:
            try:
                result = _result(self.owner, parts, call, body, wait)
            except Refused as error:
                return error.status, {"status": {"error": str(error)}, "time": 0.0}
            except Exception as error:  # Edge raises plain ones for whatever it is not given right
                return 400, {"status": {"error": f"Wrong input: {error}"}, "time": 0.0}
        return 200, {"result": result, "status": "ok", "time": 0.0}


class QdrantServer(HttpServer):
    """``with QdrantServer() as server: … server.url``."""

    handler = _Handler

    def __init__(self, *, api_key: str = "", max_bytes: int = 32 * 2**20) -> None:
        self.storage = Engine()
        self.api_key, self.max_bytes = api_key, max_bytes
        self.faults: list[Fault] = []
        """Each meets the next requests of its kind; the first that fits is used up first."""
        self.lives: int | None = None
        """Writes of points that are still acknowledged before the server dies; None for ever."""
        self.writes = 0
        self.statuses: list[str] = []
        """What a collection says of itself when it is next asked, instead of what is the case."""
        self.requests: list[str] = []
        """``METHOD path`` of everything that was asked."""
        super().__init__()

    def __exit__(self, *_: object) -> None:
        self.stop()
        with self.lock:
            self.storage.close()

    @cached_property
    def engine(self) -> QdrantClient:
        """Somebody else's client of this server, for a test to put things there and to look."""
        return QdrantClient(url=self.url, check_compatibility=False)

    @property
    def woken(self) -> int:
        """Changes of configurations, which start the optimizers of a grey collection."""
        return sum(collection.woken for collection in self.storage.collections.values())

    def fault(self, kind: str) -> Fault | None:
        """The fault that a request of this kind meets, which is then used up by one."""
        with self.lock:
            for fault in self.faults:
                if fault.on in (kind, "any"):
                    fault.times -= 1
                    self.faults = [other for other in self.faults if other.times > 0]
                    return fault
        return None

    def dies_now(self) -> bool:
        """Count one write; whether it is one too many."""
        with self.lock:
            self.writes += 1
            if self.lives is None:
                return False
            self.lives -= 1
            return self.lives < 0


def _result(owner: QdrantServer, parts: list[str], call: str, body: bytes, wait: bool) -> Any:
    storage, told = owner.storage, json.loads(body) if body else {}
    if parts in (["collections"], ["aliases"], ["collections", "aliases"]) or parts[2:] == ["aliases"]:
        return _names(owner.storage, parts, told)
    name = parts[1]
    if call in _COLLECTIONS:
        return _COLLECTIONS[call](storage, name, body)
    collection = storage.existing(name)
    if call == "GET":
        found = collection.info()
        return found | {"status": owner.statuses.pop(0)} if owner.statuses else found
    if call in _READS:
        return _READS[call](collection, told)
    if call in _WRITES:
        return collection.update(_WRITES[call](collection, told), wait=wait)
    raise Refused(404, f"Not found: {call}")


def _names(storage: Engine, parts: list[str], told: Any) -> Any:
    """Names and other names of collections."""
    if parts == ["collections", "aliases"]:
        return storage.change_aliases(told["actions"])
    if parts == ["collections"]:
        return {"collections": [{"name": name} for name in storage.collections]}
    known = [{"alias_name": alias, "collection_name": name} for alias, name in storage.aliases.items()]
    return {"aliases": [one for one in known if parts == ["aliases"] or one["collection_name"] == parts[1]]}


_COLLECTIONS: dict[str, Callable[[Engine, str, bytes], Any]] = {
    "GET/exists": lambda storage, name, _: {"exists": storage.find(name) is not None},
    "PUT": Engine.create,
    "DELETE": lambda storage, name, _: storage.delete(name),
    "PATCH": lambda storage, name, body: storage.existing(name).change(json.loads(body)),
}
_READS: dict[str, Callable[[Collection, Any], Any]] = {
    "POST/points": Collection.retrieve,
    "POST/points/query/batch": lambda collection, told: collection.query(told["searches"]),
    "POST/points/query": lambda collection, told: collection.query([told])[0],
    "POST/points/scroll": Collection.scroll,
    "POST/points/count": Collection.count,
}
_WRITES: dict[str, Callable[[Collection, Any], Any]] = {
    "PUT/index": lambda collection, told: collection.index(told["field_name"], told["field_schema"]),
    "PUT/points": Collection.upsert,
    "PUT/points/vectors": Collection.set_vectors,
    "POST/points/vectors/delete": lambda collection, told: collection.chosen("delete_vectors", told, told["vector"]),
    "POST/points/delete": lambda collection, told: collection.chosen("delete_points", told),
    "POST/points/payload": lambda collection, told: collection.chosen("set_payload", told, told["payload"]),
    "PUT/points/payload": lambda collection, told: collection.chosen("overwrite_payload", told, told["payload"]),
    "POST/points/payload/delete": lambda collection, told: collection.chosen("delete_payload", told, told["keys"]),
    "POST/points/payload/clear": lambda collection, told: collection.chosen("clear_payload", told),
}
