"""The plugin contracts. Public methods check and call the author's underscore method; an author writes only those.

    images ──Extractor──▶ columns ──Codec──▶ codes ──Backend──▶ Hits ──Rescorer──▶ Hits

A plugin is a class with a ``name``, a nested ``Options`` and one or two underscore methods. It is constructed from
plain keyword options, checked against ``Options`` (unknown, missing and wrongly typed ones are a ConfigError).
"""

from __future__ import annotations

from cbir_faiss.base.backend import Backend, Capabilities, Support
from cbir_faiss.base.codec import Codec
from cbir_faiss.base.extractor import Extractor
from cbir_faiss.base.item_bytes import ItemBytes
from cbir_faiss.base.options import Options
from cbir_faiss.base.plugin import Plugin
from cbir_faiss.base.rescorer import Fetch, FirstStage, Places, Rescorer, located
from cbir_faiss.base.source import Content, Item, Source, Stamp

__all__ = [
    "Backend",
    "Capabilities",
    "Codec",
    "Content",
    "Extractor",
    "Fetch",
    "FirstStage",
    "Item",
    "ItemBytes",
    "Options",
    "Places",
    "Plugin",
    "Rescorer",
    "Source",
    "Stamp",
    "Support",
    "located",
]
