"""A Qdrant server small enough for a test: its REST interface on a real socket, the client's own engine behind it.

It can be told to misbehave: to refuse a key, to answer with error codes for a while, or to die in the middle of a
push, and it comes back on the same port with what it had acknowledged.
"""

from __future__ import annotations

import json
import socket
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from qdrant_client import QdrantClient, models


class QdrantServer:
    """``with QdrantServer() as server: … server.url``."""

    def __init__(self, *, api_key: str = "") -> None:
        self.engine = QdrantClient(":memory:")
        self.lock = threading.Lock()
        self.api_key = api_key
        self.failures: list[int] = []
        """Status codes that the next writes are answered with."""
        self.lives: int | None = None
        """Writes that are still acknowledged before the server dies; None for ever."""
        self.writes = 0
        self.statuses: list[str] = []
        """What the collection says of itself when it is next asked, instead of green."""
        self.woken = 0
        """Changes of the configuration, which start the optimizers of a grey collection."""
        self._port = 0
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before after a death."""
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._http.daemon_threads = True
        self._port = self._http.server_port
        self.url = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> QdrantServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.engine.close()

    def dies_now(self) -> bool:
        """Count one write; whether it is one too many."""
        with self.lock:
            self.writes += 1
            if self.lives is None:
                return False
            self.lives -= 1
            return self.lives < 0


class _Handler(BaseHTTPRequestHandler):
    owner: QdrantServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        write = (self.command, parts[2:]) in (("PUT", ["points"]), ("POST", ["points", "delete"]))
        if self.owner.api_key and self.headers.get("api-key") != self.owner.api_key:
            self._answer(401, {"status": {"error": "Invalid API key or JWT"}})
        elif write and self.owner.failures:
            self._answer(self.owner.failures.pop(0), {"status": {"error": "busy"}})
        elif write and self.owner.dies_now():
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            name, rest = (parts[1], parts[2:]) if parts[0] == "collections" else ("", parts)
            self._answer(*self._served(name, "/".join([self.command, *rest]), body))

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _handle

    def _answer(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _served(self, name: str, call: str, body: bytes) -> tuple[int, Any]:
        with self.owner.lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = _CALLS[call](self.owner.engine, name, body)
            except (KeyError, ValueError) as error:
                return 404, {"status": {"error": str(error)}}
            self.owner.woken += call == "PATCH"
            if call == "GET" and self.owner.statuses:
                result["status"] = self.owner.statuses.pop(0)
        return 200, {"result": result, "status": "ok", "time": 0.0}


def _json(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _create(engine: QdrantClient, name: str, body: bytes) -> bool:
    asked = models.CreateCollection.model_validate_json(body)
    return engine.create_collection(name, vectors_config=asked.vectors)


def _upsert(engine: QdrantClient, name: str, body: bytes) -> Any:
    batch = models.PointsBatch.model_validate_json(body).batch
    return _json(engine.upsert(name, batch))


def _query(engine: QdrantClient, name: str, body: bytes) -> Any:
    requests = models.QueryRequestBatch.model_validate_json(body).searches
    return [_json(answer) for answer in engine.query_batch_points(name, requests)]


def _retrieve(engine: QdrantClient, name: str, body: bytes) -> Any:
    asked = models.PointRequest.model_validate_json(body)
    found = engine.retrieve(name, asked.ids, with_payload=asked.with_payload, with_vectors=bool(asked.with_vector))
    return [_json(record) for record in found]


def _scroll(engine: QdrantClient, name: str, body: bytes) -> Any:
    asked = models.ScrollRequest.model_validate_json(body)
    points, after = engine.scroll(name, limit=asked.limit or 10, offset=asked.offset, with_vectors=True)
    return {"points": [_json(point) for point in points], "next_page_offset": after}


def _delete(engine: QdrantClient, name: str, body: bytes) -> Any:
    return _json(engine.delete(name, models.PointIdsList.model_validate_json(body)))


def _switch(engine: QdrantClient, _: str, body: bytes) -> bool:
    return engine.update_collection_aliases(models.ChangeAliasesOperation.model_validate_json(body).actions)


_CALLS: dict[str, Any] = {
    "GET/aliases": lambda engine, *_: _json(engine.get_aliases()),
    "POST": _switch,
    "GET/exists": lambda engine, name, _: {"exists": engine.collection_exists(name)},
    "GET": lambda engine, name, _: _json(engine.get_collection(name)),
    "PUT": _create,
    "PATCH": lambda engine, name, _: True,
    "DELETE": lambda engine, name, _: engine.delete_collection(name),
    "PUT/index": lambda engine, name, _: {"operation_id": 0, "status": "completed"},
    "PUT/points": _upsert,
    "POST/points": _retrieve,
    "POST/points/delete": _delete,
    "POST/points/query/batch": _query,
    "POST/points/scroll": _scroll,
    "POST/points/count": lambda engine, name, _: {"count": engine.count(name).count},
}
