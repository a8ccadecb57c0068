"""The runner of Luo et al. 2022: its split, its SVM, and a whole run on tiny pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.errors import InputError
from cbir_faiss.sources.folder import Folder
from cbir_faiss.sources.list import List

PAPERS = Path(__file__).parents[1] / "benchmarks" / "papers"


@pytest.fixture(autouse=True)
def papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PAPERS))
    monkeypatch.syspath_prepend(str(PAPERS.parent))


# ---------------------------------------------------------------------------------------------------------------- split


def test_split_is_drawn_by_class(pictures: Path, tmp_path: Path) -> None:
    from split import write_split

    out = tmp_path / "runs" / "0"
    assert write_split(pictures, out, seed=0, per_class=3) == (27, 9)
    database, queries = (List(file=str(out / name)) for name in ("database.csv", "queries.csv"))
    labels = [item.labels[0] for item in queries.items()]
    assert {label: labels.count(label) for label in labels} == {"blob": 3, "checks": 3, "stripes": 3}
    every = {source.content_key(row) for source in (database, queries) for row in range(len(source.items()))}
    plain = Folder(root=str(pictures))
    assert every == {plain.content_key(row) for row in range(36)}
    assert database.read(0).size == (48, 48)
    assert not Path(queries.items()[0].path).is_absolute()


def test_split_depends_on_the_seed_alone(pictures: Path) -> None:
    from split import draw_queries

    items = Folder(root=str(pictures)).items()
    assert draw_queries(items, 1, 3) == draw_queries(items, 1, 3) != draw_queries(items, 2, 3)


def test_split_of_too_little(pictures: Path, tmp_path: Path) -> None:
    from split import write_split

    with pytest.raises(InputError, match="class 'blob' has 12 pictures, and 12 of them would be queries"):
        write_split(pictures, tmp_path / "out", 0, per_class=12)
    with pytest.raises(InputError, match="no classes: they must lie in sub-folders"):
        write_split(pictures / "blob", tmp_path / "out", 0, per_class=2)


# ------------------------------------------------------------------------------------------------------------------ svm


def clusters() -> tuple[Any, Any, Any]:
    """Items in four clusters of 30, a query of the first, and which are relevant: those of two clusters."""
    rng = np.random.default_rng(0)
    of = np.arange(120) // 30
    centres = 4 * np.eye(4, 8)
    items = (centres[of] + rng.normal(0, 0.5, (120, 8))).astype(np.float32)
    return items, centres[0].astype(np.float32), of <= 1


def test_feedback_finds_what_nearness_cannot() -> None:
    pytest.importorskip("sklearn")
    from svm_active import active_svm

    items, query, relevant = clusters()
    nearest = np.argsort(((items - query) ** 2).sum(axis=1))[:60]
    margins, asked = active_svm(items, query, relevant, rounds=3, shown=8, seed=0)
    assert len(np.unique(asked)) == len(asked) == 24
    assert relevant[np.argsort(-margins)[:60]].mean() > relevant[nearest].mean() + 0.15
    assert np.array_equal(margins, active_svm(items, query, relevant, rounds=3, shown=8, seed=0)[0])


def test_feedback_of_one_kind_only() -> None:
    pytest.importorskip("sklearn")
    from svm_active import active_svm

    items, query, _ = clusters()
    nearness, asked = active_svm(items, query, np.ones(120, bool), rounds=3, shown=8, seed=0)
    assert len(asked) == 120
    assert nearness.argmax() == ((items - query) ** 2).sum(axis=1).argmin()
    # A single irrelevant item is looked for until it is shown.
    margins, asked = active_svm(items, query, np.arange(120) != 7, rounds=1, shown=8, seed=0)
    assert 7 in asked
    assert margins.argmin() == 7
    # Nothing but the query is relevant, and fewer items are left than would be shown.
    margins, asked = active_svm(items, query, np.zeros(120, bool), rounds=20, shown=8, seed=0)
    assert sorted(asked) == list(range(120))
    assert np.isfinite(margins).all()


# --------------------------------------------------------------------------------------------------------------- runner


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    import luo2022

    monkeypatch.setattr(sys, "argv", ["luo2022.py", *args])
    luo2022.main()


def test_rankings_without_what_was_shown() -> None:
    import luo2022

    ids = np.array([[3, 1, 2, 0], [0, 1, 2, 3]])
    assert luo2022._without(ids, np.array([[1, 3], [2, -1]])).tolist() == [[2, 0, -1, -1], [0, 1, 3, -1]]


def test_differences_are_tested_over_seeds() -> None:
    import luo2022

    rng = np.random.default_rng(0)
    base = {seed: rng.random(50) for seed in (0, 1)}
    outcomes = {}
    for name, more in ((luo2022.WITHOUT, 0.0), (luo2022.WITH, 0.1)):
        for seed in (0, 1):
            values = base[seed] + more * (1 + seed) + (rng.normal(0, 0.01, 50) if more else 0)
            outcomes[name, "as they are", seed] = dict.fromkeys(luo2022.MEASURES, values)
    section = luo2022._section(outcomes, ["as they are"], [0, 1], {})
    assert [row["method"] for row in section["rows"]] == [luo2022.WITHOUT, luo2022.WITH]
    for difference in section["differences"]:
        assert difference["by seed"] == pytest.approx([0.1, 0.2], abs=0.01)
        # Two networks say little, however many queries each is asked.
        assert difference["low"] < -0.3 < difference["difference"] < 0.6 < difference["high"]
        assert 0.1 < difference["p"] < 0.3
    (alone,) = (row for row in section["rows"] if row["method"] == luo2022.WITH)
    assert alone["ap"] == pytest.approx(np.mean([x.mean() for x in base.values()]) + 0.15, abs=0.01)


def test_what_was_not_measured_again_is_kept(tmp_path: Path) -> None:
    import luo2022

    file = tmp_path / "luo2022.json"
    stored = {"rows": [{"method": luo2022.WITH}, {"method": "SIFT"}], "differences": [{"p": 0.1}]}
    file.write_text(json.dumps({"table": stored}))
    section: dict[str, Any] = {"rows": [{"method": "SIFT", "ap": 0.3}], "differences": []}
    luo2022._keep_others(file, "table", section)
    assert section == {"rows": [{"method": luo2022.WITH}, {"method": "SIFT", "ap": 0.3}], "differences": [{"p": 0.1}]}
    again: dict[str, Any] = {"rows": [{"method": luo2022.WITH}], "differences": []}
    luo2022._keep_others(file, "table", again)
    assert again["differences"] == []  # of a network that is another now


@pytest.mark.slow
@pytest.mark.usefixtures("only_measured")
def test_a_whole_run(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("cv2", "faiss", "sklearn"):
        pytest.importorskip(library)
    import luo2022

    # Small features in the place of networks; the attention's are the better ones.
    by_path = {"good": {"name": "hog", "size": 32}, "bad": {"name": "histogram"}}
    monkeypatch.setattr(luo2022, "_trained", lambda path: lambda seed, folder: by_path[path])
    monkeypatch.setattr(luo2022, "ALTERED", {"as they are": {}, "cropped": {"crop": 0.9}})
    sift = luo2022._sift
    monkeypatch.setattr(luo2022, "_sift", lambda seed, folder: {**sift(seed, folder), "words": 12})
    places = ("--root", str(pictures), "--splits", str(tmp_path / "splits"), "--out", str(tmp_path))
    networks = ("--with", "good", "--without", "bad")
    run(monkeypatch, "table", "robustness", *places, *networks, "--seeds", "3", "4", "--per-class", "3")
    stored = json.loads((tmp_path / "luo2022.json").read_text())
    rows = {(row["method"], row["queries"]): row for row in stored["robustness"]["rows"]}
    assert len(rows) == 14
    for row in rows.values():
        assert all(0 <= row[measure] <= 1 for measure in luo2022.MEASURES)
        assert [len(values) for values in row["by seed"].values()] == [2] * len(luo2022.MEASURES)
    exhaustive = rows["CNN + CBAM, exhaustive", "as they are"]
    assert exhaustive["ap"] > 0.9 > rows["CNN, exhaustive", "as they are"]["ap"]
    assert exhaustive["recall@100"] == 1
    assert {row["method"] for row in stored["table"]["rows"] if row["search_ms"] > 0} == {name for name, _ in rows}
    assert [one["measure"] for one in stored["table"]["differences"]] == [
        "precision@20",
        "precision@80",
        "ap",
        "recall@100",
    ]
    assert stored["table"]["environment"]["cpu"]
    assert str(tmp_path) not in json.dumps(stored)


def test_an_interval_over_one_seed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for seeds in (["0"], ["1", "1"]):
        with pytest.raises(SystemExit):
            run(monkeypatch, "table", "--with", "a", "--without", "b", "--seeds", *seeds)
        assert "an interval over seeds takes at least two of them: --seeds 0 1 2 3 4" in capsys.readouterr().err


def test_an_unknown_section(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "tabel")
    assert "unknown section 'tabel'; there are: table, robustness, time" in capsys.readouterr().err
