"""Making a collection and changing it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from cbir_faiss.cli._arguments import adopt_option, config_argument, folder_argument
from cbir_faiss.cli.printing import progress_of, say, say_failures, say_json, stages


@click.command()
@config_argument
@click.option("--out", type=click.Path(path_type=Path), help="The collection to make. [<config's name>.cbir]")
@adopt_option
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("--log-json", is_flag=True, help="Log progress and phases to stderr, one JSON object a line.")
def build(config: Path, out: Path | None, adopt: bool, as_json: bool, log_json: bool) -> None:
    """Build the one collection that CONFIG describes, or bring it up to what its source has become.

    Started again after being killed, it goes on where it was.

    \b
    cbir build photos.yaml                         photos.cbir, where you are
    cbir build photos.yaml --out /data/photos.cbir
    """
    from cbir_faiss.collection import Collection

    out = out or Path(f"{config.stem}.cbir")
    with progress_of(log_json) as progress, Collection.build(config, out, progress=progress, adopt=adopt) as collection:
        done = collection.report
    assert done is not None
    if as_json:
        say_json(done.as_dict())
        return
    say(
        f"{out}: {done.items:,} items in {done.seconds['total']:.1f} s, {done.resumed_items:,} of them extracted before"
    )
    if done.images_per_second:
        new = done.items - done.resumed_items
        say(f"{done.images_per_second:,.1f} images/s; {stages(done.seconds, new)}")
    say(f"peak memory {done.peak_rss_bytes / 1e6:,.0f} MB")
    for reason, count in Counter(failure.reason for failure in done.failed).most_common():
        say(f"{count:,} left out: {reason}")
    say_failures([failure.as_dict() for failure in done.failed])


@click.command()
@folder_argument
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@adopt_option
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("--log-json", is_flag=True, help="Log progress to stderr, one JSON object a line.")
def add(folder: Path, paths: tuple[Path, ...], adopt: bool, as_json: bool, log_json: bool) -> None:
    """Add files, or all images below folders, to the collection FOLDER, in one step.

    If it is killed, none of them is there. A file that is there with another content is replaced, under a new id.

    \b
    cbir add photos.cbir new/ holiday/beach.jpg
    """
    from cbir_faiss.collection import Collection

    with progress_of(log_json) as progress, Collection.open(folder) as collection:
        done = collection.add(paths, progress=progress, adopt=adopt)
        items = len(collection)
    if as_json:
        failed = [failure.as_dict() for failure in done.failed]
        say_json({**vars(done), "failed": failed, "items": items})
        return
    say(
        f"{folder}: {done.added:,} added ({done.replaced:,} in place of older ones), {done.unchanged:,} were there; "
        f"{items:,} items"
    )
    say_failures([failure.as_dict() for failure in done.failed])


@click.command()
@folder_argument
@click.option("--id", "ids", type=int, multiple=True, help="An item to delete; may be given again.")
@click.option("--where", help="A filter: 'label = \"cat\" and year >= 1990'.")
@adopt_option
def delete(folder: Path, ids: tuple[int, ...], where: str | None, adopt: bool) -> None:
    """Delete items from the collection FOLDER, by id or all that a filter matches, in one step.

    \b
    cbir delete photos.cbir --id 17 --id 18
    cbir delete photos.cbir --where 'label = "cat"'
    """
    if bool(ids) == bool(where):
        raise click.UsageError("give --id, or --where")
    from cbir_faiss.collection import Collection

    with Collection.open(folder) as collection:
        count = collection.delete(ids, where=where, adopt=adopt)
        say(f"{folder}: {count:,} deleted, {len(collection):,} items left")
