"""Vectors and whole rows in PostgreSQL's binary formats, made by NumPy instead of row by row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.types import Codes, Ids, Payload

_BEGIN = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_END = b"\xff\xff"
_to_json = json.JSONEncoder().encode  # json.dumps, without looking at its arguments for every row
_TEXT_OR_LARGE = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.]*e\+[0-9]+')


def encode(vectors: Codes, column: str) -> NDArray[np.void]:
    """Values of a column of type vector, halfvec or bit, all of one size: a header of 4 bytes, then the content."""
    n, width = vectors.shape
    content = {"vector": ">f4", "halfvec": ">f2", "bit": "u1"}[column]
    # vector and halfvec: int16 dimensions, int16 unused; bit: int32 number of bits
    header = ">i4" if column == "bit" else ">i2"
    rows = np.zeros(n, [("size", header), *([] if column == "bit" else [("unused", ">i2")]), ("x", content, (width,))])
    rows["size"] = width * 8 if column == "bit" else width
    rows["x"] = vectors
    return rows


def decode(values: Sequence[bytes], column: str, width: int) -> Codes:
    """What ``encode`` encoded: float32 ``(n, dim)`` or packed uint8 ``(n, bits / 8)``; ``width`` is dim or bits / 8."""
    content, final = {"vector": (">f4", "f4"), "halfvec": (">f2", "f4"), "bit": ("u1", "u1")}[column]
    rows = np.frombuffer(b"".join(values), [("header", "V4"), ("x", content, (width,))], count=len(values))
    return np.ascontiguousarray(rows["x"], dtype=final).reshape(len(values), width)


def copy_rows(ids: Ids, vectors: Codes, column: str, payload: Sequence[Payload] | None) -> bytes:
    """Rows (bigint, vector, jsonb) as COPY … (FORMAT binary) reads them."""
    values = encode(vectors, column)
    fields: list[tuple[Any, ...]] = [
        ("fields", ">i2"),
        ("id size", ">i4"),
        ("id", ">i8"),
        ("vector size", ">i4"),
        ("vector", values.dtype),
    ]
    empty = b"\x01{}"
    if payload is None:
        fields += [("payload size", ">i4"), ("payload", f"V{len(empty)}")]
    rows = np.zeros(len(ids), np.dtype(fields))
    rows["fields"], rows["id size"], rows["id"] = 3, 8, ids
    rows["vector size"], rows["vector"] = values.dtype.itemsize, values
    if payload is None:
        rows["payload size"], rows["payload"] = len(empty), np.void(empty)
        return b"".join((_BEGIN, rows.tobytes(), _END))
    size, content = rows.dtype.itemsize, rows.tobytes()
    parts = [_BEGIN]
    for start, value in zip(range(0, len(content), size), payload, strict=True):
        text = _as_jsonb(value).encode()
        # jsonb: a version byte, then text
        parts += (content[start : start + size], (len(text) + 1).to_bytes(4, "big"), b"\x01", text)
    parts.append(_END)
    return b"".join(parts)


def _as_jsonb(payload: Mapping[str, Any]) -> str:
    """JSON from which jsonb keeps integers and floats apart: it would give 1e+300 back as 301 digits, an integer."""
    text = _to_json(dict(payload))
    if "e+" not in text:
        return text
    return _TEXT_OR_LARGE.sub(lambda found: found[0] if found[0][0] == '"' else f"{Decimal(found[0]):f}.0", text)


def parse_payload(text: str | None) -> dict[str, Any]:
    """A payload as it was given to ``copy_rows``."""
    return dict(json.loads(text)) if text else {}
