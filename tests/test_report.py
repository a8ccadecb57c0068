"""The report: self-contained, sortable, honest about what was left out; looked at in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cbir_faiss.comparison.run import run
from cbir_faiss.config import load_config
from cbir_faiss.errors import CorruptCollection
from cbir_faiss.report.recommend import recommend
from cbir_faiss.report.report import write_report

CONFIG = """\
source: {name: folder, root: pictures}
queries: {every: 4}
extractors: [{name: hog, size: 32}]
codecs: [{name: raw}, {name: lsh, bits: [16, 64, 256]}]
backends: [{name: faiss-flat}, {name: faiss-binary-flat}]
metrics: {k: [1, 5]}
"""


@pytest.fixture
def finished(pictures: Path, tmp_path: Path) -> Path:
    (pictures.parent / "c.yaml").write_text(CONFIG)
    (pictures / "blob" / "<b>bad.png").write_bytes(b"")
    run(load_config(pictures.parent / "c.yaml"), tmp_path / "out")
    return tmp_path / "out"


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


def row(codec: str, bits: int | None, value: float, codes: int, rescore: int = 0) -> dict[str, object]:
    return {
        "codec": codec, "bits": bits, "backend": "b", "metric": "l2" if bits is None else "hamming", "exact": True,
        "title": "t", "rescore": "float" if rescore else "none", "items": 10,
        "options": {"backend": {}, "search": {}, "rescore": {"candidates": 100}},
        "metrics": {"map@5": value}, "bytes": {"codes": codes, "rescore": rescore}, "latency_ms": {"p50": 1.0},
    }  # fmt: skip


def test_the_smallest_row_that_is_good_enough_is_recommended() -> None:
    rows = [
        row("raw", None, 0.84, 5120),
        row("itq", 64, 0.75, 80),
        row("itq", 256, 0.838, 320),
        row("itq", 512, 0.85, 640),
    ]
    chosen = recommend(rows)
    assert chosen is not None
    assert chosen[0] is rows[2]
    assert "0.838 against 0.840" in chosen[1]


def test_raw_is_kept_where_nothing_smaller_will_do() -> None:
    rows = [row("raw", None, 0.84, 5120), row("itq", 64, 0.75, 80)]
    chosen = recommend(rows)
    assert chosen is not None
    assert chosen[1].startswith("Keep raw floats")
    assert recommend(rows[1:]) is None


def test_the_report_in_a_browser(finished: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,2000", "--virtual-time-budget=2000"]
    page = (finished / "report.html").absolute()
    sorted_page = tmp_path / "sorted.html"
    click = "<script>document.querySelectorAll('#rows th')[8].click()</script></body>"
    sorted_page.write_text(page.read_text().replace("</body>", click))
    seen = subprocess.run(
        [browser, *flags, "--dump-dom", sorted_page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert 'class="sorted"' in seen
    body = seen[seen.index("<tbody>") : seen.index("</tbody>")]
    sizes = [
        float(v) for v in re.findall(r'<td data-v="([\d.]+)">[\d,]+</td><td data-v="[\d.]+">[\d.,]+ [kMG]?B', body)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 4
