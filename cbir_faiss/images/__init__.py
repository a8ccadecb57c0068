"""Pictures: opening them, and preparing them for a network."""

from __future__ import annotations

DEFAULT_MAX_MEGAPIXELS = 100.0
