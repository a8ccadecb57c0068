"""A collection in an engine or a file, and an engine's content as a collection."""

from __future__ import annotations

from pathlib import Path

import click

from cbir_faiss.cli._arguments import adopt_option, engine_options, folder_argument, key_values
from cbir_faiss.cli.printing import Bar, aside, say


@click.command()
@folder_argument
@click.option(
    "--to", "name", required=True, metavar="BACKEND", help="The engine to push to; key=value… are its options."
)
@click.option("--dry-run", is_flag=True, help="Say what would be sent and removed, and change nothing.")
@click.option("--keep-extra", is_flag=True, help="Leave items there that the collection does not have.")
@click.option("--swap", is_flag=True, help="Store beside what is there, then switch the names in one step.")
@click.option("--yes", is_flag=True, help="Remove even more than half of what is there.")
@adopt_option
@engine_options
def push(
    folder: Path,
    name: str,
    dry_run: bool,
    keep_extra: bool,
    swap: bool,
    yes: bool,
    adopt: bool,
    options: tuple[str, ...],
) -> None:
    """Make an engine hold what the collection FOLDER holds: codes (or floats), ids and payload.

    What is new or has changed is sent, what the collection does not have any more is removed. Interrupted, it goes on.

    \b
    cbir push photos.cbir --to qdrant url=http://localhost:6333 collection=photos
    cbir push photos.cbir --to pgvector path=pg/ table=photos
    """
    if swap and keep_extra:
        raise click.UsageError("--swap puts the collection in the place of what is there: leave --keep-extra out")
    from cbir_faiss.collection.sync import Target, push
    from cbir_faiss.collection.transfer import ONE_SIGN

    with Bar("pushing", unit="item") as bar:
        done = push(
            folder,
            Target(name, key_values(options)),
            keep_extra=keep_extra,
            remove_most=yes,
            dry_run=dry_run,
            swap=swap,
            adopt=adopt,
            progress=bar.progress,
        )
    what = f"{done.new:,} new, {done.changed:,} changed, {done.removed:,} removed"
    say(f"{name}: {done.items:,} items; " + (f"nothing was done, there would be {what}" if dry_run else what))
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
    """Copy the vectors and payload that an engine holds into a local collection, under the same ids.

    `cbir compare` can then run over it, and `cbir verify --against` compares it with the engine. Interrupted, it goes
    on.

    \b
    cbir pull qdrant url=http://localhost:6333 collection=photos --out photos.cbir
    cbir pull faiss file=photos.index --out photos.cbir
    """
    from cbir_faiss.collection.pull import pull
    from cbir_faiss.collection.sync import Target

    with Bar("pulling", unit="item") as bar:
        done = pull(Target(name, key_values(options)), out, progress=bar.progress)
    say(f"{out}: {done.items:,} items, {done.resumed:,} of them read before")
    for reason, some in done.left_out.items():
        shown = ", ".join(some.examples) + (", …" if some.count > len(some.examples) else "")
        say(f"{some.count:,} left out: {reason} ({shown})")


@click.command()
@folder_argument
@click.option(
    "--to",
    "file",
    required=True,
    type=click.Path(path_type=Path),
    help="The file to make, by its suffix: .npz, .parquet or .h5.",
)
def export(folder: Path, file: Path) -> None:
    """Write the collection FOLDER to one file for other programs: ids, paths, labels, payload, vectors.

    Vectors where it keeps them, codes where it keeps those.

    \b
    cbir export photos.cbir --to photos.parquet
    """
    from cbir_faiss.collection.export import export
    from cbir_faiss.storage.store import Store

    with Store.open(folder) as store, Bar("exporting", unit="item") as bar:
        done = export(store, file, progress=bar.progress)
    say(f"{file}: {done.items:,} items: {', '.join(done.columns)}")
