"""A first config for somebody's pictures."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from cbir_faiss.cli.printing import say

FEW = 1_000
"""Below so many pictures floats are small and quick enough, and a code has little to learn from."""

_HEAD = """\
# {n:,} pictures below {folder}.
{commands}
# Every option of every plugin: cbir plugins

# Where the pictures are; the first folder below root is a picture's label, by which filters and measures go.
source: {{name: folder, root: {root}}}
{queries}
# What makes an embedding of a picture. `compact` ships with the package; with PyTorch installed any torchvision network
# will do: {{name: torchvision, model: mobilenet_v2, weights: DEFAULT, layer: features, pool: avg}}
extractors:
  - {{name: compact}}
"""
_BUILD = """\
#     cbir build {config}              makes the collection, or takes over what has changed since
#     cbir search {collection} PICTURE     the pictures most like one
"""
_COMPARE = """\
#     cbir compare {config}     what each choice costs in accuracy, bytes and time: a table, a report, a recommendation
"""
_FLOATS = """
# Floats as they are, compared with every picture: the most exact. From some thousand pictures on, codes take a fraction
# of the memory: {name: itq, bits: 64}, faiss-binary-flat, and {name: float, candidates: 100} below.
codecs: [{name: raw}]
backends: [{name: faiss-flat, metric: cosine}]
rescore: [{name: none}]
"""
_CODES = """
# Codes of 64 bits in memory find 100 candidates, which the floats, left on the disk, put in order.
codecs: [{name: itq, bits: 64}]
backends: [{name: faiss-binary-flat}]
rescore: [{name: float, candidates: 100}]
"""
_QUERIES = """\
# Every fifth picture is a query and is not stored.
queries: {every: 5}
"""
_SWEEP = """
# Every combination that goes together is a row of the table; a list of values is a sweep.
codecs:
  - {{name: raw}}
  - {{name: lsh, bits: [{bits}]}}
  - {{name: itq, bits: [{bits}]}}
backends:
  - {{name: faiss-flat, metric: cosine}}
  - {{name: faiss-binary-flat}}
rescore: [{{name: none}}, {{name: float, candidates: 100}}]
"""


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--compare", "comparing", is_flag=True, help="Write a comparison of choices instead of one collection.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The config. [<folder's name>.yaml]")
def init(folder: Path, comparing: bool, out: Path | None) -> None:
    """Write a first config, with comments, for the pictures in FOLDER; a file that is there is left alone.

    \b
    cbir init photos/                 photos.yaml: one collection of them
    cbir init photos/ --compare       photos-compare.yaml: what each choice would cost
    """
    from cbir_faiss.errors import CbirError
    from cbir_faiss.storage.files import writing_to

    name = folder.resolve().name or "pictures"
    out = out or Path(f"{name}-compare.yaml" if comparing else f"{name}.yaml")
    n = _count(folder)
    if "\n" in str(out):
        raise CbirError(f"{str(out)!r} takes more than one line: choose another --out")
    if out.exists():
        raise CbirError(f"{out}: exists; choose another --out or remove it")
    try:
        text = _text(folder, out, n, comparing).encode()
    except UnicodeEncodeError as error:
        raise CbirError("the folder's name is not UTF-8, which a config has to be: rename it, or link to it") from error
    with writing_to(out), out.open("xb") as file:
        file.write(text)
    say(f"{out}: {n:,} pictures. Next:")
    say(f"cbir {'compare' if comparing else 'build'} {shlex.quote(str(out))}")


def defaults_of(folder: Path) -> dict[str, Any]:
    """The document of the config that ``init`` would write for one collection of the pictures in ``folder``."""
    import yaml

    text = _text(folder, folder / "photos.yaml", _count(folder), comparing=False)
    document: dict[str, Any] = yaml.safe_load(text)
    document["source"]["root"] = str(folder)
    return document


def _count(folder: Path) -> int:
    """How many pictures are below ``folder``. Raises CbirError where there are none."""
    from cbir_faiss.errors import CbirError
    from cbir_faiss.sources.folder import images_below

    n = sum(1 for _ in images_below(folder))
    if not n:
        raise CbirError(f"{folder}: no image file (by suffix) in it or below it")
    return n


def _text(folder: Path, config: Path, n: int, comparing: bool) -> str:
    head = _HEAD.format(
        n=n,
        folder=folder if str(folder).isprintable() else json.dumps(str(folder)),
        root=json.dumps(_relative(folder, config), ensure_ascii=False),
        commands=(_COMPARE if comparing else _BUILD)
        .format(config=shlex.quote(str(config)), collection=shlex.quote(str(config.with_suffix(".cbir"))))
        .rstrip(),
        queries=_QUERIES if comparing else "",
    )
    if comparing:
        return head + _SWEEP.format(bits="64, 256" if n >= FEW else "16, 32")
    return head + (_FLOATS if n < FEW else _CODES)


def _relative(folder: Path, config: Path) -> str:
    """``folder`` as the config names it: relative where it lies below the config's own folder."""
    below = config.resolve().parent
    place = folder.resolve()
    return place.relative_to(below).as_posix() if place.is_relative_to(below) else str(place)
