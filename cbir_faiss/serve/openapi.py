"""The endpoints, each said once: by this table requests are routed, and the description is made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cbir_faiss.serve import models
from cbir_faiss.serve.forms import FORM, JSON
from cbir_faiss.serve.problems import MEDIA_TYPE

BASE = "/api/v1"
_REFERENCE = "#/components/schemas/{model}"
_ALWAYS = (401, 403, 404, 422, 429, 503)
_WITH_BODY = (400, 408, 413, 415)
_WORDS = {
    400: "The request is no HTTP that can be read, or ended early.",
    401: "No token, or not this server's.",
    403: "A foreign Host or Origin, or a change where none is allowed.",
    404: "There is no such thing.",
    408: "The body took too long to arrive.",
    413: "Too large.",
    415: "Another media type than these.",
    422: "It cannot be read, or is out of bounds.",
    429: "Too many at once.",
    503: "Not ready, removed, damaged, or it takes long: `detail` says whether it goes on.",
}


@dataclass(frozen=True)
class Endpoint:
    """handler: a method of ``api.Api``, whose docstring is the summary. answer: None for a file of ``media``."""

    method: str
    path: str
    handler: str
    answer: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    form: bool = False
    media: Sequence[str] = ()


_OF = "/collections/{name}"
_ITEM = _OF + "/items/{id:int}"
ENDPOINTS = (
    Endpoint("GET", "/collections", "list", models.Collections),
    Endpoint("GET", _OF, "info", models.Info),
    Endpoint("POST", f"{_OF}/search", "search", models.Found, body=models.Search, form=True),
    Endpoint("GET", f"{_OF}/items", "items", models.Listing, query=models.Page),
    Endpoint("POST", f"{_OF}/items", "add", models.Added, form=True),
    Endpoint("GET", _ITEM, "item", models.Item),
    Endpoint("DELETE", _ITEM, "delete", models.Deleted),
    Endpoint("GET", f"{_ITEM}/thumb", "thumb", query=models.Thumb, media=("image/jpeg", "image/svg+xml")),
    Endpoint("GET", f"{_ITEM}/image", "image", media=("image/*",)),
    Endpoint("GET", f"{_OF}/facets", "facets", models.Facets, query=models.Filtered),
    Endpoint("GET", f"{_OF}/duplicates", "duplicates", models.Duplicates, query=models.Radius),
    Endpoint("GET", f"{_OF}/map", "map", models.Map, query=models.Points),
    Endpoint("GET", "/runs", "list_runs", models.Runs),
    Endpoint("GET", "/runs/{name}", "run", models.Run),
    Endpoint("GET", "/runs/{name}/report", "report", media=("text/html",)),
)


def description(api: type[Any]) -> dict[str, Any]:
    """OpenAPI 3.1 of the endpoints, by the docstrings of ``api``."""
    used = {model for e in ENDPOINTS for model in (e.answer, e.body) if model is not None} | {models.ProblemDetails}
    ordered = sorted(used, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in ordered], ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        path = BASE + re.sub(r":\w+", "", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, api)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cbir_faiss",
            "version": version("cbir-faiss"),
            "description": "Search by pictures, over collections of cbir_faiss.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(endpoint: Endpoint, api: type[Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.handler,
        "summary": str(getattr(api, endpoint.handler).__doc__).strip(),
        "parameters": [*_path_parameters(endpoint.path), *_query_parameters(endpoint.query)],
        "responses": {"200": {"description": "The answer.", "content": _answer(endpoint)}},
    }
    if content := _body(endpoint):
        operation["requestBody"] = {"required": True, "content": content}
    if endpoint.handler in ("thumb", "image"):
        operation["responses"]["304"] = {"description": "As the ETag says."}
    problem = {MEDIA_TYPE: {"schema": _reference(models.ProblemDetails)}}
    for status in (*_ALWAYS, *(_WITH_BODY if content else (413,))):
        operation["responses"][str(status)] = {"description": _WORDS[status], "content": problem}
    return operation


def _path_parameters(path: str) -> list[dict[str, Any]]:
    schemas = {"int": {"type": "integer", "minimum": 0}, "": {"type": "string", "minLength": 1}}
    found = re.findall(r"{(\w+):?(\w*)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": schemas[kind]} for name, kind in found]


def _query_parameters(query: type[BaseModel] | None) -> list[dict[str, Any]]:
    properties = {} if query is None else query.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "schema": _without_null(schema)} for name, schema in properties.items()]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: it is left out."""
    arms = [arm for arm in schema.get("anyOf", ()) if arm != {"type": "null"}]
    kept = {key: value for key, value in schema.items() if key not in ("anyOf", "default") or not arms}
    return {**kept, **arms[0]} if arms else kept


def _body(endpoint: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if endpoint.body is not None:
        content[JSON] = {"schema": _reference(endpoint.body)}
    if endpoint.form:
        pictures = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "Pictures."}
        fields = [] if endpoint.body is None else list(endpoint.body.model_fields)
        texts = {name: {"type": "string", "description": "As in the JSON body, as a text of JSON."} for name in fields}
        content[FORM] = {"schema": {"type": "object", "properties": {"image": pictures, **texts}}}
    return content


def _answer(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.answer is None:
        return {media: {"schema": {"type": "string", "format": "binary"}} for media in endpoint.media}
    return {JSON: {"schema": _reference(endpoint.answer)}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
