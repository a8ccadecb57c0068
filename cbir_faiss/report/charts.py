"""The report's charts as inline SVG, with real text, drawn by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cbir_faiss.report.row import Row, bytes_per_item, in_short, is_reference, main_measure, name_of, rescoring_of

# Okabe and Ito's palette: told apart by people with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
MARKERS = "osD^vPX*"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cbir",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
Series = tuple[str, list[float], list[float]]


def measure_against_bits(rows: Sequence[Row]) -> str:
    """The main measure of each kind of code against its length, raw floats as a line."""
    measure = main_measure(rows)
    binary = [row for row in rows if row.bits]

    def draw(axes: Axes) -> None:
        for row in rows:
            if is_reference(row):
                label = name_of(row)
                axes.axhline(row.metrics[measure], color="#4D4D4D", linestyle="--", linewidth=1.2, label=label)
        _lines(axes, _grouped(binary, family_of, lambda row: (row.bits or 0, row.metrics[measure])), _styles(rows))
        axes.set_xscale("log", base=2)
        lengths = sorted({row.bits or 0 for row in binary})
        ticks = [bits for bits in lengths if bits & (bits - 1) == 0] or lengths  # 504 beside 512 cannot be read
        axes.set_xticks(
            ticks, [str(bits) for bits in ticks], minor=False, fontsize=8, rotation=45 if len(ticks) > 9 else 0
        )
        axes.minorticks_off()
        axes.set_xlabel("bits")
        axes.set_ylabel(measure)

    return _svg(draw) if binary else ""


def measure_against_bytes(rows: Sequence[Row]) -> str:
    """The main measure against an item's memory in the whole index; where no row knows it, against its code."""
    measure = main_measure(rows)
    known = [row for row in rows if row.bytes.get("memory_per_item")]

    def point(row: Row) -> tuple[float, float]:
        return row.bytes["memory_per_item"] if known else bytes_per_item(row), row.metrics[measure]

    def draw(axes: Axes) -> None:
        _lines(axes, _grouped(known or rows, family_of, point), _styles(rows))
        axes.set_xscale("log")
        axes.set_xlabel("bytes an item in memory, the whole index" if known else "bytes of code an item")
        axes.set_ylabel(measure)

    return _svg(draw)


def measure_against_latency(rows: Sequence[Row]) -> str:
    """The main measure against the median time of one query."""
    measure = main_measure(rows)

    def draw(axes: Axes) -> None:
        points = _grouped(rows, family_of, lambda row: (row.latency_ms["p50"], row.metrics[measure]))
        _lines(axes, points, _styles(rows), line="None")
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds a query, from embedding to hits (median)")
        axes.set_ylabel(measure)

    return _svg(draw)


def precision_recall(rows: Sequence[Row]) -> str:
    """Precision against recall over the full ranking, for the rows whose full ranking is known."""
    chosen = [row for row in _representative(rows) if row.curves.get("pr")]

    def draw(axes: Axes) -> None:
        _lines(axes, [(name_of(row), *_points(row.curves["pr"])) for row in chosen], marker=False)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")

    return _svg(draw) if chosen else ""


def map_against_k(rows: Sequence[Row]) -> str:
    """map@k against k."""
    chosen = [row for row in _representative(rows) if row.curves.get("map_k")]

    def draw(axes: Axes) -> None:
        _lines(axes, [(name_of(row), *_points(row.curves["map_k"])) for row in chosen], marker=False)
        axes.set_xlabel("k")
        axes.set_ylabel("map@k")

    return _svg(draw) if chosen else ""


def precision_in_radius(rows: Sequence[Row]) -> str:
    """Precision within a Hamming radius, a query with an empty ball counting as 0."""
    chosen = [row for row in rows if row.curves.get("radius") and row.rescore == "none"][: len(COLOURS)]

    def draw(axes: Axes) -> None:
        _lines(axes, [(name_of(row), *_points(row.curves["radius"])) for row in chosen], marker=False)
        axes.set_xlabel("Hamming radius as a share of the bits")
        axes.set_ylabel("precision within the radius")

    return _svg(draw) if chosen else ""


def lines_of(series: Sequence[Series], x: str, y: str) -> str:
    """Any curves, with the names of the axes."""

    def draw(axes: Axes) -> None:
        _lines(axes, series, marker=max(len(xs) for _, xs, _ in series) < 30)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return _svg(draw)


def points_of(series: Sequence[Series], x: str, y: str, line: Series | None = None) -> str:
    """Any points over a logarithmic axis, and a line through some of them, with the names of the axes."""

    def draw(axes: Axes) -> None:
        _lines(axes, series, line="None")
        if line is not None:
            axes.plot(line[1], line[2], color="#4D4D4D", linewidth=1.0, label=line[0], zorder=0)
        axes.set_xscale("log")
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return _svg(draw)


def _representative(rows: Sequence[Row]) -> list[Row]:
    """Raw, and of each kind of code the shortest, a middle and the longest: a chart of everything shows nothing."""
    chosen = [row for row in rows if is_reference(row)][:1]
    families: dict[str, list[Row]] = {}
    for row in rows:
        if row.bits and row.rescore == "none" and row.codec != "raw":
            families.setdefault(family_of(row), []).append(row)
    for members in families.values():
        members.sort(key=lambda row: row.bits or 0)
        chosen += [members[i] for i in sorted({0, len(members) // 2, len(members) - 1})]
    return chosen[: len(COLOURS)]


def family_of(row: Row) -> str:
    """The kind of code, whatever its length: what is drawn as one line."""
    options = row.options
    chosen = {k: v for k, v in options["codec"].items() if k in ("projection", "at", "rotation")}
    if row.codec in ("sign", "sigmoid-mean"):
        chosen["center"] = "centred" if options["codec"].get("center") else ""
    variant = " ".join(in_short(v) for v in (chosen | row.apart.get("codec", {})).values())
    rescore = "" if row.rescore == "none" else f" + {rescoring_of(row)}"
    return f"{row.codec} {variant}".strip() + f", {options['backend'].get('factory') or row.backend}{rescore}"


def _grouped(
    rows: Sequence[Row], key: Callable[[Row], str], point: Callable[[Row], tuple[float, float]]
) -> list[Series]:
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(point(row))
    return [(name, *_points(sorted(points))) for name, points in groups.items()]


def _points(pairs: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _styles(rows: Sequence[Row]) -> dict[str, int]:
    """A number for the colour and marker of each kind of code, the same in every chart of these rows."""
    return {name: i for i, name in enumerate(dict.fromkeys(family_of(row) for row in rows))}


def _lines(
    axes: Axes, series: Sequence[Series], styles: dict[str, int] | None = None, *, line: str = "-", marker: bool = True
) -> None:
    for number, (name, x, y) in enumerate(series):
        i = number if styles is None else styles[name]
        axes.plot(
            x,
            y,
            linestyle=line,
            label=name,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)] if marker else None,
            markersize=5,
            linewidth=1.6,
            alpha=0.9,
        )


def _svg(draw: Callable[[Axes], None]) -> str:
    with _style():
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        if axes.get_legend_handles_labels()[1]:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg, count=1)


@contextmanager
def _style() -> Iterator[Any]:
    with mpl.rc_context(STYLE):
        yield
