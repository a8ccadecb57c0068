"""The tables and charts of docs/, made from stored results.

    python benchmarks/tables.py --keep runs/caltech101 caltech101     store a comparison under benchmarks/results/
    python benchmarks/tables.py                                       write every table and chart of docs/ again
    python benchmarks/tables.py --check                               fail where one is not what its results say

A document asks for a table with a comment, and what follows it up to ``<!-- end -->`` is written here:

    <!-- table: caltech101 title=mobilenet_v2 codec=itq -->     one line a row of the comparison, filtered by key=value;
                                                                memory and disk an item where the rows have them
    <!-- pivot: codes-caltech101 rescore=none -->               kinds of code down, bits across, the main measure
    <!-- columns: zeng2019 title,bits,map@9000 codec=sign -->   chosen columns of a comparison's rows, filtered likewise
    <!-- chart: codes-caltech101 rescore=none -->               the main measure against bits, as docs/img/….svg
    <!-- curve: varga2016 rescore.t map_full@100,map_full@5 --> measures against an option, as docs/img/….svg
    <!-- curves: zeng2019 pr title=wide,csq -->                the stored curves of rows: pr, map_k (kept with --curves)
    <!-- engines: backends -->                                  with bytes on disk and in memory, and build time
    <!-- quantized: quantization -->                            recall by codec and oversampling
    <!-- values: build million-itq-256 "of the rate in memory" -->    chosen single figures of a benchmark
    <!-- figures: search "two-stage x" stage,recall,ms -->      chosen columns of a benchmark's rows, or "section/list"
    <!-- front: cifar10 96 -->                                  of peers, within so many bytes an item ("any"): what
                                                                nothing beats in recall and latency; what was built
                                                                with fewer items apart
    <!-- verdict: cifar10 32,96,any -->                         within each of these, where a peer is better than ours
    <!-- absent: -->                                            what could not run, and why; what was not measured
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

from _peers import PEERS
from _report import RESULTS

from cbir_faiss.report.charts import family_of, lines_of, measure_against_bits
from cbir_faiss.report.row import Row, bytes_per_item, knn_measure, main_measure, name_of
from cbir_faiss.report.table import few_bytes

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(
    r"<!-- (table|pivot|columns|chart|curves|curve|engines|quantized|figures|values|front|verdict|absent)"
    r":(.*?) -->\n.*?<!-- end -->",
    re.DOTALL,
)
TOTALS = (("disk", "backend_file"), ("memory", "resident"))
HEAVY = ("curves", "raw", "codes", "failed", "classes", "worst")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", nargs=2, metavar=("FOLDER", "NAME"), help="store the results of a comparison")
    parser.add_argument("--curves", action="store_true", help="with --keep: the curves of each row, too")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a document is out of date")
    chosen = parser.parse_args()
    if chosen.keep:
        keep(Path(chosen.keep[0]), chosen.keep[1], curves=chosen.curves)
        return
    stale = [path for path in sorted(DOCS.glob("*.md")) if renew(path, check=chosen.check)]
    if chosen.check and stale:
        sys.exit(f"out of date: {', '.join(path.name for path in stale)}; run: python benchmarks/tables.py")


def keep(folder: Path, name: str, *, curves: bool = False) -> None:
    """Store rows, environment and recommendation of a finished comparison, without raw neighbours."""
    results = json.loads((folder / "results.json").read_text())
    left_out = set(HEAVY) - ({"curves"} if curves else set())
    rows = [{key: value for key, value in row.items() if key not in left_out} for row in results["rows"]]
    kept = {"environment": results["environment"], "rows": rows, "skipped": results["skipped"]}
    kept["recommendation"] = results.get("recommendation")
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
    kind, what = found.group(1), found.group(2).strip()
    body = MAKERS[kind](shlex.split(what))
    return f"<!-- {f'{kind}: {what}'.strip()} -->\n{body}\n<!-- end -->"


def _chosen(words: Sequence[str]) -> list[Row]:
    rows = json.loads((RESULTS / f"compare-{words[0]}.json").read_text())["rows"]
    for word in words[1:]:
        key, value = word.split("=", 1)
        rows = [row for row in rows if str(row[key]) in value.split(",")]
    return [Row.from_json(row) for row in rows]


def table(words: Sequence[str]) -> str:
    rows = _chosen(words)
    measure, knn = main_measure(rows), knn_measure(rows)
    # Rows of earlier versions know the bytes of their codes alone.
    whole = [where for where in ("memory", "disk") if any(row.bytes[f"{where}_per_item"] is not None for row in rows)]
    sizes = [f"{where} an item" for where in whole] or ["bytes an item"]
    head = ["combination", *sizes, measure, "95 %", "worst–best", "as returned", knn, "ms a query (p50)"]
    return _markdown(head, [[name_of(row), *_an_item(row, whole), *_line(row, measure, knn)] for row in rows])


def _an_item(row: Row, whole: Sequence[str]) -> list[str]:
    sizes = [row.bytes[f"{where}_per_item"] for where in whole]
    return ["–" if size is None else few_bytes(size) for size in sizes] or [f"{bytes_per_item(row):,.0f}"]


def _line(row: Row, measure: str, knn: str) -> list[str]:
    m = row.metrics
    low, high = m[f"{measure}_min"], m[f"{measure}_max"]
    interval = m[f"{measure}_ci95"]
    return [
        f"{m[measure]:.4f}",
        f"{interval[0]:.3f}–{interval[1]:.3f}",
        "–" if low is None else f"{low:.3f}–{high:.3f}",
        f"{m[f'{measure}_observed']:.4f}",
        f"{m[knn]:.3f}",
        f"{row.latency_ms['p50']:.2f}",
    ]


def engines(words: Sequence[str]) -> str:
    rows = _chosen(words)
    measure = main_measure(rows)
    knn = knn_measure(rows)
    head = ["combination", measure, knn, "p50 ms", "p95 ms", "p99 ms", "QPS", "disk", "memory", "build s"]
    lines = []
    for row in rows:
        times = [f"{row.latency_ms[p]:.2f}" for p in ("p50", "p95", "p99")]
        # The whole index where the row knows it; rows of earlier versions have the engine's part.
        sizes = [_size(row.bytes[all_of] or row.bytes[part]) for all_of, part in TOTALS]
        measures = [f"{row.metrics[measure]:.4f}", f"{row.metrics[knn]:.3f}"]
        lines.append([name_of(row), *measures, *times, f"{row.qps:,.0f}", *sizes, f"{row.seconds['build']:.2f}"])
    return _markdown(head, lines)


def quantized(words: Sequence[str]) -> str:
    rows = _chosen(words)
    knn = knn_measure(rows)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        options = row.options
        line = found.setdefault((options["backend"]["query_encoding"], f"{options['search']['oversampling']:g}"), {})
        line[row.codec] = f"{row.metrics[knn]:.3f}"
    codecs = list(dict.fromkeys(row.codec for row in rows))
    head = ["query encoding", "oversampling", *(f"{knn}, {codec}" for codec in codecs)]
    return _markdown(head, [[*key, *(line[codec] for codec in codecs)] for key, line in found.items()])


def _size(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:,.2f} MB"


def columns(words: Sequence[str]) -> str:
    name, chosen, *filters = words
    names = chosen.split(",")
    return _markdown(names, [[_cell(row, column) for column in names] for row in _chosen([name, *filters])])


def _cell(row: Row, column: str) -> str:
    """A column of the row, one of its measures (with its interval as ``measure±``), or what is derived of it."""
    if column == "combination":
        return name_of(row)
    if column == "bytes an item":
        return f"{bytes_per_item(row):,.0f}"
    if column == "index MB":
        return f"{(row.bytes['backend_file'] + row.bytes['codec_state']) / 1e6:,.2f}"
    if column.endswith("±"):
        low, high = row.metrics[f"{column[:-1]}_ci95"]
        return f"{low:.3f}–{high:.3f}"
    value = row.metrics.get(column, getattr(row, column, None))
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def curve(words: Sequence[str]) -> str:
    name, option, measures, *filters = words
    part, key = option.split(".")
    rows = [row for row in _chosen([name, *filters]) if key in row.options[part]]
    points = sorted(rows, key=lambda row: row.options[part][key])
    values = [row.options[part][key] for row in points]
    lines = [(measure, values, [row.metrics[measure] for row in points]) for measure in measures.split(",")]
    return _picture(words, lines_of(lines, key, "map"))


AXES = {"pr": ("recall", "precision"), "map_k": ("k", "map@k")}


def curves(words: Sequence[str]) -> str:
    name, kind, *filters = words
    rows = [row for row in _chosen([name, *filters]) if row.curves.get(kind)]
    several = len({row.title for row in rows}) > 1
    lines = []
    for row in rows:
        xs, ys = zip(*row.curves[kind], strict=True)
        lines.append((f"{row.title}, {name_of(row)}" if several else name_of(row), list(xs), list(ys)))
    return _picture(words, lines_of(lines, *AXES[kind]))


def pivot(words: Sequence[str]) -> str:
    rows = [row for row in _chosen(words) if row.bits]
    measure = main_measure(rows)
    bits = sorted({row.bits for row in rows if row.bits})
    families: dict[str, dict[int, str]] = {}
    for row in rows:
        name = family_of(row) if len({row.backend for row in rows}) > 1 else family_of(row).split(",")[0]
        name = f"{row.title}, {name}" if len({row.title for row in rows}) > 1 else name
        families.setdefault(name, {})[row.bits or 0] = f"{row.metrics[measure]:.4f}"
    return _markdown(
        [measure, *map(str, bits)], [[name, *(line.get(b, "") for b in bits)] for name, line in families.items()]
    )


def chart(words: Sequence[str]) -> str:
    return _picture(words, measure_against_bits(_chosen(words)))


def _picture(words: Sequence[str], svg: str) -> str:
    name = re.sub(r"[^\w]+", "-", " ".join(words)) + ".svg"
    (DOCS / "img").mkdir(exist_ok=True)
    (DOCS / "img" / name).write_text(svg.replace("<svg ", '<svg width="720" height="460" ', 1))
    return f"![{' '.join(words)}](img/{name})"


def figures(words: Sequence[str]) -> str:
    name, place, columns = words
    section, _, part = place.partition("/")
    rows = json.loads((RESULTS / f"{name}.json").read_text())[section][part or "rows"]
    head = columns.split(",")
    return _markdown([c.replace("_", " ") for c in head], [[_text(row.get(c, "")) for c in head] for row in rows])


def values(words: Sequence[str]) -> str:
    section = json.loads((RESULTS / f"{words[0]}.json").read_text())[words[1]]
    found = {**section, **section.get("images_per_second", {})}
    shown = {name: statistics.median(v) if isinstance(v := found[name], list) else v for name in words[2:]}
    return _markdown(["figure", ""], [[name.replace("_", " "), _text(value)] for name, value in shown.items()])


NOT_YET = "Not measured yet: `python benchmarks/peers.py`."


def _stored() -> dict[str, list[dict[str, Any]]]:
    path = RESULTS / "peers.json"
    return json.loads(path.read_text()) if path.exists() else {"rows": [], "absent": []}


def _peers(data: str, budget: str) -> dict[int, list[dict[str, Any]]]:
    """Rows of other libraries and ours over a data set, within so many growing bytes an item, by how many items were
    put in: first those of all items, of which there may be none so small."""
    rows = _of_one_machine([row for row in _stored()["rows"] if row["data"] == data])
    most = float("inf") if budget == "any" else float(budget)
    small = [row for row in rows if row["growing_bytes"] <= most]
    counts = sorted({row["items"] for row in rows}, reverse=True)
    return {items: [row for row in small if row["items"] == items] for items in counts}


def _of_one_machine(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the machine that measured last: the times of another say nothing beside them."""

    def machine(row: dict[str, Any]) -> Any:
        run = row.get("run", {})
        return run.get("cpu"), run.get("cores")

    last = max(rows, key=lambda row: row.get("run", {}).get("date", ""), default=None)
    return [row for row in rows if last is not None and machine(row) == machine(last)]


