"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cbir_faiss.collection.sync import Target

config_argument = click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
folder_argument = click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))


class _Place(click.Path):
    """A folder, or the address of a server, which stays a text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        is_address = isinstance(value, str) and value.startswith(("http://", "https://"))
        return value if is_address else super().convert(value, param, ctx)


place_argument = click.argument("folder", type=_Place(exists=True, file_okay=False, path_type=Path))
engine_options = click.argument("options", nargs=-1, metavar="[KEY=VALUE]...")

adopt_option = click.option(
    "--adopt", is_flag=True, help="Take over a table in the engine that belongs to no collection."
)


def data_or_engine(word: str, options: tuple[str, ...]) -> Path | Target:
    """A file or folder by its path, else an engine by its name and options.

    Raises:
        click.UsageError: options of a path, or a path where nothing is.
    """
    from cbir_faiss.collection.sync import Target

    path = Path(word)
    if not path.exists() and not path.suffix and "/" not in word:
        return Target(word, key_values(options))
    if options:
        raise click.UsageError("key=value belongs to an engine, not to a file or a collection")
    if not path.exists():
        raise click.UsageError(f"no such file, collection or engine: {word}")
    return path


def key_values(words: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` words as options; values are read as YAML reads them: numbers, true, lists, else text."""
    import yaml

    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise click.UsageError(f"options are key=value, not {word!r}")
        try:
            options[key] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise click.UsageError(f"{key}: {value!r} is no value in YAML; put quotes around a text") from error
    return options
