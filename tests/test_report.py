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
from _rows import comparison

from cbir_faiss.comparison.gallery import make_gallery
from cbir_faiss.comparison.split import splits
from cbir_faiss.config import load_config
from cbir_faiss.errors import CorruptCollection
from cbir_faiss.measures.metrics import MEASURES, WHOLE
from cbir_faiss.report.report import write_report
from cbir_faiss.report.row import Row, name_of
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


def test_the_gallery_shows_the_recommended_row(pictures: Path, tmp_path: Path) -> None:
    (pictures.parent / "c.yaml").write_text(CONFIG)
    config = load_config(pictures.parent / "c.yaml")
    rows = comparison(config, tmp_path / "out")
    (split,) = splits(config, None)

    def shown(recommended: Row | None) -> str:
        gallery = make_gallery(split, rows, tmp_path / "out", recommended)
        assert gallery is not None
        assert gallery["names"][0] == name_of(rows[0])
        return str(gallery["names"][1])

    assert shown(rows[1]) == name_of(rows[1])
    best = max(rows[1:], key=lambda row: row.metrics["map@5"])
    assert shown(None) == shown(rows[0]) == name_of(best)
    best.supervised = True
    assert shown(None) != name_of(best)
    rows[0].raw = None
    assert make_gallery(split, rows, tmp_path / "out") is None


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
