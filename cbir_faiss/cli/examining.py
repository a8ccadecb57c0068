"""Asking what an index is worth and what it takes: nothing is changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbir_faiss.cli._arguments import config_argument, engine_options, key_values
from cbir_faiss.cli.printing import Bar, aside, say, say_json

if TYPE_CHECKING:
    from cbir_faiss.collection.sync import Target
    from cbir_faiss.tuning.doctor import Diagnosis
    from cbir_faiss.tuning.recall import Recall, SettingRecall
    from cbir_faiss.types import Metric

_npy = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("place", metavar="COLLECTION|BACKEND")
@engine_options
@click.option(
    "-k", "--k", type=click.IntRange(1), default=10, show_default=True, help="How many nearest neighbours count."
)
@click.option(
    "--queries",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="How many of the items are drawn as queries.",
)
@click.option("--vectors", type=_npy, help="Ask these instead, a .npy (n, dim).")
@click.option("--truth", type=_npy, help="The exact vectors of all items, in the order of their ids, a .npy (n, dim).")
@click.option(
    "--target",
    type=click.FloatRange(0, 1, min_open=True),
    help="Look for the setting that surely meets this recall; exit 1 if none does.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def recall(
    place: str,
    options: tuple[str, ...],
    k: int,
    queries: int,
    vectors: Path | None,
    truth: Path | None,
    target: float | None,
    as_json: bool,
) -> None:
    """How much of what is nearest a search finds, in a collection, an index file, or an engine that runs.

    Items are drawn as queries and left out of their own answers. What is lost is told apart: by the code, and by a
    graph or lists that do not look at everything. Other search options are tried, too. Nothing is changed; the answer
    about a collection is kept beside its data, for cbir info and the page.

    \b
    cbir recall photos.cbir --target 0.95
    cbir recall faiss file=photos.index
    cbir recall qdrant url=http://localhost:6333 collection=photos
    """
    from cbir_faiss.collection import recalled
    from cbir_faiss.tuning.exact import read_vectors
    from cbir_faiss.tuning.recall import recall

    asked = _place(place, options)
    with Bar("reading", unit="item") as bar:
        found = recall(
            asked,
            k=k,
            queries=queries,
            vectors=None if vectors is None else read_vectors(vectors),
            truth=None if truth is None else read_vectors(truth),
            target=target,
            progress=bar.progress,
        )
    if isinstance(asked, Path) and found.generation is not None:
        recalled.keep(asked, found.as_dict(), found.generation)
    if as_json:
        say_json(found.as_dict())
    else:
        _say_recall(found)
    for note in found.notes:
        aside(f"note: {note}")
    if not found.met:
        best = found.best
        aside(f"no setting surely finds {target:g}; the best, {_setting(best)}, finds {_with_interval(best)}")
        sys.exit(1)


def _place(place: str, options: tuple[str, ...]) -> Path | Target:
    from cbir_faiss.collection.sync import Target

    if "/" in place or place.endswith(".cbir") or Path(place).is_dir():
        if options:
            raise click.UsageError("key=value belongs to an engine, not to a collection")
        return Path(place)
    return Target(place, key_values(options))


def _say_recall(found: Recall) -> None:
    low, high = found.ci95
    say(f"recall@{found.k}  {found.recall:.4f}  ({low:.4f} to {high:.4f}, {found.queries:,} queries)")
    say(f"lost by the code   {'-' if found.loss.code is None else f'{found.loss.code:.4f}'}")
    say(f"lost by the index  {found.loss.graph:.4f}")
    if len(found.settings) > 1:
        say("")
        for one in found.settings:
            say(f"  {_setting(one):<40} {_with_interval(one)}  {one.p50_ms:8.3f} ms")
    if found.chosen is not None:
        say(f"\n{found.target:g} is met by {_setting(found.chosen)} in {found.chosen.p50_ms:.3f} ms")


def _setting(one: SettingRecall) -> str:
    return " ".join(f"{name}={value}" for name, value in one.search.items()) or "as it is"


def _with_interval(one: SettingRecall) -> str:
    return f"{one.recall:.4f} ({one.ci95[0]:.4f} to {one.ci95[1]:.4f})"


@click.command()
@config_argument
@click.option("--items", type=click.IntRange(1), required=True, help="How many items it is to be for.")
@click.option("--dim", type=click.IntRange(1), help="Width of the embeddings, where the source is not there yet.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def plan(config: Path, items: int, dim: int | None, as_json: bool) -> None:
    """What a build of CONFIG takes for so many items: bytes of index, memory and disk, and seconds.

    Two small indexes of random vectors are built and compared; nothing is kept.

    \b
    cbir plan photos.yaml --items 10000000
    cbir plan photos.yaml --items 1000000 --dim 512
    """
    from cbir_faiss.tuning.plan import plan

    found = plan(config, items, dim)
    if as_json:
        say_json(found.as_dict())
        return
    say(f"{items:,} items")
    for name, count in (
        ("index", found.index_bytes),
        ("in memory", found.resident_bytes),
        ("on disk", found.disk_bytes),
        ("while building", found.build_peak_bytes),
    ):
        say(f"{name:<15} {count / 1e6:14,.1f} MB  {count / items:10,.1f} bytes an item")
    took = "-" if found.build_seconds is None else f"{found.build_seconds:,.0f} s"
    say(f"{'build':<15} {took:>16}")


@click.command()
@click.argument("of", required=False, metavar="[CONFIG|COLLECTION]", type=click.Path(exists=True, path_type=Path))
@click.option("--vectors", type=_npy, help="Look at these vectors, a .npy (n, dim).")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "l2", "ip"]),
    help="By what they are compared; without: as the collection does, else cosine.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def doctor(of: Path | None, vectors: Path | None, metric: Metric | None, as_json: bool) -> None:
    """Will binary codes work for these vectors? Measured on a sample, with one recommendation.

    \b
    cbir doctor photos.yaml
    cbir doctor --vectors embeddings.npy --metric l2
    """
    if (of is None) == (vectors is None):
        raise click.UsageError("give a config or collection, or --vectors")
    from cbir_faiss.tuning.doctor import doctor
    from cbir_faiss.tuning.exact import read_vectors

    given = read_vectors(vectors) if vectors is not None else _there(of)
    with Bar("extracting") as bar:
        found = doctor(given, metric=metric, progress=bar.progress)
    if as_json:
        say_json(found.as_dict())
    else:
        _say_diagnosis(found)


def _there(of: Path | None) -> Path:
    assert of is not None
    return of


def _say_diagnosis(found: Diagnosis) -> None:
    rows: dict[str, Any] = {
        "vectors": f"{found.items:,} of {found.dim} dimensions, {found.sample:,} looked at",
        "of one sign": f"{found.one_signed:.0%} of the dimensions",
        "effective bits": f"{found.effective_bits:.0f} of {found.dim} signs",
        "intrinsic dimension": "-" if found.intrinsic_dimension is None else f"{found.intrinsic_dimension:.1f}",
        "hubness": f"{found.hubness:.1f}",
        "duplicates": f"{found.duplicates:.1%} of those looked at",
        "lengths": f"{found.norm_mean:.3g}, varying by {found.norm_variation:.0%}; {found.zeros:,} zero vectors",
    }
    for name, value in rows.items():
        say(f"{name:<20} {value}")
    say("")
    for one in found.predictions:
        how = f"{one.candidates} ranked again" if one.candidates else "alone"
        told = (
            one.reason
            if one.recall is None or one.ci95 is None
            else (f"recall@10 {one.recall:.3f} ({one.ci95[0]:.3f} to {one.ci95[1]:.3f})")
        )
        say(f"  {one.code:<8} {one.bits:5d} bits, {how:<17} {told}")
    say(f"\n{found.advice}")
