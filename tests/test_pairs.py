"""Any two rows of a comparison tested against each other: stored, in words, on the page."""

from __future__ import annotations

import html
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from _page import CHROMIUM
from _rows import comparison, made_up, raw
from click.testing import CliRunner, Result

from cbir_faiss.cli import main
from cbir_faiss.config import load_config
from cbir_faiss.errors import InputError
from cbir_faiss.measures.paired import paired_test
from cbir_faiss.report.pairs import difference_of, differences, in_words
from cbir_faiss.report.report import write_report
from cbir_faiss.report.row import Row

CONFIG = """\
source: {name: folder, root: pictures}
queries: {every: 4}
extractors: [{name: hog, size: 32}]
codecs: [{name: raw}, {name: lsh, bits: [16, 256]}]
backends: [{name: faiss-flat}, {name: faiss-binary-flat}]
metrics: {k: [1, 5]}
"""


def some_values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(50)


def test_every_two_rows_over_the_same_queries() -> None:
    rows = [raw(some_values(0)), made_up(values=some_values(1)), made_up(bits=16, values=some_values(2))]
    other = made_up(values=some_values(3), source="elsewhere")
    stored = differences([*rows, other])
    assert stored is not None
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert (stored["measure"], [pair[:2] for pair in stored["pairs"]]) == ("map@5", [[0, 1], [0, 2], [1, 2]])
    for i in range(3):
        for j in range(3):
            if i != j:
                expected = paired_test(rows[i].values["map@5"], rows[j].values["map@5"])
                assert difference_of(stored, i, j) == pytest.approx(expected)
    for first, second in ((0, 0), (0, 3), (0, 9)):
        with pytest.raises(InputError, match=f"rows {first + 1} and {second + 1} are no two rows that were tested"):
            difference_of(stored, first, second)


def test_nothing_to_test() -> None:
    assert differences([raw()]) is None
    assert differences([raw(np.ones(1)), made_up(values=np.ones(1))]) is None
    stored_before = made_up()
    stored_before.values = {}
    assert differences([raw(), stored_before]) is None
    with pytest.raises(InputError, match="no two rows that were tested"):
        in_words([raw(), raw()], None, 0, 1)


def test_neighbours_of_another_extractor_are_others() -> None:
    def row(title: str) -> Row:
        found = made_up(title=title, metrics={"knn_recall@10": 0.5})
        found.values = {"knn_recall@10": some_values(ord(title))}
        return found

    assert differences([row("a"), row("b")]) is None
    assert differences([row("a"), row("a")]) is not None


@pytest.fixture
def finished(pictures: Path, tmp_path: Path) -> Path:
    (pictures.parent / "c.yaml").write_text(CONFIG)
    comparison(load_config(pictures.parent / "c.yaml"), tmp_path / "out")
    return tmp_path / "out"


def test_the_command_line_tells_two_rows_apart(finished: Path) -> None:
    def report(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["report", str(finished), *map(str, arguments)])

    told = report("--rows", 1, 2)
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("hog raw, faiss-flat l2 less hog lsh 16 bits")
    assert "by a paired t test over 9 queries" in told.stdout
    assert not (finished / "report.html").exists()
    for wrong in ((1, 1), (1, 99)):
        failed = report("--rows", *wrong)
        assert (failed.exit_code, len(failed.stderr.strip().splitlines())) == (1, 1)
    assert report("--rows", 0, 1).exit_code == 2
    results = json.loads((finished / "results.json").read_text())
    (finished / "results.json").write_text(json.dumps({k: v for k, v in results.items() if k != "differences"}))
    assert report("--rows", 1, 2).exit_code == 1  # stored by an earlier version


def test_the_page_has_classes_worst_queries_and_pairs(finished: Path) -> None:
    page = write_report(finished).read_text()
    assert "Two rows compared" in page
    assert page.count("<option") == 2 * 3
    assert "Classes and worst queries" in page
    for label in ("blob", "checks", "stripes"):
        assert f'<td class="left">{label}</td>' in page
    results = json.loads((finished / "results.json").read_text())
    for row in results["rows"]:
        assert {label: count for label, (count, _) in row["classes"].items()} == {"blob": 3, "checks": 3, "stripes": 3}
        means = [mean for _, mean in row["classes"].values()]
        assert np.mean(means) == pytest.approx(row["metrics"]["map@5"])
        worst = [value for _, _, value in row["worst"]]
        assert worst == sorted(worst)
        assert len(worst) == 9
        row.pop("classes"), row.pop("worst")
    # Rows of earlier versions have neither.
    (finished / "results.json").write_text(json.dumps({**results, "differences": None}))
    page = write_report(finished).read_text()
    assert "Two rows compared" not in page
    assert "Classes and worst" not in page


def test_two_rows_are_chosen_in_a_browser(finished: Path, tmp_path: Path) -> None:
    """As it opens the first two; after another is chosen, that; a row with itself is not tested."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    page = write_report(finished)
    pairs = json.loads((finished / "results.json").read_text())["differences"]["pairs"]
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
    choose = """<script>
    const notes = [document.querySelector(".pick output").textContent];
    for (const [i, j] of [[2, 0], [1, 1]]) {
      [one.selectedIndex, other.selectedIndex] = [i, j];
      one.dispatchEvent(new Event("change"));
      notes.push(document.querySelector(".pick output").textContent);
    }
    document.title = notes.join("|");
    </script></body>"""
    tried = tmp_path / "tried.html"
    tried.write_text(page.read_text().replace("</body>", choose))
    seen = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", tried.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    title = html.unescape(seen[seen.index("<title>") + 7 : seen.index("</title>")])
    first, turned, itself = title.split("|")
    difference, low, high = (f"{value:+.4f}".replace("-", "−") for value in pairs[0][2:5])
    assert first.startswith(f"{difference}, 95 % interval {low} to {high}, p ")
    difference, low, high = (
        f"{value:+.4f}".replace("-", "−") for value in (0 - pairs[1][2], 0 - pairs[1][4], 0 - pairs[1][3])
    )
    assert turned.startswith(f"{difference}, 95 % interval {low} to {high}, p ")
    assert itself.startswith("not tested: two different rows")
