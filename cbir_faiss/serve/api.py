"""What can be asked of the server, and the answers."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from cbir_faiss._lib import threads
from cbir_faiss.base import Extractor
from cbir_faiss.collection import recalled
from cbir_faiss.collection.duplicates import Duplicate, find_duplicates
from cbir_faiss.collection.stages import float_column
from cbir_faiss.errors import BadImage, CbirError, CorruptCollection, InputError, Unsupported
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.report.row import knn_measure, main_measure, name_of, rows_of
from cbir_faiss.serve import models
from cbir_faiss.serve.asking import (
    Asking,
    Prepared,
    combined,
    embedded,
    embeddings_given,
    extracted,
    known,
    original,
    read_filter,
)
from cbir_faiss.serve.decoding import Decoders
from cbir_faiss.serve.forms import FORM, JSON, Receiver, media_type, read_fields, read_form, read_json, read_query
from cbir_faiss.serve.heavy import Heavy
from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.live import Generation, Live, Reading
from cbir_faiss.serve.pictures import Picture, Pictures
from cbir_faiss.serve.plane import plane
from cbir_faiss.serve.problems import Problem
from cbir_faiss.serve.uploads import Uploads
from cbir_faiss.serve.work import Work, in_time
from cbir_faiss.storage.facets import facets
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Columns, Floats

T = TypeVar("T")
_log = logging.getLogger("cbir_faiss.serve")
_PARSED_AT_ONCE = 1 << 16  # a body of more bytes is parsed in a thread
_GROUPS = 1000
# The smallest GIF: a picture to begin with.
_DOT = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
_PERCENTILES = (50, 95, 99)
_ALONE = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; sandbox allow-scripts"
)


@dataclass
class Api:
    """The state of the server, and a method for each thing that can be asked. Used from one event loop.

    writing: where uploads are kept, by collection; None where nothing may be changed. warming: what the first pictures
    need is loaded before they come.
    """

    collections: dict[str, Live]
    runs: dict[str, Path]
    work: Work
    decoders: Decoders
    limits: Limits
    writing: dict[str, Uploads] | None = None
    warming: bool = True
    receiver: Receiver = field(init=False)
    pictures: Pictures = field(init=False)

    def __post_init__(self) -> None:
        self.receiver = Receiver(self.limits)
        self.pictures = Pictures(self.decoders, default_cache() / "thumbs")
        self.heavy = Heavy(self.limits)
        self._writing = asyncio.Lock()
        self._changing: asyncio.Future[Any] | None = None
        self._cores = threads.available()

    async def warm(self) -> None:
        """Load what the first pictures need, before they come: one is searched for, and every decoder prepares one."""
        for live in self.collections.values():
            try:
                with live.generation() as generation:
                    await asyncio.gather(
                        self._found(live, generation, models.Search(k=1), [("", _DOT)]),
                        *(self._prepared(live, generation, [("", _DOT)]) for _ in range(1, self.decoders.count)),
                    )
            except (CbirError, Problem):  # whoever asks is told
                pass
            except Exception:
                _log.exception("the extractor of '%s' was not loaded before it is needed", live.name)

    async def close(self) -> None:
        await self.heavy.close()
        if self._changing is not None:
            await asyncio.gather(self._changing, return_exceptions=True)
        await self.decoders.close()
        await asyncio.to_thread(self.work.close)
        for live in self.collections.values():
            await live.close()

    def told(self, problem: Problem) -> Problem:
        """A problem as it is answered: no path of this machine is in it."""
        known = [live.folders for live in self.collections.values()]
        known += [{str(folder): name, str(folder.absolute()): name} for name, folder in self.runs.items()]
        return problem.without_paths({folder: name for some in known for folder, name in some.items()})

    # -- search

    async def search(self, request: Request) -> Any:
        """The items most like each query: items by id, vectors, texts, or pictures that are uploaded."""
        live = self._live(request)
        if media_type(request) != FORM:
            return await self._answer(live, await self._json(request, models.Search), [])
        async with self._form(request) as (pictures, fields):
            return await self._answer(live, read_fields(models.Search, fields), pictures)

    async def _answer(self, live: Live, asked: models.Search, pictures: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
        """By the generation that is current when all of the request has come."""
        began = time.perf_counter()
        with live.generation() as generation:
            results = await self._found(live, generation, asked, pictures)
        live.seconds.append(time.perf_counter() - began)
        return {"results": results, "took_ms": round(1000 * live.seconds[-1], 3)}

    async def _found(
        self, live: Live, generation: Generation, asked: models.Search, pictures: Sequence[tuple[str, bytes]]
    ) -> list[list[Any]]:
        kinds = [bool(pictures), bool(asked.vectors), bool(asked.ids), bool(asked.texts)]
        if not any(kinds):
            raise Problem(422, "give ids, vectors, or pictures as parts 'image' of a form, or text")
        if sum(kinds) > 1 and not asked.combine:
            raise Problem(422, "give pictures, ids, vectors or text: one kind at a time, or with 'combine'")
        where = await self._filter(asked.where)
        if asked.combine:
            return await self._combined(live, generation, asked, where, pictures)
        asking = Asking(generation, asked.k, where, asked.rescore)
        kind = (generation, asked.k, json.dumps(asked.where), asked.rescore)
        if asked.ids:
            known(asked.ids)
            return await self.work.together(("ids", *kind), asking.by_ids, asked.ids, lanes=self._cores)
        if asked.vectors:
            vectors = embeddings_given(asked.vectors)
            same = ("vectors", vectors.shape[1], *kind)
            return await self.work.together(same, asking.by_columns, {"embedding": vectors}, lanes=self._cores)
        if asked.texts:
            reader = await self._extractor(live, generation, "texts")
            return await self.work.together(("texts", reader, *kind), partial(asking.by_texts, reader), asked.texts)
        extractor, prepared = await self._prepared(live, generation, pictures)
        search = partial(asking.by_pictures, extractor)
        return await self.work.together(("pictures", extractor, *kind), search, prepared, self.decoders.preparing)

    async def _combined(
        self,
        live: Live,
        generation: Generation,
        asked: models.Search,
        where: Any,
        pictures: Sequence[tuple[str, bytes]],
    ) -> list[list[Any]]:
        """One query, which does not find what it was made of."""
        own = {*asked.ids, *asked.unlike}
        given = [embeddings_given(asked.vectors)] if asked.vectors else []
        if pictures:
            extractor, prepared = await self._prepared(live, generation, pictures)
            columns = await self.work.together(("extract", extractor), partial(extracted, extractor), prepared)
            given.append(_embedding(generation, columns))
        if asked.texts:
            reader = await self._extractor(live, generation, "texts")
            columns = await self.work.together(("embed", reader), partial(embedded, reader), asked.texts)
            given.append(_embedding(generation, columns))

        def search() -> list[list[Any]]:
            with generation.held() as collection:
                query = combined(collection, given, asked.ids, asked.unlike)
                asking = Asking(generation, asked.k + len(own), where, asked.rescore)
                found = asking.by_columns([query], texts=bool(asked.texts))[0][0]
            return [[hit for hit in found if hit["id"] not in own][: asked.k]]

        return await self.work.alone(search)

    async def _prepared(
        self, live: Live, generation: Generation, pictures: Sequence[tuple[str, bytes]]
    ) -> tuple[Extractor, Prepared]:
        """Uploaded pictures, decoded and prepared in other processes for the collection's extractor."""
        if len(pictures) > self.limits.queries:
            raise Problem(422, f"{len(pictures)} pictures: at most {self.limits.queries} in one search")
        collection = generation.collection
        extractor = await self._extractor(live, generation, "pictures")
        entry, folder = collection.manifest.extractor, str((collection.folder / "extractor").absolute())
        assert entry is not None  # there is an extractor
        return extractor, await self._each(pictures, lambda picture: self.decoders.prepare(picture, entry, folder))

    async def _extractor(self, live: Live, generation: Generation, reading: Reading) -> Extractor:
        """The collection's own, loaded in a thread where it is not yet."""
        found = live.loaded(generation.collection, reading)
        if found is None:
            found = await self.work.alone(partial(live.extractor, generation.collection, reading))
        return found

    async def _each(self, pictures: Sequence[tuple[str, bytes]], job: Callable[[bytes], Awaitable[T]]) -> Sequence[T]:
        """The job's answers, side by side; a picture that cannot be used is named by its number."""
        answers = await asyncio.gather(*(job(picture) for _, picture in pictures), return_exceptions=True)
        good = []
        for number, answer in enumerate(answers, 1):
            if isinstance(answer, BadImage):
                raise Problem(422, f"image {number} cannot be used: {answer}")
            if isinstance(answer, BaseException):
                raise answer
            good.append(answer)
        return good

    # -- items

    async def items(self, request: Request) -> Any:
        """The items, all or those that a filter matches, by id."""
        asked = read_query(models.Page, request)
        where = await self._filter(asked.where)

        def listed(generation: Generation) -> Any:
            with generation.held() as collection:
                store = collection.store
                if where is None:
                    ids = generation.once("ids", lambda: store.live_ids)
                else:
                    ids = generation.once("ids", lambda: store.select(where), asked.where)
                some = ids[asked.offset : asked.offset + asked.limit]
                documents = store.documents(some)
            items = [_listed(item, document) for item, document in zip(some.tolist(), documents, strict=True)]
            return {"total": len(ids), "items": items}

        return await self._of(request, listed)

    async def item(self, request: Request) -> Any:
        """One item, with all that is stored of it."""
        item, (document, path) = _id(request), await self._document(request)
        payload = {key: value for key, value in document.items() if key not in ("path", "label")}
        return {**_listed(item, document), "missing": path is None, "payload": payload}

    async def thumb(self, request: Request) -> Any:
        """A small JPEG of the item, or a placeholder (SVG) where its original is gone."""
        asked = read_query(models.Thumb, request)
        _, path = await self._document(request)
        return _picture(request, await self.pictures.thumb(path, asked.size))

    async def image(self, request: Request) -> Any:
        """The original, as it is or, if a browser could not show it, as JPEG."""
        _, path = await self._document(request)
        return _picture(request, await self.pictures.original(path))

    async def _document(self, request: Request) -> tuple[dict[str, Any], str | None]:
        item = _id(request)

        def look(generation: Generation) -> tuple[dict[str, Any], str | None]:
            with generation.held() as collection:
                document = collection.documents(known([item]))[0]
                return document, original(collection.manifest, str(document.get("path", "")))

        return await self._of(request, look)

    # -- about all of them

    async def facets(self, request: Request) -> Any:
        """By field, the most frequent values and how many items have each; of those that a filter matches."""
        asked = read_query(models.Filtered, request)
        where = await self._filter(asked.where)

        def count(generation: Generation) -> Any:
            with generation.held() as collection:
                return {"fields": generation.once("facets", lambda: facets(collection.store, where), asked.where)}

        return await self._of(request, count)

    async def duplicates(self, request: Request) -> Any:
        """Items that are there more than once: the same bytes, or codes that differ in a few bits."""
        asked = read_query(models.Radius, request)

        def find(store: Store) -> Any:
            found = find_duplicates(store, asked.radius, self.limits.compared)
            return {"exact": _groups(found.copies), "alike": _groups(found.alike), "total": len(found.groups)}

        return await self._heavy(request, "duplicates", asked.radius, find)

    async def map(self, request: Request) -> Any:
        """The collection as points in a plane."""
        asked = read_query(models.Points, request)
        return await self._heavy(request, "map", asked.points, partial(plane, points=asked.points))

    async def list(self, request: Request) -> Any:
        """The collections that are served."""
        found = []
        for live in self.collections.values():
            try:
                with live.generation() as generation:
                    found.append({"name": live.name, "items": len(generation.collection), "problem": None})
            except Problem as problem:
                found.append({"name": live.name, "items": None, "problem": self.told(problem).detail})
        return {"collections": found}

    async def info(self, request: Request) -> Any:
        """What the collection holds, of what it is made, and how long searches take."""
        live = self._live(request)

        def facts(generation: Generation) -> Any:
            with generation.held() as collection:
                try:
                    floats = bool(float_column(collection.store))
                except Unsupported:
                    floats = False
                about = generation.once("info", collection.info)
                texts = generation.once("texts", lambda: (collection.reads_text,))[0]
                metric = collection.manifest.metric
                images = collection.manifest.extractor is not None and collection.manifest.extractor.name != "vectors"
                recall = recalled.last(collection.folder, collection.manifest.generation)
            return {**about, "recall": recall, "floats": floats, "images": images, "texts": texts, "metric": metric}

        about = await self._of(request, facts)
        return {"name": live.name, **about, "write": self.writing is not None, "latency_ms": _percentiles(live.seconds)}

    # -- runs

    async def list_runs(self, request: Request) -> Any:
        """The comparisons that are served."""
        found = [await self.work.alone(partial(_about_run, *run)) for run in self.runs.items()]
        return {"runs": [{**about, "problem": problem and self.told(problem).detail} for about, problem in found]}

    async def run(self, request: Request) -> Any:
        """The rows of a comparison, and what they were measured on."""
        name, folder = self._run(request)
        return {"name": name, **await self.work.alone(partial(_told, folder))}

    async def report(self, request: Request) -> Any:
        """The report of a comparison: one page of HTML, which may use nothing of this server."""
        _, folder = self._run(request)
        try:
            content = await self.work.alone((folder / "report.html").read_bytes)
        except OSError:
            raise Problem(404, f"no report.html in {folder.name}: cbir report writes it") from None
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": _ALONE})

    # -- change

    async def add(self, request: Request) -> Any:
        """Add pictures that are uploaded: they are kept beside the collection."""
        live, uploads = self._writable(request)
        if media_type(request) != FORM:
            raise Problem(415, f"pictures come as parts 'image' of {FORM}")
        async with self._form(request) as (pictures, fields):
            if fields or not pictures:
                raise Problem(422, "give pictures as parts 'image' of a form, and nothing else")
            formats = await self._each(pictures, self.decoders.check)
            contents = [content for _, content in pictures]
            stored = partial(uploads.add, live.folder, [*zip(contents, formats, strict=True)])
            ids, added, failed = await self._changed(live, stored)
        return {"ids": ids, "added": added, "failed": failed}

    async def delete(self, request: Request) -> Any:
        """Delete an item from the collection; its file stays, unless it was uploaded."""
        live, uploads = self._writable(request)
        item = int(known([_id(request)])[0])
        deleted, left = await self._changed(live, partial(uploads.delete, live.folder, item))
        return {"deleted": deleted, "items": left}

    async def _changed(self, live: Live, change: Callable[[], T]) -> T:
        """What ``change()`` gives; one at a time, and what has begun is done whole, though nobody waits any more."""
        seconds, later = self.limits.seconds, {"Retry-After": "5"}
        try:
            await asyncio.wait_for(self._writing.acquire(), seconds)
        except asyncio.TimeoutError:
            said = "another change takes long, and of this one nothing was done: ask again later"
            raise Problem(503, said, later) from None
        self._changing = asyncio.create_task(self._whole(live, change))
        said = f"not done in {seconds:g} s, but it goes on: ask the same again to see whether it was done"
        return await in_time(asyncio.shield(self._changing), seconds, Problem(503, said, later))

    async def _whole(self, live: Live, change: Callable[[], T]) -> T:
        try:
            found = await self.work.whole(change)
            await live.refresh()
            return found
        finally:
            self._writing.release()

    def _writable(self, request: Request) -> tuple[Live, Uploads]:
        live = self._live(request)
        if self.writing is None:
            raise Problem(403, "this server only reads: start it with --write")
        return live, self.writing[live.name]

    # -- how

    def _live(self, request: Request) -> Live:
        name = request.path_params["name"]
        if name not in self.collections:
            raise Problem(404, f"no collection '{name[:100]}': there are {', '.join(self.collections) or 'none'}")
        return self.collections[name]

    def _run(self, request: Request) -> tuple[str, Path]:
        name = request.path_params["name"]
        if name not in self.runs:
            raise Problem(404, f"no run '{name[:100]}': there are {', '.join(self.runs) or 'none'}")
        return name, self.runs[name]

    async def _of(self, request: Request, call: Callable[[Generation], T]) -> T:
        """``call`` in a thread, on the current generation of the collection that is asked for."""
        with self._live(request).generation() as generation:
            return await self.work.alone(partial(call, generation))

    async def _heavy(self, request: Request, kind: str, what: Hashable, make: Callable[[Store], Any]) -> Any:
        """What ``make`` gives of the collection, worked out once; or why it cannot be."""

        def made(generation: Generation) -> Any:
            with generation.held() as collection:
                return generation.once(kind, partial(_or_why_not, make, collection.store), what)

        with self._live(request).generation() as generation:
            found = generation.kept(kind, what)
            if found is None:
                found = await self.heavy.shared((generation, kind, what), partial(made, generation))
        if isinstance(found, Problem):
            raise Problem(found.status, found.detail)
        return found

    async def _filter(self, where: str | dict[str, Any] | None) -> Any:
        return None if where is None else await self.work.alone(partial(read_filter, where, self.limits.depth))

    async def _json(self, request: Request, model: type[T]) -> T:
        if media_type(request) != JSON:
            raise Problem(415, f"a body is {JSON}, or {FORM} with pictures")
        async with self.receiver.body(request) as body:
            read = partial(read_json, model, body)  # type: ignore[type-var]
            return await self.work.alone(read) if len(body) > _PARSED_AT_ONCE else read()

    @asynccontextmanager
    async def _form(self, request: Request) -> Any:
        """Pictures and fields of a form, counted as held within the block."""
        async with self.receiver.body(request) as body:
            yield await read_form(request, body, self.limits)


