"""A collection in an engine, and an engine's content as a collection."""

from __future__ import annotations

from pathlib import Path

import click

from cbir_faiss.cli._arguments import adopt_option, engine_options, folder_argument, key_values
from cbir_faiss.cli.printing import Bar, aside, say, say_failures


@click.command()
@folder_argument
@click.option(
    "--to", "name", required=True, metavar="BACKEND", help="The engine to push to; key=value… are its options."
)
@adopt_option
@engine_options
def push(folder: Path, name: str, adopt: bool, options: tuple[str, ...]) -> None:
    """Store the collection FOLDER in an engine: codes (or floats), ids and payload. Interrupted, it goes on.

    \b
    cbir push photos.cbir --to qdrant url=http://localhost:6333 collection=photos
    cbir push photos.cbir --to pgvector path=pg/ table=photos
    """
    from cbir_faiss.collection.sync import Target, push
    from cbir_faiss.collection.transfer import ONE_SIGN

    with Bar("pushing", unit="item") as bar:
        done = push(folder, Target(name, key_values(options)), progress=bar.progress, adopt=adopt)
    say(f"{name}: {done.items:,} items, {done.resumed:,} of them stored before")
    if done.one_sign is not None and done.one_sign > ONE_SIGN:
        aside(
            f"note: {done.one_sign:.0%} of these values have one sign, so an engine's own binary quantization would "
            "tell little apart; push a collection built with codec 'rotate' instead"
        )


@click.command()
@click.argument("name", metavar="BACKEND")
@engine_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The collection to make.")
def pull(name: str, options: tuple[str, ...], out: Path) -> None:
    """Copy the vectors and payload that an engine holds into a local collection.

    `cbir compare` can then run over it.

    \b
    cbir pull qdrant url=http://localhost:6333 collection=photos --out photos.cbir
    cbir pull faiss file=photos.index --out photos.cbir
    """
    from cbir_faiss.collection.sync import Target, pull

    with Bar("pulling", unit="item") as bar:
        done = pull(Target(name, key_values(options)), out, progress=bar.progress)
    say(f"{out}: {done.items:,} items")
    say_failures([failure.as_dict() for failure in done.failed])
