"""The application: routes, and around them who may ask, what is counted and logged, and errors as problems."""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import logging
import math
import mimetypes
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cbir_faiss.errors import CbirError
from cbir_faiss.serve.api import Api
from cbir_faiss.serve.metrics import Metrics
from cbir_faiss.serve.openapi import BASE, ENDPOINTS, Endpoint, description
from cbir_faiss.serve.problems import MEDIA_TYPE, Problem
from cbir_faiss.serve.safety import HEADERS, Guard

_log = logging.getLogger("cbir_faiss.serve")
_LOOK_SECONDS = 0.5  # between two looks whether a collection has a new generation
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_ROUTE = "cbir_faiss.route"
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
Handler = Callable[[Request], Awaitable[Response]]


def make_app(api: Api, guard: Guard) -> ASGIApp:
    """The application over ``api``, open to whom ``guard`` lets in."""
    metrics = Metrics()
    routes = [Route(BASE + e.path, _answering(api, e), methods=[e.method]) for e in ENDPOINTS]
    problems: dict[Any, Any] = {HTTPException: _of_routing, Exception: _of_fault}
    app = Starlette(
        routes=[*routes, *_about(api, metrics), *_page()],
        exception_handlers=problems,
        lifespan=partial(_running, api),
    )
    app.router.redirect_slashes = False
    return Guarded(app, guard, metrics)


class Guarded:
    """Stands before the application: checks each request, adds the headers, counts and logs."""

    def __init__(self, app: ASGIApp, guard: Guard, metrics: Metrics) -> None:
        self._app, self._guard, self._metrics = app, guard, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        headers = Headers(scope=scope)
        extra = self._guard.cors_headers(headers.get("origin"))

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with(message["headers"], {**HEADERS, **extra})
            await send(message)

        self._metrics.in_flight += 1
        try:
            answer = self._refused(scope, headers, bool(extra))
            await (answer or self._app)(scope, receive, sending)
        finally:
            self._metrics.in_flight -= 1
            seconds = time.perf_counter() - began
            self._metrics.count(_method(scope), scope.get(_ROUTE, "other"), status, seconds)
            if _log.isEnabledFor(logging.INFO):
                said = {"method": _method(scope), "path": scope["path"], "status": status}
                data = {**said, "ms": round(1000 * seconds, 2)}
                _log.info("%(method)s %(path)s %(status)d", said, extra={"data": data})

    def _refused(self, scope: Scope, headers: Headers, named_origin: bool) -> Response | None:
        """The answer to a request that may not come through."""
        method, path = scope["method"], scope["path"]
        try:
            self._guard.check(method, path, headers)
            if method == "OPTIONS" and named_origin:  # a browser asks whether it may ask
                return Response(status_code=204)
            if (
                path == "/"
                and method == "GET"
                and (cookie := self._guard.enter(scope["query_string"].decode("latin-1"), headers))
            ):
                return RedirectResponse("/", 303, headers={"Set-Cookie": cookie})
            self._guard.check_token(path, headers)
        except Problem as problem:
            return _unopened(problem) if path == "/" and method == "GET" else _problem(problem)
        return None


def _answering(api: Api, endpoint: Endpoint) -> Handler:
    """An endpoint: what its handler gives as JSON, and what it raises as a problem."""
    handler = getattr(api, endpoint.handler)

    async def answer(request: Request) -> Response:
        request.scope[_ROUTE] = endpoint.path
        try:
            found = await handler(request)
        except Problem as problem:
            return _problem(api.told(problem))
        except CbirError as error:
            return _problem(api.told(Problem.of(error)))
        return found if isinstance(found, Response) else Response(as_json(found), media_type="application/json")

    return answer


def as_json(value: Any) -> bytes:
    """JSON that every reader takes: a number that is none is null."""
    try:
        return _encode(value).encode()
    except ValueError:
        return _encode(_finite(value)).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _problem(problem: Problem) -> Response:
    content = json.dumps(problem.as_dict()).encode()
    return Response(content, problem.status, problem.headers, media_type=MEDIA_TYPE)


def _unopened(problem: Problem) -> Response:
    """The same for somebody's eyes."""
    text = f"<!doctype html><meta charset=utf-8><title>cbir</title><p>{html.escape(problem.detail)}"
    return Response(text, problem.status, problem.headers, media_type="text/html")


async def _of_fault(_: Request, error: Exception) -> Response:
    return _problem(Problem(500, "a fault of the server: its log says more"))


async def _of_routing(_: Request, error: HTTPException) -> Response:
    words = {404: "there is nothing here: /openapi.json says what there is", 405: "not with this method"}
    return _problem(Problem(error.status_code, words.get(error.status_code, str(error.detail)), error.headers))


def _about(api: Api, metrics: Metrics) -> list[Route]:
    """How the server is, for those who watch it."""
    described = as_json(description(Api))

    async def healthz(_: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def readyz(_: Request) -> Response:
        ready = all(live.ready for live in api.collections.values())
        return Response("ready\n" if ready else "not ready\n", 200 if ready else 503, media_type="text/plain")

    async def measured(_: Request) -> Response:
        text = metrics.text((live.name, live.items) for live in api.collections.values())
        return Response(text, media_type="text/plain; version=0.0.4")

    async def openapi(_: Request) -> Response:
        return Response(described, media_type="application/json")

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", measured),
        Route("/openapi.json", openapi),
    ]


def _page() -> list[Route]:
    """The page's files as they are in the package: no path is ever put together from a request."""
    folder = files("cbir_faiss.serve") / "page"
    return [Route(path, _file(name, content)) for path, name, content in _files(folder, "/")]


def _files(folder: Traversable, below: str) -> list[tuple[str, str, bytes]]:
    found: list[tuple[str, str, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _files(entry, f"{below}{entry.name}/")
        elif entry.name == "index.html":
            found.append((below, entry.name, entry.read_bytes()))
        else:
            found.append((below + entry.name, entry.name, entry.read_bytes()))
    return found


def _file(name: str, content: bytes) -> Handler:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    media = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0] or "application/octet-stream"
    headers = {"ETag": tag, "Cache-Control": "no-cache"}

    async def send(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media, headers=headers)

    return send


@asynccontextmanager
async def _running(api: Api, _: Starlette) -> AsyncIterator[None]:
    """Looks for new generations while it runs; at the end, what runs is finished and all is closed."""
    looking = asyncio.create_task(_look(api))
    warming = asyncio.create_task(api.warm()) if api.warming else None
    try:
        yield
    finally:
        looking.cancel()
        for ended in await asyncio.gather(looking, *filter(None, [warming]), return_exceptions=True):
            if isinstance(ended, Exception):
                _log.error("what ran beside the requests failed", exc_info=ended)
        await api.close()


async def _look(api: Api) -> None:
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        for live in api.collections.values():
            live.look()


def _with(headers: list[tuple[bytes, bytes]], more: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers, and those of ``more`` that are not among them."""
    there = {name.lower() for name, _ in headers}
    added = [(name.lower().encode(), value.encode()) for name, value in more.items()]
    return [*headers, *((name, value) for name, value in added if name not in there)]


def _method(scope: Scope) -> str:
    return str(scope["method"]) if scope["method"] in _METHODS else "other"