def _front(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows, quickest first, each of which finds more than every one before it."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["p50_ms"], -row["recall@10"])):
        if not front or row["recall@10"] > front[-1]["recall@10"]:
            front.append(row)
    return front


def front(words: Sequence[str]) -> str:
    found = _peers(*words)
    parts: list[str] = []
    for items, rows in found.items():
        if rows:
            fewer = f"With {items:,} items, of what takes too long to build with all:"
            parts += [_front_table(rows)] if items == max(found) else [fewer, _front_table(rows)]
    return "\n\n".join(parts) or NOT_YET


def _front_table(rows: Sequence[dict[str, Any]]) -> str:
    names = ["items", "recall@10", "p50 ms", "p99 ms", "QPS", "growing bytes", "total bytes", "build s"]
    lines = []
    for row in _front(rows):
        name = f"**{row['peer']}**" if row["peer"].startswith("cbir") else f"{row['peer']} {row['version']}"
        figures = [f"{row['recall@10']:.3f}", f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}", f"{row['qps']:,.0f}"]
        sizes = [f"{row['growing_bytes']:,.0f}", f"{row['total_bytes']:,.0f}", f"{row['build_s']:,.1f}"]
        lines.append([name, _settings(row["settings"]), f"{row['items']:,}", *figures, *sizes])
    return _markdown(["library", "settings", *names], lines)


def verdict(words: Sequence[str]) -> str:
    data, budgets = words
    whole = ((budget, next(iter(_peers(data, budget).values()), [])) for budget in budgets.split(","))
    return "\n".join(_verdict(budget, rows) for budget, rows in whole if rows) or NOT_YET


def _verdict(budget: str, rows: Sequence[dict[str, Any]]) -> str:
    found = _front(rows)
    theirs = [row for row in found if not row["peer"].startswith("cbir")]
    within = "With any number of bytes" if budget == "any" else f"Up to {budget} bytes an item"
    ahead = [f"{row['peer']} ({row['recall@10']:.3f} in {row['p50_ms']:.3f} ms)" for row in theirs]
    said = f"{len(found) - len(theirs)} of the {len(found)} points of the front are ours"
    return f"- {within} {said}" + (f"; a peer is better at: {', '.join(ahead)}." if ahead else ".")


def absent(words: Sequence[str]) -> str:
    stored, reasons = _stored(), dict[tuple[str, str], list[str]]()
    measured = {row["data"] for row in stored["rows"]}
    shown = [row for data in measured for rows in _peers(data, "any").values() for row in rows]
    for entry in stored["absent"]:
        where = f"{entry['data']} {_settings(entry['settings'])}".strip()
        reasons.setdefault((entry["peer"], entry["reason"]), []).append(where)
    lines = [f"- {peer}, {'; '.join(where)}: {reason}" for (peer, reason), where in reasons.items()]
    known = {entry["peer"].split()[0] for entry in (*shown, *stored["absent"])}
    lines += [f"- {peer}: not measured on this machine" for peer in PEERS if peer not in known]
    return "\n".join(lines) or "Nothing."


def _settings(settings: dict[str, Any]) -> str:
    parts = []
    for key, value in settings.items():
        if isinstance(value, dict):  # a plugin with its options
            parts.append(" ".join([value["name"], *(f"{k}={v}" for k, v in value.items() if k != "name")]))
        else:
            parts.append(f"{key}={value}")
    return ", ".join(parts)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:,.4g}"
    return str(value)


MAKERS: dict[str, Callable[[Sequence[str]], str]] = {
    "table": table,
    "pivot": pivot,
    "columns": columns,
    "chart": chart,
    "curve": curve,
    "curves": curves,
    "engines": engines,
    "quantized": quantized,
    "figures": figures,
    "values": values,
    "front": front,
    "verdict": verdict,
    "absent": absent,
}

if __name__ == "__main__":
    main()
