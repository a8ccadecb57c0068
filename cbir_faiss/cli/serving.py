"""Serving collections."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cbir_faiss.cli.printing import aside, progress_of, say, say_failures
from cbir_faiss.errors import CbirError


@click.command()
@click.argument("places", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", default=8321, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option("--token", envvar="CBIR_TOKEN", help="What programs send. [$CBIR_TOKEN, else one is made]")
@click.option("--write", is_flag=True, help="Allow adding and deleting; never a file of yours.")
@click.option("--uploads", type=click.Path(file_okay=False, path_type=Path), help="Where added pictures are kept.")
@click.option("--name", "names", multiple=True, metavar="HOST", help="A name of this server, behind a proxy.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="An origin whose pages may ask: https://example.org")
@click.option("--open", "opening", is_flag=True, help="Open the page in the browser.")
@click.option("--log-json", is_flag=True, help="Log requests to stderr, one JSON object a line.")
def serve(
    places: tuple[Path, ...],
    host: str,
    port: int,
    token: str | None,
    write: bool,
    uploads: Path | None,
    names: tuple[str, ...],
    cors: tuple[str, ...],
    opening: bool,
    log_json: bool,
) -> None:
    """Serve a page and an HTTP API over collections, folders of photos, and runs of cbir compare.

    A folder of photos gets a collection beside it, built with the defaults; the next start adds new photos and drops
    gone ones. One link is printed, which opens the page once.

    \b
    cbir serve photos/ --open
    cbir serve photos.cbir other.cbir runs/demo --write
    """
    from cbir_faiss._lib.logs import log_json as to_json
    from cbir_faiss.base.options import need

    for module in ("starlette", "uvicorn", "python_multipart"):
        need(module, "serve")
    from cbir_faiss.serve.server import Server, Settings, check

    if log_json:
        to_json(sys.stderr)
    settings = Settings(host, port, token, write, uploads, frozenset(map(str.lower, names)), frozenset(cors))
    check(settings)
    collections, runs = _sorted(places, log_json)
    server = Server(collections, runs, settings)
    say(server.link)
    if not log_json:  # then stderr is for those who read JSON, and a secret belongs in no log
        if token is None:
            aside(f"for programs: CBIR_TOKEN={server.token}")
        aside("Ctrl-C stops it")
    if opening:
        import webbrowser

        webbrowser.open(server.link)
    server.run()


def _sorted(places: tuple[Path, ...], log_json: bool) -> tuple[list[Path], list[Path]]:
    """Collections and runs; a folder of photos becomes a collection."""
    from cbir_faiss.storage.manifest import CURRENT

    collections: list[Path] = []
    runs: list[Path] = []
    for place in dict.fromkeys(places):
        if (place / CURRENT).exists():
            collections.append(place)
        elif (place / "results.json").exists():
            runs.append(place)
        elif place.name.endswith(".cbir"):
            raise CbirError(f"{place}: not a collection, or its build did not finish (it has no file {CURRENT})")
        else:
            collections.append(_followed(place, log_json))
    return collections, runs


def _followed(photos: Path, log_json: bool) -> Path:
    from cbir_faiss.cli.starting import defaults_of
    from cbir_faiss.serve.photos import follow

    with progress_of(log_json) as progress:
        collection, done = follow(photos, defaults_of, progress)
    if not log_json:
        aside(f"{collection}: {done.items:,} photos")
        say_failures([failure.as_dict() for failure in done.failed])
    return collection
