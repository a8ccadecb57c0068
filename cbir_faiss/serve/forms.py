"""Bodies: received within limits, and read as JSON or as a form of pictures and fields."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.problems import Problem

ModelT = TypeVar("ModelT", bound=BaseModel)
FORM, JSON = "multipart/form-data", "application/json"


class Receiver:
    """What is being received at once, of all requests."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self.held = limits, 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """All of a request's body, counted as held within the block.

        Raises:
            Problem: 413 too large, 429 too much of it at once, 408 too slow.
        """
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self._limits.body:
            raise self._too_large()
        parts: list[bytes] = []
        mine = 0
        try:
            with _Timer(self._limits.receiving):
                async for part in request.stream():
                    parts.append(part)
                    mine += len(part)
                    self._hold(len(part), mine)
            yield b"".join(parts)
        except _Late:
            raise Problem(408, f"the body took more than {self._limits.receiving:g} s to arrive") from None
        except ClientDisconnect:
            raise Problem(400, "the body ended before it was whole") from None
        finally:
            self.held -= mine

    def _hold(self, more: int, mine: int) -> None:
        self.held += more
        if mine > self._limits.body:
            raise self._too_large()
        if self.held > self._limits.held:
            raise Problem(429, "too many uploads at once: try again in a moment", {"Retry-After": "1"})

    def _too_large(self) -> Problem:
        return Problem(413, f"the body is larger than {self._limits.body >> 20} MiB: send less at once")


class _Late(Exception):
    pass


class _Timer:
    """Within the block, the task has so many seconds. ``asyncio.wait_for`` would make a task for each part."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._late = seconds, False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._stop)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._late and kind is asyncio.CancelledError:
            if hasattr(self._task, "uncancel"):  # from Python 3.11 on it counts
                self._task.uncancel()
            raise _Late

    def _stop(self) -> None:
        self._late = True
        self._task.cancel()


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def read_json(model: type[ModelT], body: bytes) -> ModelT:
    """A checked request. Raises Problem (422) that says what is wrong where."""
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise unfit(error) from None


def read_query(model: type[ModelT], request: Request) -> ModelT:
    """The checked query of a URL. Raises Problem (422)."""
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise unfit(error) from None


async def read_form(request: Request, body: bytes, limits: Limits) -> tuple[list[tuple[str, bytes]], dict[str, str]]:
    """The pictures (parts ``image``) with the names they came by, and the other fields.

    Raises:
        Problem: 422 where it is no form, has a part twice that may be there once, or a file of another name.
    """

    async def once() -> AsyncIterator[bytes]:
        yield body

    headers = Headers({"content-type": request.headers["content-type"]})
    parser = MultiPartParser(headers, once(), max_files=limits.parts, max_fields=limits.parts)  # type: ignore[arg-type]
    parser.spool_max_size = limits.body + 1  # it is in memory already
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(422, f"the form cannot be read: {error.message}") from None
    except (FormParserError, ValueError, LookupError) as error:
        raise Problem(422, f"the form cannot be read: {error}") from None
    try:
        return _parts(form.multi_items())
    finally:
        await form.close()


def _parts(items: list[tuple[str, Any]]) -> tuple[list[tuple[str, bytes]], dict[str, str]]:
    pictures: list[tuple[str, bytes]] = []
    fields: dict[str, str] = {}
    for name, value in items:
        if isinstance(value, UploadFile):
            if name != "image":
                raise Problem(422, f"the form has a file '{name[:50]}': pictures are parts named 'image'")
            pictures.append((value.filename or "", value.file.read()))
        elif name == "image":
            raise Problem(422, "a part 'image' is a file, with a filename")
        elif name in fields:
            raise Problem(422, f"the form has a field twice: '{name[:50]}'")
        else:
            fields[name] = value
    return pictures, fields


def read_fields(model: type[ModelT], fields: dict[str, str]) -> ModelT:
    """A checked request from the fields of a form, each of them JSON, or a text that is none."""
    return read_json(model, json.dumps({name: _value(text) for name, text in fields.items()}).encode())


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def unfit(error: ValidationError) -> Problem:
    """One line of what is wrong first."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ").replace("Input should", "must")
    return Problem(422, f"{where}: {message}" if where else message)
