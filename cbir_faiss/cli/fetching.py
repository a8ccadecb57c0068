"""Published data, for whoever has a network."""

from __future__ import annotations

from pathlib import Path

import click

from cbir_faiss.cli.printing import Bar, say


@click.command()
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("datasets"),
    show_default=True,
    help="Where the folder NAME is made.",
)
@click.option("--first", type=click.IntRange(min=1), help="Only the first so many pictures of each class.")
def data(name: str, out: Path, first: int | None) -> None:
    """Download the data set NAME (caltech101, cifar10, mnist), check it, and lay it out for a source.

    Stopped, it goes on where it was.

    \b
    cbir data caltech101
    cbir data caltech101 --out ../shared/datasets --first 40      as the configs of a checkout have it
    """
    from cbir_faiss.datasets.published import PUBLISHED, fetch

    with Bar(name, unit="B") as bar:
        folder = fetch(name, out, first=first, progress=lambda file: bar.progress)
    count = sum(1 for path in folder.rglob("*") if path.is_file())
    say(f"{folder}: {count:,} files. In a config beside it:")
    say(f"source: {PUBLISHED[name].source.format(root=folder)}")
