"""The report: self-contained, sortable, honest about what was left out; looked at in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _rows import comparison, made_up
from _rows import raw as made_row
from click.testing import CliRunner

from cbir_faiss.cli import main
from cbir_faiss.config import load_config
from cbir_faiss.errors import CorruptCollection, InputError
from cbir_faiss.measures.metrics import MEASURES, WHOLE
from cbir_faiss.report.gallery import galleries_of, two_rows
from cbir_faiss.report.report import write_report
from cbir_faiss.report.row import Row, name_of, rows_of
from cbir_faiss.report.table import COLUMNS, DETAILS

CONFIG = """\
source: {name: folder, root: pictures}
queries: {every: 4}
extractors: [{name: hog, size: 32}]
codecs: [{name: raw}, {name: lsh, bits: [16, 64, 256]}]
backends: [{name: faiss-flat}, {name: faiss-binary-flat}]
metrics: {k: [1, 5]}
"""
OLD = Path(__file__).parents[1] / "benchmarks" / "results" / "compare-tran2023.json"


@pytest.fixture
def finished(pictures: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison and its report: a copy of what is made once."""
    kept = tmp_path_factory.getbasetemp() / "finished-once"
    if not (kept / "report.html").exists():
        (pictures.parent / "c.yaml").write_text(CONFIG)
        (pictures / "blob" / "<b>bad.png").write_bytes(b"")
        comparison(load_config(pictures.parent / "c.yaml"), kept)
        write_report(kept)
    return Path(shutil.copytree(kept, tmp_path / "out"))