def _embedding(generation: Generation, columns: Columns) -> Floats:
    name = generation.collection.manifest.embedding
    return columns[name if name in columns else "embedding"]


def _or_why_not(make: Callable[[Store], Any], store: Store) -> Any:
    try:
        return make(store)
    except InputError as error:  # it may have taken as long as an answer, and would each time
        return Problem.of(error)


def _id(request: Request) -> int:
    return int(request.path_params["id"])


def _listed(item: int, document: dict[str, Any]) -> dict[str, Any]:
    return {"id": item, "path": str(document.get("path", "")), "label": document.get("label")}


def _groups(groups: Sequence[Sequence[Duplicate]]) -> list[list[dict[str, Any]]]:
    return [
        [{"id": one.id, "path": one.path, "label": one.label, "distance": one.distance} for one in group]
        for group in groups[:_GROUPS]
    ]


def _picture(request: Request, picture: Picture) -> Response:
    if not picture.tag:
        return Response(picture.content, media_type=picture.media_type, headers={"Cache-Control": "no-store"})
    headers = {"ETag": f'"{picture.tag}"', "Cache-Control": "private, max-age=3600"}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if picture.file is not None:  # in pieces: who reads slowly holds no more than one
        try:
            status = Path(picture.file).stat()
        except OSError:
            raise Problem(404, "the original of this item is not there any more") from None
        return FileResponse(picture.file, media_type=picture.media_type, headers=headers, stat_result=status)
    return Response(picture.content, media_type=picture.media_type, headers=headers)


