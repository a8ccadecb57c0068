"""What is installed."""

from __future__ import annotations

from typing import Any

import click

from cbir_faiss.cli.printing import say
from cbir_faiss.errors import CbirError


@click.command()
def plugins() -> None:
    """Every installed plugin and its options."""
    from cbir_faiss.base.registry import GROUPS, names

    for group in GROUPS:
        say(group)
        for name in names(group):
            say(f"  {name:<24} {_options_of(group, name)}")


def _options_of(group: Any, name: str) -> str:
    from cbir_faiss.base.registry import load

    try:
        plugin = load(group, name)
    except CbirError as error:
        return f"({error})"
    fields = plugin.Options.model_fields.items()
    return "  ".join(
        key if field.is_required() else f"{key}={field.get_default(call_default_factory=True)}" for key, field in fields
    )
