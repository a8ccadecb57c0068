"""A collection that a server elsewhere holds, asked as one that is opened here."""

from __future__ import annotations

import http.client
import io
import json
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.collection.collection import NOT_OF_TEXTS, Match
from cbir_faiss.errors import BadImage, CbirError, ConfigError, InputError, UnknownId, Unsupported, one_line

_BASE = "/api/v1/collections"
_AT_ONCE, _BYTES_AT_ONCE = 64, 24 << 20  # queries, and bytes of pictures, in one request
_ERRORS: Mapping[int, type[CbirError]] = {404: UnknownId, 422: InputError}
Body = tuple[str, bytes]
"""Media type and content."""


def connect(url: str, *, token: str | None = None, timeout: float = 60.0) -> Remote:
    """The collection that ``cbir serve`` has at ``url``: ``http://host:8321/photos``, or without a name if it is alone.

    token: what the server was given as ``--token``, else ``$CBIR_TOKEN``. timeout: seconds for each answer.

    Raises:
        ConfigError: no such URL, or no name and several collections. CbirError: nobody answers, or not to this token.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url}: not the address of a server, such as http://127.0.0.1:8321/photos")
    channel = _Channel(url, token or os.environ.get("CBIR_TOKEN"), timeout)
    try:
        return Remote(channel, f"{_BASE}/{quote(unquote(parts.path.strip('/')) or _only(url, channel))}")
    except CbirError:
        channel.close()
        raise


def _only(url: str, channel: _Channel) -> str:
    """The name of the one collection that is served."""
    names = [str(one["name"]) for one in channel.get(_BASE)["collections"]]
    if len(names) != 1:
        raise ConfigError(f"{url}: has {', '.join(names) or 'no collection'}: add a name to the address")
    return names[0]


class Remote:
    """Answers as ``Collection`` does; made by ``connect``. May be used from several threads."""

    def __init__(self, channel: _Channel, path: str) -> None:
        self._channel, self._path = channel, path
        self.info()  # there is such a collection, and it may be asked

    def __len__(self) -> int:
        return int(self.info()["items"])

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search(
        self,
        queries: Sequence[Any] | NDArray[Any],
        k: int = 5,
        where: Mapping[str, Any] | str | None = None,
        *,
        relevant: bool = False,
        rescore: str | None = None,
    ) -> list[list[Match]]:
        """The ``k`` nearest items of each query, nearest first; see ``Collection.search``. Matches have no payload.

        Raises:
            BadImage: a file that cannot be read. InputError: what the server cannot use. CbirError: it does not answer.
        """
        asked = {"k": k, "where": where, "rescore": rescore}
        if isinstance(queries, np.ndarray) or (len(queries) and isinstance(queries[0], np.ndarray)):
            rows = np.asarray(queries, np.float32)
            blocks = (rows[start : start + _AT_ONCE].tolist() for start in range(0, len(rows), _AT_ONCE))
            return [found for some in blocks for found in self._search(_json({**asked, "vectors": some}), relevant)]
        if isinstance(queries, str | Path) or not len(queries):
            raise InputError("queries are a list of paths, images or vectors, with at least one")
        fields = {name: json.dumps(value) for name, value in asked.items() if value is not None}
        return [found for some in _together(queries) for found in self._search(_form(some, fields), relevant)]

    def search_ids(
        self,
        ids: Iterable[int],
        k: int = 5,
        where: Mapping[str, Any] | str | None = None,
        *,
        relevant: bool = False,
        rescore: str | None = None,
    ) -> list[list[Match]]:
        """The ``k`` nearest items of items that are in the collection, themselves left out. Raises UnknownId."""
        given, asked = [int(i) for i in ids], {"k": k, "where": where, "rescore": rescore}
        blocks = (given[start : start + _AT_ONCE] for start in range(0, len(given), _AT_ONCE))
        return [found for some in blocks for found in self._search(_json({**asked, "ids": some}), relevant)]

    def search_text(
        self,
        texts: Sequence[str],
        k: int = 5,
        where: Mapping[str, Any] | str | None = None,
        *,
        relevant: bool = False,
    ) -> list[list[Match]]:
        """The ``k`` items nearest to what each text says; see ``Collection.search_text``.

        Raises:
            InputError: the collection has no text tower; no texts, or one that says nothing. Unsupported: ``relevant``.
        """
        if relevant:
            raise Unsupported(NOT_OF_TEXTS)
        if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
            raise InputError("texts are a list of texts, with at least one")
        blocks = (list(texts[start : start + _AT_ONCE]) for start in range(0, len(texts), _AT_ONCE))
        asked = {"k": k, "where": where}
        return [found for some in blocks for found in self._search(_json({**asked, "text": some}), False)]

    def documents(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """Path, label and payload of items, in the order of ``ids``. Raises UnknownId."""
        found = [self._channel.get(f"{self._path}/items/{int(i)}") for i in ids]
        labels = [{} if one["label"] is None else {"label": one["label"]} for one in found]
        return [{**one["payload"], **label, "path": one["path"]} for one, label in zip(found, labels, strict=True)]

    def info(self) -> dict[str, Any]:
        """What the server says of the collection."""
        return self._channel.get(self._path)

    def add(self, paths: Iterable[str | Path]) -> list[int]:
        """Upload pictures to be kept; their ids. The server must have been started with ``--write``."""
        return [
            int(item)
            for some in _together(list(paths))
            for item in self._channel.send("POST", f"{self._path}/items", _form(some, {}))["ids"]
        ]

    def delete(self, ids: Iterable[int]) -> int:
        """Delete items by id; how many. Raises UnknownId; those before it are deleted then."""
        return sum(self._channel.send("DELETE", f"{self._path}/items/{int(i)}")["deleted"] for i in ids)

    def close(self) -> None:
        """Give back the connections of this thread."""
        self._channel.close()

    def _search(self, body: Body, relevant: bool) -> list[list[Match]]:
        answer = self._channel.send("POST", f"{self._path}/search", body, again=True)
        if relevant and any(h["relevant"] is None for hits in answer["results"] for h in hits):
            raise InputError("no cut-off is known there: search the collection itself with --relevant once")
        return [[_match(h) for h in hits if h["relevant"] or not relevant] for hits in answer["results"]]


def _match(hit: Mapping[str, Any]) -> Match:
    return Match(hit["id"], hit["path"], hit["label"], hit["distance"], relevant=hit["relevant"])


class _Channel:
    """Requests to one server, over a connection for each thread."""

    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        parts = urlsplit(url)
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            self._host, self._port = str(parts.hostname), parts.port
        except ValueError as error:
            raise ConfigError(f"{url}: {error}") from None
        self.place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._timeout, self._own = timeout, threading.local()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str) -> dict[str, Any]:
        return self.send("GET", path, again=True)

    def send(self, method: str, path: str, body: Body | None = None, *, again: bool = False) -> dict[str, Any]:
        """The answer's JSON. ``again``: it does no harm twice, so a connection that was closed meanwhile is made anew.

        Raises:
            CbirError: no answer, or one that says what is wrong.
        """
        headers = self._headers | ({"Content-Type": body[0]} if body else {})
        try:
            try:
                status, content = self._exchange(method, path, body, headers)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                if not again:
                    raise
                self.close()
                status, content = self._exchange(method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise CbirError(f"{self.place} does not answer: {one_line(error)}") from error
        try:
            answer = json.loads(content)
        except ValueError:
            raise CbirError(f"{self.place} answers {status}, and not as cbir serve does") from None
        if status >= 400:
            detail = answer.get("detail", status) if isinstance(answer, dict) else status
            raise _ERRORS.get(status, CbirError)(f"{self.place}: {detail}")
        found: dict[str, Any] = answer
        return found

    def close(self) -> None:
        connection = self._own.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _exchange(self, method: str, path: str, body: Body | None, headers: dict[str, str]) -> tuple[int, bytes]:
        if not hasattr(self._own, "connection"):
            self._own.connection = self._kind(self._host, self._port, timeout=self._timeout)
        self._own.connection.request(method, path, body[1] if body else None, headers)
        with self._own.connection.getresponse() as response:
            return response.status, response.read()


def _json(content: Mapping[str, Any]) -> Body:
    try:
        return "application/json", json.dumps(content).encode()
    except TypeError as error:
        raise InputError(f"cannot be sent: {error}") from None


def _form(pictures: Sequence[bytes], fields: Mapping[str, str]) -> Body:
    boundary = secrets.token_hex(16)
    parts = [f'name="{name}"\r\n\r\n{text}'.encode() for name, text in fields.items()]
    parts += [
        f'name="image"; filename="{number}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode() + picture
        for number, picture in enumerate(pictures)
    ]
    begin = f"--{boundary}\r\nContent-Disposition: form-data; ".encode()
    content = b"".join(begin + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", content


def _together(queries: Sequence[Any]) -> Iterator[list[bytes]]:
    """Pictures as bytes, as many as go into one request."""
    some: list[bytes] = []
    for query in queries:
        content = _bytes_of(query)
        if some and (len(some) >= _AT_ONCE or sum(map(len, some)) + len(content) > _BYTES_AT_ONCE):
            yield some
            some = []
        some.append(content)
    if some:
        yield some


def _bytes_of(query: Any) -> bytes:
    if isinstance(query, str | Path):
        try:
            return Path(query).read_bytes()
        except OSError as error:
            raise BadImage(f"{query}: {error.strerror or error}") from error
    if not hasattr(query, "save"):
        raise InputError(f"a query is a path, an image or a vector, not {type(query).__name__}")
    out = io.BytesIO()
    query.save(out, "PNG")
    return out.getvalue()