def _percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(seconds)
    if not ordered:
        return {f"p{percent}": None for percent in _PERCENTILES}
    return {f"p{p}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 3) for p in _PERCENTILES}


def _about_run(name: str, folder: Path) -> tuple[dict[str, Any], Problem | None]:
    """What the list says of a run, and why it cannot be shown."""
    about = {"name": name, "rows": None, "report": (folder / "report.html").is_file()}
    try:
        return {**about, "rows": len(_told(folder)["rows"])}, None
    except Problem as problem:
        return about, problem


def _told(folder: Path) -> dict[str, Any]:
    """The results, with what people call each row, and the measures that tables begin with."""
    results = _results(folder)
    try:
        rows = rows_of(results["rows"])
    except CorruptCollection as error:
        raise Problem(503, f"run '{folder.name}': results.json: {error}") from None
    named = [{**row, "name": name_of(told)} for row, told in zip(results["rows"], rows, strict=True)]
    measures = {"measure": main_measure(rows), "knn": knn_measure(rows)} if rows else {}
    return {**results, **measures, "rows": named}


def _results(folder: Path) -> dict[str, Any]:
    try:
        results = json.loads((folder / "results.json").read_bytes())
    except (OSError, ValueError) as error:
        raise Problem(503, f"run '{folder.name}': results.json cannot be read: {error}") from None
    if not isinstance(results, dict) or not isinstance(results.get("rows"), list):
        raise Problem(503, f"run '{folder.name}': results.json has no rows")
    return results
