"""What LanceDB's servers do with a request of its client, done by the engine in this process."""

from __future__ import annotations

import io
import json
import tempfile
from typing import Any
from urllib.parse import parse_qs, urlsplit

import lancedb
import lancedb.index as kinds
import numpy as np
import pyarrow as pa
from _http import Handler, HttpServer

_ARROW = "application/vnd.apache.arrow.file"
_KINDS = {"IVF_FLAT": "IvfFlat", "IVF_PQ": "IvfPq", "IVF_RQ": "IvfRq", "IVF_HNSW_SQ": "HnswSq"}
Answer = tuple[int, str, bytes]


class _Handler(Handler):
    owner: LancedbServer

    def _handle(self) -> None:
        body, address = self._body(), urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        self.owner.requests.append(f"{self.command} {address.path} {body[:500]!r}")
        if self.owner.status or self.headers["x-api-key"] != self.owner.api_key:
            status, kind, content = _json({"error": "refused"}, self.owner.status or 401)
        else:
            with self.owner.lock:
                status, kind, content = self.owner.answered(address.path, asked, body)
        self.answer(status, content, {"content-type": kind})

    do_GET = do_POST = _handle

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


class LancedbServer(HttpServer):
    """``with LancedbServer() as server: Lancedb(uri="db://any", host=server.url)``."""

    handler = _Handler

    def __init__(self, api_key: str = "hunter2") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cbir-lancedb-")
        self.db = lancedb.connect(self._folder.name)
        self.api_key, self.status = api_key, 0
        """What every request meets, if it is not 0."""
        self.requests: list[str] = []
        super().__init__()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def answered(self, path: str, asked: dict[str, str], body: bytes) -> Answer:
        if path.endswith("/table/list"):
            return _json({"tables": self.db.list_tables().tables})
        _, _, name, *rest = path.strip("/").split("/")
        call = "/".join(rest)
        if call == "create":
            self.db.create_table(name, pa.ipc.open_stream(body).read_all(), mode=asked.get("mode", "create"))
            return _json({"version": 1})
        if name not in self.db.list_tables().tables:
            return _json({"error": "no such table"}, 404)
        if call == "drop":
            self.db.drop_table(name)
            return _json({})
        table = self.db.open_table(name)
        if call == "merge_insert":
            merge = table.merge_insert(asked["on"]).when_matched_update_all().when_not_matched_insert_all()
            merge.execute(pa.ipc.open_stream(body).read_all())
            return _json({"version": table.version})
        return self._of(table, call, json.loads(body or b"{}"))

    def _of(self, table: Any, call: str, told: dict[str, Any]) -> Answer:
        if told.get("version") is not None:
            table.checkout(told["version"])
        if call == "describe":
            fields, noted = [_field(field) for field in table.schema], table.schema.metadata or {}
            return _json({"version": table.version, "schema": {"fields": fields, "metadata": _text(noted)}})
        if call == "count_rows":
            return _json(table.count_rows(told.get("predicate")))
        if call == "delete":
            table.delete(told["predicate"])
            return _json({"version": table.version})
        if call == "query":
            return 200, _ARROW, _found(table, told)
        if call == "update_field_metadata":
            table.update_field_metadata(*told["updates"])
            return _json({"version": table.version, "fields": {}})
        if call == "create_index":
            how = getattr(kinds, _KINDS[told["index_type"]])(distance_type=told["metric_type"])
            table.create_index(told["column"], config=how)
            return _json({})
        if call == "index/list":
            found = [{"index_name": i.name, "columns": i.columns, "status": "done"} for i in table.list_indices()]
            return _json({"indexes": found})
        if call.startswith("index/"):
            (index,) = table.list_indices()
            kind = {"IvfHnswSq": "IVF_HNSW_SQ"}.get(index.index_type, index.index_type.replace("Ivf", "IVF_").upper())
            told = {"num_indexed_rows": table.count_rows(), "num_unindexed_rows": 0, "distance_type": "l2"}
            return _json({**told, "index_type": kind, "num_indices": 1})
        return _json({"error": f"cannot {call}"}, 400)


def _found(table: Any, told: dict[str, Any]) -> bytes:
    vector = np.array(told.get("vector") or [])
    query: Any = table.search()
    if len(vector):
        codes = table.schema.field(told["vector_column"]).type.value_type == pa.uint8()
        query = table.search(vector.astype(np.uint8 if codes else np.float32), told["vector_column"])
        query = query.distance_type(told["distance_type"]).nprobes(told["nprobes"] or 20)
        query = query.bypass_vector_index() if told.get("bypass_vector_index") else query
        query = query.refine_factor(told["refine_factor"]) if told.get("refine_factor") else query
        query = query.ef(told["ef"]) if told.get("ef") else query
    query = query.limit(min(told["k"], 2**31)).select(told["columns"])
    query = query.where(told["filter"]) if told.get("filter") else query
    rows = (query.with_row_id(True) if told.get("with_row_id") else query).to_arrow()
    content = io.BytesIO()
    with pa.ipc.new_file(content, rows.schema) as file:
        file.write_table(rows)
    return content.getvalue()


def _field(field: Any) -> dict[str, Any]:
    return {
        "name": field.name,
        "type": _type(field.type),
        "nullable": field.nullable,
        "metadata": _text(field.metadata or {}),
    }


def _type(kind: Any) -> dict[str, Any]:
    if not pa.types.is_fixed_size_list(kind):
        return {"type": str(kind)}
    item = {"name": "item", "type": _type(kind.value_type), "nullable": True}
    return {"type": "fixed_size_list", "fields": [item], "length": kind.list_size}


def _text(metadata: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in metadata.items()}


def _json(document: Any, status: int = 200) -> Answer:
    return status, "application/json", json.dumps(document).encode()
