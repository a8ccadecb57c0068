"""Which codec, backend and rescorer go together: one rule for whoever builds, compares or tunes."""

from __future__ import annotations

from cbir_faiss.config import Choice
from cbir_faiss.errors import ConfigError


def same_kind(codec: Choice, backend: Choice) -> bool:
    """Whether the backend takes what the codec gives: floats, or codes."""
    return codec.plugin().kind in backend.plugin().kinds(backend.options)


def check_combination(codec: Choice, backend: Choice, rescore: Choice) -> None:
    """Raises ConfigError where the three do not go together; the message says which two, and why."""
    kind = codec.plugin().kind
    gives = "binary codes" if kind == "binary" else "floats"
    if not same_kind(codec, backend):
        takes = " or ".join(sorted(backend.plugin().kinds(backend.options)))
        raise ConfigError(
            f"backend '{backend.name}' takes {takes} vectors, not {kind} ones, and codec '{codec.name}' gives {gives}",
            path="backends",
        )
    if kind != "binary" and _reads_codes(rescore):
        raise ConfigError(
            f"'{rescore.name}' reads binary codes, which codec '{codec.name}' does not give", path="rescore"
        )


def _reads_codes(rescore: Choice) -> bool:
    rescorer = rescore.plugin()
    return "code" in rescorer.needs_items or "projection" in rescorer.needs_queries
