"""From what is needed to the index that gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cbir_faiss.cli._arguments import data_or_engine, engine_options
from cbir_faiss.cli.printing import Bar, aside, say, say_json


@click.command()
@click.argument("data", required=False, metavar="[CONFIG|COLLECTION|BACKEND]")
@engine_options
@click.option(
    "--vectors",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Vectors in place of a config: .npy.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    help="What is to be reached, such as 'knn_recall@10 >= 0.95' or 'map@5 >= raw - 0.01'; may be given again.",
)
@click.option("--max-bytes", type=click.FloatRange(0, min_open=True), help="Bytes of memory an item.")
@click.option("--max-disk-bytes", type=click.FloatRange(0, min_open=True), help="Bytes on the disk an item.")
@click.option("--max-ms", type=click.FloatRange(0, min_open=True), help="Milliseconds a query, on one thread.")
@click.option("--items", type=click.IntRange(1), help="Predict to so many items, too.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=10, show_default=True, help="When to stop.")
@click.option("--minimise", type=click.Choice(["bytes", "latency"]), default="bytes", show_default=True)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "l2", "ip"]),
    help="By what vectors are compared; without: as the config (metrics.truth.metric), the collection or the engine "
    "does, else cosine.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("tuned.yaml"),
    show_default=True,
    help="The config to write; the report stands beside it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def tune(
    data: str | None,
    options: tuple[str, ...],
    vectors: Path | None,
    targets: tuple[str, ...],
    as_json: bool,
    out: Path,
    **how: Any,
) -> None:
    """Find the cheapest index that reaches the targets on your data, and write the config that builds it.

    CONFIG names a source; codecs, backends and rescorers in it narrow what is tried. An engine is read, into a copy
    beside the config that is written, and not changed. Started again after being stopped, it goes on where it was.
    Where no index reaches the targets the status is 1, and what comes nearest is said.

    \b
    cbir tune photos.yaml --target 'knn_recall@10 >= 0.95'
    cbir tune photos.yaml --target 'map@5 >= raw - 0.01' --max-ms 1 --minimise latency
    cbir tune --vectors features.npy --target 'knn_recall@10 >= 0.9' --items 10000000
    cbir tune qdrant url=http://localhost:6333 collection=photos --target 'knn_recall@10 >= 0.95'
    """
    from cbir_faiss.tuning.tune import tune as run

    if (data is None) == (vectors is None):
        raise click.UsageError("give a config, a collection or an engine, or --vectors")
    given = vectors if data is None else data_or_engine(data, options)
    with Bar("extracting") as bar:
        assert given is not None
        found = run(given, list(targets), out=out, progress=bar.progress, note=bar.note or _silent, **how)
    if as_json:
        say_json(found.as_json())
    else:
        say(found.why)
        for line in _prediction(found.predicted):
            say(line)
        if found.met:
            say(f"\n{out}: cbir build {out}")
        say(out.with_suffix(".html"))
    if found.environment.get("busy"):
        aside(f"measured beside other work ({found.environment['busy_cores']:.1f} cores busy): times are too high")
    if not found.met:
        raise click.exceptions.Exit(1)


def _silent(text: str) -> None:
    """Nobody is watching."""


def _prediction(predicted: Any) -> list[str]:
    if not predicted:
        return []
    recalls = [
        f"{name} {value['value']:.3f} ({value['ci95'][0]:.3f}–{value['ci95'][1]:.3f})"
        for name, value in predicted.items()
        if "@" in name
    ]
    ms = [] if predicted["p50_ms"] is None else [f"{predicted['p50_ms']:.2f} ms a query"]
    size, build = f"{predicted['bytes_per_item']:,.1f} bytes an item", f"{predicted['build_seconds']:,.0f} s to build"
    return [f"Among {predicted['items']:,} items: {', '.join([*recalls, size, *ms, build])}"]
