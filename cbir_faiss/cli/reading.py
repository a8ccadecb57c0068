"""Asking a collection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbir_faiss.cli._arguments import engine_options, folder_argument, key_values, place_argument
from cbir_faiss.cli.printing import Bar, fact, say, say_json
from cbir_faiss.errors import CbirError

if TYPE_CHECKING:
    from cbir_faiss.collection import Collection, Match
    from cbir_faiss.collection.transfer import Difference
    from cbir_faiss.serve.client import Remote


@click.command()
@folder_argument
@click.option("--radius", type=int, help="Bits by which codes may differ; 0: equal codes. [a 32nd of the code]")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with the pictures, too.")
@click.option(
    "--json", "as_json", is_flag=True, help="One list a group of {id, path, label, distance, same}, copies first."
)
def duplicates(folder: Path, radius: int | None, html: Path | None, as_json: bool) -> None:
    """Find pictures that are in FOLDER more than once: the same bytes, or nearly the same code.

    Copies and look-alikes are listed apart; a group is what lies within the radius of its first picture.

    \b
    cbir duplicates photos.cbir --radius 8 --html duplicates.html
    """
    from cbir_faiss.collection.duplicates import find_duplicates, write_page
    from cbir_faiss.storage.store import Store

    with Store.open(folder) as store:
        found = find_duplicates(store, radius)
        if html:
            write_page(store, found, html)
    if as_json:
        say_json([[vars(one) for one in group] for group in found.groups])
        return
    for kind, groups in {"copies": found.copies, "look-alikes": found.alike}.items():
        for number, group in enumerate(groups, 1):
            say(f"{kind}, group {number}")
            for one in group:
                how = "first" if one is group[0] else "same bytes" if one.same else f"{one.distance} bits"
                say(f"  {how:>10}  {one.id:8d}  {one.path}  {'' if one.label is None else one.label}")
        say(f"{kind}: {len(groups):,} groups of {sum(map(len, groups)):,} items")
    if html:
        say(html)


@click.command()
@place_argument
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("-k", default=5, show_default=True, help="How many to find.")
@click.option("--where", help="A filter: 'label = \"cat\" and year >= 1990'.")
@click.option("--id", "ids", type=int, multiple=True, help="Query by an item of the collection.")
@click.option(
    "--vector", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Query by vectors, a .npy (n, dim)."
)
@click.option("--text", "texts", multiple=True, help="Query by what is to be seen: 'a red bus'.")
@click.option("--relevant", is_flag=True, help="Only hits that are meant, by a cut-off that is learnt the first time.")
@click.option("--json", "as_json", is_flag=True, help="One list a query of {id, path, label, distance[, relevant]}.")
def search(
    folder: Path | str,
    images: tuple[Path, ...],
    k: int,
    where: str | None,
    ids: tuple[int, ...],
    vector: Path | None,
    texts: tuple[str, ...],
    relevant: bool,
    as_json: bool,
) -> None:
    """Find the items of the collection FOLDER most like each of IMAGES.

    \b
    cbir search photos.cbir query.jpg -k 5
    cbir search photos.cbir --id 17 --where 'label = "cat"' --json
    cbir search photos.cbir --text 'a red bus'
    cbir search http://127.0.0.1:8321/photos query.jpg       a collection that is served; token: $CBIR_TOKEN
    """
    if sum(map(bool, (images, ids, vector, texts))) != 1:
        raise click.UsageError("give images, or --id, or --vector, or --text")
    with _opened(folder) as collection:
        found, queries = _search(collection, images, ids, vector, texts, k=k, where=where, relevant=relevant)
    if as_json:
        say_json([[match.as_dict() for match in some] for some in found])
        return
    for query, some in zip(queries, found, strict=True):
        say(query)
        for match in some:
            say(f"  {match.distance:10.4f}  {match.id:8d}  {match.path}  {'' if match.label is None else match.label}")


def _opened(place: Path | str) -> Collection | Remote:
    if isinstance(place, str):
        from cbir_faiss.serve.client import connect

        return connect(place)
    from cbir_faiss.collection import Collection

    return Collection.open(place)


def _search(
    collection: Collection | Remote,
    images: tuple[Path, ...],
    ids: tuple[int, ...],
    vector: Path | None,
    texts: tuple[str, ...],
    **asked: Any,
) -> tuple[list[list[Match]], list[str]]:
    if ids:
        return collection.search_ids(ids, **asked), [f"id {i}" for i in ids]
    if vector:
        queries = _vectors(vector)
        return collection.search(queries, **asked), [f"vector {i}" for i in range(len(queries))]
    if texts:
        return collection.search_text(texts, **asked), list(texts)
    return collection.search(list(images), **asked), [str(image) for image in images]


def _vectors(path: Path) -> Any:
    import numpy as np

    try:
        queries = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise CbirError(f"{path}: not a .npy file of vectors ({error})") from error
    if not isinstance(queries, np.ndarray):
        queries.close()
        raise CbirError(f"{path}: not a .npy file of vectors, but several arrays: save the one you want by itself")
    return queries[None] if queries.ndim == 1 else queries


@click.command()
@folder_argument
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info(folder: Path, as_json: bool) -> None:
    """What the collection FOLDER holds.

    \b
    cbir info photos.cbir
    """
    from cbir_faiss.collection import Collection

    with Collection.open(folder) as collection:
        facts = collection.info()
    if as_json:
        say_json(facts)
        return
    for key, value in facts.items():
        say(f"{key:<12} {fact(key, value)}")


@click.command()
@folder_argument
@click.option("--against", metavar="BACKEND", help="Compare with what was pushed to this engine; key=value… follow.")
@engine_options
def verify(folder: Path, against: str | None, options: tuple[str, ...]) -> None:
    """Read every byte of the collection FOLDER and say which files are not as they were written.

    Where an engine keeps its index, what the engine holds is compared with the files, too.

    With --against, compare a deployed copy with it instead: missing, extra and differing items, and whether sampled
    queries find as near neighbours.

    \b
    cbir verify photos.cbir
    cbir verify photos.cbir --against qdrant url=http://localhost:6333 collection=photos
    """
    if against is not None:
        _verify_deployed(folder, against, options)
        return
    if options:
        raise click.UsageError("key=value belongs to --against")
    from cbir_faiss.collection import Collection
    from cbir_faiss.storage.manifest import damaged_files, read_manifest

    manifest = read_manifest(folder)
    damaged = damaged_files(folder, manifest)
    for name, how in damaged:
        say(f"{folder / name}: {how}")
    if damaged:
        raise CbirError(f"{folder}: {len(damaged)} of {len(manifest.files)} files are damaged")
    say(f"{folder}: {len(manifest.files)} files, {manifest.items:,} items, all as they were written")
    with Collection.open(folder) as collection, Bar("comparing", unit="item") as bar:
        found = collection.engine_difference(progress=bar.progress)
    if found is not None:
        _say_difference(folder, manifest.backend.name, found)


def _verify_deployed(folder: Path, name: str, options: tuple[str, ...]) -> None:
    from cbir_faiss.collection.sync import Target, difference

    with Bar("comparing", unit="item") as bar:
        found = difference(folder, Target(name, key_values(options)), progress=bar.progress)
    _say_difference(folder, name, found)


def _say_difference(folder: Path, name: str, found: Difference) -> None:
    for what, ids in found.ids.items():
        shown = ", ".join(map(str, ids[:5].tolist())) + (", …" if len(ids) > 5 else "")
        say(f"{what:<22} {len(ids):,}" + (f"  (ids {shown})" if len(ids) else ""))
    if found.agreement is not None:
        say(f"{'neighbours as near':<22} {found.agreement:.1%}")
    if found:
        raise CbirError(f"{name} does not hold what {folder} holds")