@pytest.fixture
def uncharted(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for tests that are not about charts, which are most of the work."""
    monkeypatch.setattr("cbir_faiss.report.charts._svg", lambda draw: "<svg></svg>")
    return finished


def changed(folder: Path, **changes: Any) -> str:
    """The page of a folder after its results were changed."""
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return write_report(folder).read_text()


def test_the_report_needs_nothing_from_anywhere(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "@import" not in page
    assert not re.search(r"<script[^>]+src", page)
    assert page.count("<figure>") >= 5
    assert page.count("data:image/jpeg") > 20
    assert "✓ hit" in page


def test_names_from_outside_are_escaped(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "&lt;b&gt;bad.png" in page
    assert "<b>bad.png" not in page


def test_the_report_is_made_again_from_what_is_stored(finished: Path) -> None:
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    assert write_report(finished).read_text() == before


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(CorruptCollection, match=r"results\.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text('{"rows": []}')
    with pytest.raises(CorruptCollection, match="holds no rows"):
        write_report(tmp_path)


def test_the_recommendation_is_the_one_that_was_stored(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    advice = json.loads((finished / "results.json").read_text())["recommendation"]
    assert advice["sentence"] in html.unescape(page)
    assert page.count('<tr class="chosen">') == 2  # once in each table
    other = {**advice, "row": 2, "sentence": "Use <this>.", "supervised": "Or that."}
    page = changed(finished, recommendation=other)
    assert "Use &lt;this&gt;." in page
    assert "Or that." in page
    assert "lsh 64 bits, faiss-flat ★" in page
    assert "★" not in changed(finished, recommendation=None)


def test_the_page_shows_memory_disk_hits_and_threads(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for column in (*COLUMNS, *DETAILS):
        assert column.head.startswith("{") or f">{column.head}</th>" in page
    assert "(10 hits, 1 thread); QPS is one batch (2 threads)" in page
    assert "bytes an item in memory, the whole index" in page


def test_a_busy_machine_is_told(finished: Path) -> None:
    assert "beside other work" not in (finished / "report.html").read_text()
    environment = json.loads((finished / "results.json").read_text())["environment"]
    page = changed(finished, environment={**environment, "busy": True, "busy_cores": 1.5})
    assert "Measured beside other work (1.5 cores busy): latencies are too high." in page
    assert "Measured beside other work: latencies" in changed(finished, environment={**environment, "busy": True})


def test_results_of_0_1_open_too(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(OLD.read_text())
    page = write_report(tmp_path).read_text()
    assert 'class="advice"' not in page
    assert "bytes of code an item" in page
    assert "from its embedding to its hits; QPS is one batch." in page


def names_shown(page: str) -> list[list[str]]:
    """The names over the pictures of each gallery."""
    heads = re.findall(r'<div class="pair"><b>query</b><b>(.*?)</b><b>(.*?)</b></div>', page)
    return [[html.unescape(name) for name in pair] for pair in heads]


def test_the_gallery_shows_raw_floats_and_the_recommended_row(uncharted: Path) -> None:
    stored = json.loads((uncharted / "results.json").read_text())["rows"]
    rows = rows_of(stored)
    advice = {"sentence": "", "supervised": None}

    def shown(recommendation: Any, rows: list[dict[str, Any]] = stored) -> str:
        ((first, second),) = names_shown(changed(uncharted, recommendation=recommendation, rows=rows))
        assert first == "raw, faiss-flat l2"
        return second

    assert shown({**advice, "row": 1}) == name_of(rows[1])
    best = max(rows[1:], key=lambda row: row.metrics["map@5"])
    assert shown(None) == shown({**advice, "row": 0}) == name_of(best)
    seen = [{**row, "supervised": told is best} for row, told in zip(stored, rows, strict=True)]
    assert shown(None, seen) != name_of(best)


def test_without_raw_floats_the_two_best_rows_are_shown(uncharted: Path) -> None:
    stored = json.loads((uncharted / "results.json").read_text())["rows"][1:]
    page = changed(uncharted, recommendation=None, rows=stored)
    ranked = sorted(rows_of(stored), key=lambda row: (-row.metrics["map@5"], row.bits))
    assert names_shown(page) == [[name_of(row) for row in ranked[:2]]]
    assert page.count("data:image/jpeg") > 20
    assert "Classes and worst queries" in page
    assert page.count("<h3>") == 1, "the worst queries of the best row alone"
    assert f"<th>{ranked[0].title} {name_of(ranked[0])}</th></tr>" in page
    assert names_shown(changed(uncharted, recommendation=None, rows=stored[:1])) == []


def test_any_two_rows_can_be_chosen_by_number_or_name(uncharted: Path) -> None:
    rows = rows_of(json.loads((uncharted / "results.json").read_text())["rows"])
    for chosen in (("4", "2"), (name_of(rows[3]), "2"), (f"{rows[3].title} {name_of(rows[3])} (saw labels)", "2")):
        result = CliRunner().invoke(main, ["report", str(uncharted), "--gallery", *chosen])
        assert result.exit_code == 0, result.output
        assert names_shown((uncharted / "report.html").read_text()) == [[name_of(rows[3]), name_of(rows[1])]]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (("1", "5"), "there is no row '5': give a number from 1 to 4, or a name of the table"),
        (("0", "1"), "there is no row '0'"),
        (("itq 8 bits", "1"), "there is no row 'itq 8 bits'"),
        (("2", "2"), "two different rows are needed, and both are lsh 16 bits"),
    ],
)
def test_rows_that_cannot_be_shown_are_one_line(chosen: tuple[str, str], message: str, uncharted: Path) -> None:
    before = (uncharted / "report.html").read_text()
    result = CliRunner().invoke(main, ["report", str(uncharted), "--gallery", *chosen])
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert result.stderr.startswith(message)
    assert (uncharted / "report.html").read_text() == before


def test_names_of_several_rows_and_rows_without_pictures(uncharted: Path) -> None:
    stored = json.loads((uncharted / "results.json").read_text())["rows"]
    changed(uncharted, rows=[*stored, {**stored[1], "title": "other", "raw": "raw/other.npz"}])
    for chosen, message in (
        ((name_of(rows_of(stored)[1]), "1"), "rows 2, 5 are all called 'lsh 16 bits, faiss-flat': give a number"),
        (("1", "5"), "no pictures of what lsh 16 bits, faiss-flat found are stored"),
    ):
        with pytest.raises(InputError, match=message):
            write_report(uncharted, chosen)


def test_rows_of_two_embeddings_are_shown_by_the_queries_of_both() -> None:
    def stored(title: str, raw: str, queries: list[str]) -> dict[str, Any]:
        found = {raw: [[1, True], [0, False]]}
        asked = [{"path": path, "image": "", "label": "x", "found": found} for path in queries]
        return {"title": title, "pictures": [{"path": f"{title}0"}, {"path": f"{title}1"}], "queries": asked}

    rows = [made_up(title="a", raw="raw/a.npz"), made_up("lsh", title="b", raw="raw/b.npz")]
    kept = [stored("a", "raw/a.npz", ["p", "q"]), stored("b", "raw/b.npz", ["q", "r"])]
    for (shown,) in (galleries_of(kept, rows, chosen=("1", "2")), galleries_of(kept, rows)):
        assert shown["title"] == "a and b"
        assert shown["names"] == ["a itq 64 bits, faiss-flat", "b lsh 64 bits, faiss-flat"]
        (query,) = shown["queries"]
        assert query["path"] == "q"
        assert [[hit["path"] for hit in side] for side in query["found"]] == [["a1", "a0"], ["b1", "b0"]]
        assert [hit["hit"] for hit in query["found"][0]] == [True, False]


def test_the_gallery_of_an_earlier_version_is_shown_as_it_is(uncharted: Path) -> None:
    query = {"image": "", "label": "x", "path": "q.png", "found": [[], []]}
    (uncharted / "gallery.json").write_text(json.dumps([{"title": "t", "names": ["one", "other"], "queries": [query]}]))
    assert names_shown(changed(uncharted)) == [["one", "other"]]


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([made_up("itq", values=0.7), made_up("itq", values=0.8), made_up("lsh", values=0.6)], (1, 2)),
        ([made_up("itq", values=0.7), made_up("itq", values=0.8)], (1, 0)),
        ([made_up("ksh", values=0.9, supervised=True), made_up("itq"), made_up("lsh", values=0.6)], (1, 2)),
        ([made_up("pca", None, values=0.9, backend="faiss-hnsw"), made_up("itq"), made_row()], (2, 1)),
        ([made_up("pca", None, values=0.9, backend="faiss-hnsw"), made_row()], (1, 0)),
    ],
)
def test_which_two_rows_are_shown(rows: list[Row], shown: tuple[int, int]) -> None:
    assert two_rows(rows) == tuple(rows[i] for i in shown)


def test_values_are_those_behind_the_means(pictures: Path, tmp_path: Path) -> None:
    (pictures.parent / "c.yaml").write_text(CONFIG)
    for row in comparison(load_config(pictures.parent / "c.yaml"), tmp_path / "out"):
        names = {f"{name}@{k}" for name in MEASURES for k in (1, 5)} | {"knn_recall@10", *WHOLE}
        assert set(row.values) == names
        for name in names:
            assert row.values[name].shape == (9,)
            assert row.values[name].dtype == np.float64
            assert row.values[name].mean() == pytest.approx(row.metrics[name])


def test_the_report_in_a_browser(finished: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,2000", "--virtual-time-budget=2000"]
    page = (finished / "report.html").absolute()
    sorted_page = tmp_path / "sorted.html"
    place = [column.head for column in COLUMNS].index("memory/item")
    click = f"<script>document.querySelectorAll('table.sortable th')[{place}].click()</script></body>"
    sorted_page.write_text(page.read_text().replace("</body>", click))
    seen = subprocess.run(
        [browser, *flags, "--dump-dom", sorted_page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert 'class="sorted"' in seen
    body = seen[seen.index("<tbody>") : seen.index("</tbody>")]
    sizes = [
        float(re.findall(r"<td[^>]*>", line)[place].split('data-v="')[1].split('"')[0])
        for line in body.split("<tr")[1:]
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 4
