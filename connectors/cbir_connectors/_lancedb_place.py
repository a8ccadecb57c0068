"""Where a LanceDB database is: a folder, an object store, or LanceDB's own servers."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any

from cbir_faiss.errors import ConfigError

API_KEY = "CBIR_LANCEDB_API_KEY"
_SERVERS = "db://"
_STORES = r'Generic (\{ store: ")?(S3|GCS|MicrosoftAzure)|object store prefix'


def check_uri(uri: str | None) -> str | None:
    """Raises ValueError where an address could not be used, or should not be written down."""
    if uri is not None and ("://" not in uri or uri.startswith(("memory:", "shared-memory:"))):
        raise ValueError("an address is like s3://bucket/folder, gs://…, az://… or db://database; a folder is a 'path'")
    if uri is not None and ("@" in uri or "key" in uri.partition("?")[2].lower()):
        raise ValueError(f"no secrets in addresses: put an API key in {API_KEY}, others where the store's tools look")
    return uri


def is_remote(options: Any) -> bool:
    """Whether the engine runs on LanceDB's servers, and not in this process."""
    return options.uri is not None and options.uri.startswith(_SERVERS)


def secret() -> str:
    return os.environ.get(API_KEY, "")


def connect(lancedb: Any, options: Any) -> Any:
    """The database.

    Raises:
        ConfigError: LanceDB's servers want an API key, and there is none.
    """
    # Without the interval, a table is read as it was when it was opened, whoever writes to it since.
    fresh = timedelta(0)
    if not is_remote(options):
        return lancedb.connect(options.path or options.uri, read_consistency_interval=fresh)
    if not secret():
        raise ConfigError(f"{options.uri} wants an API key: put it in {API_KEY}", path="uri")
    known = {"region": options.region, "host_override": options.host}
    return lancedb.connect(options.uri, api_key=secret(), read_consistency_interval=fresh, **known)


def tables(db: Any) -> list[str]:
    """Names of all its tables."""
    names: list[str] = []
    page = None
    while True:
        answer = db.list_tables(page_token=page)
        names += answer.tables
        page = answer.page_token
        if not page:
            return names


def explain(error: BaseException) -> str:
    """What to do about the usual failures; '' where the engine's own words must do."""
    text = str(error)
    if "request_id=" in text:  # LanceDB's servers
        if re.search(r"\b40[13]\b", text):
            return f"the server refused the API key; it is read from {API_KEY}"
        return "no answer but errors, if any, from this address" if "connect_failures=" in text else ""
    if re.search(_STORES, text):
        return "its store does not answer, or refuses: region and keys come from AWS_…, GOOGLE_… or AZURE_… variables"
    return ""
