"""The tables and charts of docs/, made from stored results.

    python benchmarks/tables.py --keep runs/caltech101 caltech101     store a comparison under benchmarks/results/
    python benchmarks/tables.py                                       write every table and chart of docs/ again
    python benchmarks/tables.py --check                               fail where one is not what its results say

A document asks for a table with a comment, and what follows it up to ``<!-- end -->`` is written here:

    <!-- table: caltech101 title=mobilenet_v2 codec=itq -->     one line a row of the comparison, filtered by key=value
    <!-- pivot: codes-caltech101 rescore=none -->               kinds of code down, bits across, the main measure
    <!-- chart: codes-caltech101 rescore=none -->               the main measure against bits, as docs/img/….svg
    <!-- engines: backends -->                                  with bytes on disk and in memory, and build time
    <!-- quantized: quantization -->                            recall by codec and oversampling
    <!-- values: build million-itq-256 "of the rate in memory" -->    chosen single figures of a benchmark
    <!-- figures: search "two-stage x" stage,recall,ms -->      chosen columns of a benchmark's rows
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _report import RESULTS

from cbir_faiss.evaluate.charts import family_of, measure_against_bits
from cbir_faiss.evaluate.recommend import Row, bytes_per_item, main_measure, name_of

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"<!-- (table|pivot|chart|engines|quantized|figures|values): (.*?) -->\n.*?<!-- end -->", re.DOTALL)
HEAVY = ("curves", "raw", "codes", "failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", nargs=2, metavar=("FOLDER", "NAME"), help="store the results of a comparison")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a document is out of date")
    chosen = parser.parse_args()
    if chosen.keep:
        keep(Path(chosen.keep[0]), chosen.keep[1])
        return
    stale = [path for path in sorted(DOCS.glob("*.md")) if renew(path, check=chosen.check)]
    if chosen.check and stale:
        sys.exit(f"out of date: {', '.join(path.name for path in stale)}; run: python benchmarks/tables.py")


def keep(folder: Path, name: str) -> None:
    """Store rows and environment of a finished comparison, without curves and raw neighbours."""
    results = json.loads((folder / "results.json").read_text())
    rows = [{key: value for key, value in row.items() if key not in HEAVY} for row in results["rows"]]
    kept = {"environment": results["environment"], "rows": rows, "skipped": results["skipped"]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"compare-{name}.json").write_text(
        json.dumps(kept, sort_keys=True).replace('{"backend"', '\n{"backend"') + "\n"
    )


def renew(path: Path, *, check: bool) -> bool:
    """Write the blocks of a document again; whether that changed it."""
    before = path.read_text(encoding="utf-8")
    after = BLOCK.sub(_block, before)
    if after != before and not check:
        path.write_text(after, encoding="utf-8")
    return after != before


def _block(found: re.Match[str]) -> str:
    kind, what = found.group(1), found.group(2)
    body = MAKERS[kind](shlex.split(what))
    return f"<!-- {kind}: {what} -->\n{body}\n<!-- end -->"


def _chosen(words: Sequence[str]) -> list[Row]:
    rows: list[Row] = json.loads((RESULTS / f"compare-{words[0]}.json").read_text())["rows"]
    for word in words[1:]:
        key, value = word.split("=", 1)
        rows = [row for row in rows if str(row[key]) in value.split(",")]
    return rows


def table(words: Sequence[str]) -> str:
    rows = _chosen(words)
    measure = main_measure(rows)
    knn = next(name for name in rows[0]["metrics"] if name.startswith("knn_recall"))
    head = ["combination", "bytes an item", measure, "95 %", "worst–best", "as returned", knn, "ms a query (p50)"]
    return _markdown(head, [_line(row, measure, knn) for row in rows])


def _line(row: Row, measure: str, knn: str) -> list[str]:
    m = row["metrics"]
    low, high = m[f"{measure}_min"], m[f"{measure}_max"]
    interval = m[f"{measure}_ci95"]
    return [
        name_of(row),
        f"{bytes_per_item(row):,.0f}",
        f"{m[measure]:.4f}",
        f"{interval[0]:.3f}–{interval[1]:.3f}",
        "–" if low is None else f"{low:.3f}–{high:.3f}",
        f"{m[f'{measure}_observed']:.4f}",
        f"{m[knn]:.3f}",
        f"{row['latency_ms']['p50']:.2f}",
    ]


def engines(words: Sequence[str]) -> str:
    rows = _chosen(words)
    measure = main_measure(rows)
    knn = next(name for name in rows[0]["metrics"] if name.startswith("knn_recall"))
    head = ["combination", measure, knn, "p50 ms", "p95 ms", "p99 ms", "QPS", "disk", "memory", "build s"]
    lines = []
    for row in rows:
        times = [f"{row['latency_ms'][p]:.2f}" for p in ("p50", "p95", "p99")]
        sizes = [_size(row["bytes"][where]) for where in ("backend_file", "resident")]
        measures = [f"{row['metrics'][measure]:.4f}", f"{row['metrics'][knn]:.3f}"]
        lines.append([name_of(row), *measures, *times, f"{row['qps']:,.0f}", *sizes, f"{row['seconds']['build']:.2f}"])
    return _markdown(head, lines)


def quantized(words: Sequence[str]) -> str:
    rows = _chosen(words)
    knn = next(name for name in rows[0]["metrics"] if name.startswith("knn_recall"))
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        options = row["options"]
        line = found.setdefault((options["backend"]["query_encoding"], f"{options['search']['oversampling']:g}"), {})
        line[row["codec"]] = f"{row['metrics'][knn]:.3f}"
    codecs = list(dict.fromkeys(row["codec"] for row in rows))
    head = ["query encoding", "oversampling", *(f"{knn}, {codec}" for codec in codecs)]
    return _markdown(head, [[*key, *(line[codec] for codec in codecs)] for key, line in found.items()])


def _size(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:,.2f} MB"


def pivot(words: Sequence[str]) -> str:
    rows = [row for row in _chosen(words) if row["bits"]]
    measure = main_measure(rows)
    bits = sorted({row["bits"] for row in rows})
    families: dict[str, dict[int, str]] = {}
    for row in rows:
        name = family_of(row) if len({row["backend"] for row in rows}) > 1 else family_of(row).split(",")[0]
        families.setdefault(name, {})[row["bits"]] = f"{row['metrics'][measure]:.4f}"
    return _markdown(
        [measure, *map(str, bits)], [[name, *(line.get(b, "") for b in bits)] for name, line in families.items()]
    )


def chart(words: Sequence[str]) -> str:
    name = re.sub(r"[^\w]+", "-", " ".join(words)) + ".svg"
    (DOCS / "img").mkdir(exist_ok=True)
    (DOCS / "img" / name).write_text(
        measure_against_bits(_chosen(words)).replace("<svg ", '<svg width="720" height="460" ', 1)
    )
    return f"![{' '.join(words)}](img/{name})"


def figures(words: Sequence[str]) -> str:
    name, section, columns = words
    rows = json.loads((RESULTS / f"{name}.json").read_text())[section]["rows"]
    head = columns.split(",")
    return _markdown([c.replace("_", " ") for c in head], [[_text(row.get(c, "")) for c in head] for row in rows])


def values(words: Sequence[str]) -> str:
    section = json.loads((RESULTS / f"{words[0]}.json").read_text())[words[1]]
    found = {**section, **section.get("images_per_second", {})}
    shown = {name: statistics.median(v) if isinstance(v := found[name], list) else v for name in words[2:]}
    return _markdown(["figure", ""], [[name.replace("_", " "), _text(value)] for name, value in shown.items()])


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:,.4g}"
    return str(value)


MAKERS: dict[str, Callable[[Sequence[str]], str]] = {
    "table": table,
    "pivot": pivot,
    "chart": chart,
    "engines": engines,
    "quantized": quantized,
    "figures": figures,
    "values": values,
}

if __name__ == "__main__":
    main()
