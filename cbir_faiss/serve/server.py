"""The process: what is served is opened, a socket is listened at, and what runs is finished before it ends."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cbir_faiss._lib import threads
from cbir_faiss.errors import CbirError, ConfigError
from cbir_faiss.serve.api import Api
from cbir_faiss.serve.app import make_app
from cbir_faiss.serve.decoding import COMMAND, Decoders
from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.live import Live
from cbir_faiss.serve.problems import MEDIA_TYPE, Problem
from cbir_faiss.serve.safety import HEADERS, Guard, is_loopback
from cbir_faiss.serve.uploads import Uploads
from cbir_faiss.serve.work import Work

_LINGER = 5.0  # seconds for a body that nobody reads any more
_HEAD_BYTES = 64 << 10
_THREADS = 4


@dataclass(frozen=True)
class Settings:
    """How it is served. token: None makes one. write: adding and deleting is allowed. uploads: where added pictures are
    kept; None: beside each collection. names: other names of this server. cors: origins whose pages may ask.
    decoder: the command that decodes pictures, see ``decoder``. warming: what the first pictures need is loaded before
    they come."""

    host: str = "127.0.0.1"
    port: int = 8321
    token: str | None = None
    write: bool = False
    uploads: Path | None = None
    names: frozenset[str] = frozenset()
    cors: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    decoder: Sequence[str] = COMMAND
    warming: bool = True


class Server:
    """Serves collections and runs; ``run`` returns when it was told to stop.

    Raises:
        CbirError: a collection cannot be opened, or the port is taken. ConfigError: settings that are not safe.
    """

    def __init__(self, collections: Sequence[Path], runs: Sequence[Path], settings: Settings = Settings()) -> None:
        _check_host(settings)
        live = _named([Live(folder) for folder in collections], lambda one: one.name, "collections")
        named_runs = _named(runs, lambda folder: folder.absolute().name, "runs")
        self._socket = listen(settings.host, settings.port)
        try:
            for one in live.values():
                one.open()
        except BaseException:
            self._socket.close()
            for one in live.values():
                one.give_back()
            raise
        self.port = int(self._socket.getsockname()[1])
        self.token = settings.token or secrets.token_urlsafe(24)
        self.guard = Guard(settings.host, self.port, self.token, settings.names, settings.cors)
        limits = settings.limits
        uploads = {
            name: Uploads(settings.uploads / name) if settings.uploads else Uploads.beside(one.folder)
            for name, one in live.items()
        }
        self.api = Api(
            live,
            named_runs,
            Work(max(_THREADS, threads.available() + 2), limits),
            Decoders(max(2, threads.available()), limits, settings.decoder),
            limits,
            uploads if settings.write else None,
            settings.warming,
        )
        self._server = _Uvicorn(_config(make_app(self.api, self.guard), settings))

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.guard.host in ("0.0.0.0", "::") else self.guard.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def link(self) -> str:
        """Opens the page, once."""
        return f"{self.url}/?token={self.guard.link}"

    @property
    def started(self) -> bool:
        return bool(self._server.started)

    def run(self) -> None:
        """Until a signal (where this is the main thread) or ``stop``."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Finish what runs, and return from ``run``. From any thread."""
        self._server.should_exit = True


def check(settings: Settings) -> None:
    """Raises what ``Server`` would, of its address: before anything is built for it."""
    _check_host(settings)
    listen(settings.host, settings.port).close()


def _check_host(settings: Settings) -> None:
    if not is_loopback(settings.host) and not settings.token:
        raise ConfigError(
            f"--host {settings.host} is open to other machines: give a --token, or leave it at 127.0.0.1 and put a "
            "reverse proxy before it"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises CbirError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows that small answers are not to wait for more (Nagle's algorithm: 40 ms).
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen(1024)
    except (OSError, OverflowError) as error:
        opened.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        how = "is in use: choose another --port" if taken else f"cannot be listened at: {error}"
        raise CbirError(f"{host}:{port} {how}") from error
    return opened


def _named(things: Sequence[Any], name: Callable[[Any], str], what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for thing in things:
        if name(thing) in found:
            raise ConfigError(f"two {what} are called '{name(thing)}': rename one, or serve them apart")
        found[name(thing)] = thing
    return found


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    limits = settings.limits
    bounds = {"head_seconds": limits.head, "reading_seconds": limits.receiving, "most": limits.connections}
    protocol = type("Impatient", (_Impatient,), bounds)
    return uvicorn.Config(
        app,
        host=settings.host,
        http=protocol,
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(limits.seconds),
    )


class _Uvicorn(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Told to stop, it stops well: the signal is not raised again at the end."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class _Corked:
    """A transport that sends what is written in one turn of the loop at once: the head of an answer with its body."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands for the application where too many are connected."""
    problem = Problem(503, "too many connections at once: try again in a moment")
    headers = {**HEADERS, "Retry-After": "1", "Connection": "close"}
    answer = Response(json.dumps(problem.as_dict()), problem.status, headers, MEDIA_TYPE)
    await answer(scope, receive, send)


class _Impatient(HttpToolsProtocol):
    """Closes a connection whose request has not come whole in time, whose body is not wanted any more, or whose answer
    nobody reads; and one that has brought more than 64 KiB and no whole head, or as much of anything else but body."""

    head_seconds, reading_seconds, most = 10.0, 30.0, 1000
    _timer: Any = None
    _unread: Any = None
    _in_head, _beside = True, 0
    url = b""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Corked(transport, self.loop))  # type: ignore[arg-type]
        self._time(self.head_seconds)

    def data_received(self, data: bytes) -> None:
        self._beside += len(data)
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._beside > _HEAD_BYTES and not self.transport.is_closing():
            self.transport.abort() if answering else self._refuse(Problem(422, "the head of the request is too large"))
        elif answering:
            self._time(None)
        elif self._timer is None and self.timeout_keep_alive_task is None:
            self._time(self.head_seconds)  # something has come, but no head that is whole

    def on_message_begin(self) -> None:
        # What a body left to be subtracted is no room for the next head.
        self._in_head, self._beside = True, max(0, self._beside)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what stands behind a body is nobody's
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._beside = False, 0
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            raise ValueError("not one host")  # whoever feeds the parser answers 400
        self.app = self.config.loaded_app if len(self.connections) <= self.most else _full
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside -= 2 * len(body)  # a body in parts has something before each of them
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        if len(self.url) > _HEAD_BYTES - 1:  # more than its parser takes
            self._refuse(Problem(422, "the address of the request is too long: send what is long as a body"))
        else:
            self._refuse(Problem(400, "this is no HTTP request"))

    def _refuse(self, problem: Problem) -> None:
        content = json.dumps(problem.as_dict()).encode()
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n"
            + "".join(f"{name.lower()}: {value}\r\n" for name, value in HEADERS.items())
            + "\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()

    def on_response_complete(self) -> None:
        unread = self.cycle.response_complete and self.cycle.more_body
        super().on_response_complete()
        if unread:
            self._time(_LINGER)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.reading_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._time(None)
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def _time(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.close)
