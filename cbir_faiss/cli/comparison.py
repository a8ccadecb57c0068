"""Comparing choices, and writing the report of a comparison again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cbir_faiss.cli._arguments import config_argument, folder_argument
from cbir_faiss.cli.printing import Bar, aside, say, say_failures


@click.command()
@config_argument
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the results. [runs/<config's name>]"
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="How much of the measure the recommended row may lose against raw floats, proven over the same queries.",
)
@click.option("--max-ms", type=click.FloatRange(0, min_open=True), help="Recommend no row that takes longer a query.")
@click.option("--trec", is_flag=True, help="Also write runs and judgements for trec_eval, to DIR/trec.")
@click.option("--hdf5", is_flag=True, help="Also write vectors and exact neighbours for ann-benchmarks, to DIR/hdf5.")
def compare(config: Path, out: Path | None, margin: float, max_ms: float | None, trec: bool, hdf5: bool) -> None:
    """Run every combination of CONFIG; write results and report, print a table and the row to use.

    \b
    cbir compare configs/demo.yaml --out runs/demo
    cbir compare configs/demo.yaml --out runs/demo --margin 0.02 --max-ms 1
    """
    from cbir_faiss.comparison.run import run
    from cbir_faiss.config import load_config
    from cbir_faiss.errors import CbirError
    from cbir_faiss.report.row import rows_of
    from cbir_faiss.report.table import text_table

    out = out or Path("runs", config.stem)
    with Bar("extracting") as bar:
        how: dict[str, Any] = {"margin": margin, "max_ms": max_ms, "trec": trec, "hdf5": hdf5}
        results = run(load_config(config), out, progress=bar.progress, report=bar.note, **how)
    say(text_table(rows_of(results["rows"])))
    for skipped in results["skipped"]:
        aside(f"skipped: {skipped['title']} {skipped['combination']}: {skipped['reason']}")
    say_failures(results["failed"])
    for sentence in results["exports"]:
        aside(sentence)
    advice, where = results["recommendation"], results["environment"]
    for sentence in (advice["sentence"], advice["supervised"]) if advice else ():
        if sentence:
            say(f"\n{sentence}")
    if where["busy"]:
        aside(f"measured beside other work ({where['busy_cores']:.1f} cores busy): latencies are too high")
    say(f"\n{out / 'report.html'}")
    if results["unwritten"]:
        raise CbirError("; ".join(results["unwritten"]))


@click.command()
@folder_argument
@click.option("--rows", nargs=2, type=click.IntRange(1), help="Two lines of the table: print their paired test.")
@click.option(
    "--gallery",
    nargs=2,
    metavar="ROW ROW",
    help="Two rows, by number or name: show the pictures that they found.",
)
def report(folder: Path, rows: tuple[int, int] | None, gallery: tuple[str, str] | None) -> None:
    """Write report.html again from the results stored in FOLDER.

    \b
    cbir report runs/demo
    cbir report runs/demo --rows 1 4
    cbir report runs/demo --gallery 1 "itq 64 bits, faiss-binary-flat"
    """
    from cbir_faiss.report.pairs import in_words
    from cbir_faiss.report.report import read_results, write_report
    from cbir_faiss.report.row import rows_of

    if rows is not None:
        results = read_results(folder)
        told = rows_of(results["rows"])
        first, second = (number - 1 for number in rows)
        say(in_words(told, results.get("differences"), first, second))
        return
    say(write_report(folder, gallery))
