"""What other programs read of a comparison: trec runs and judgements, and an HDF5 file of ann-benchmarks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cbir_faiss.cli import main
from cbir_faiss.comparison import export
from cbir_faiss.comparison.export import write_ann, write_trec
from cbir_faiss.comparison.split import Side, Split
from cbir_faiss.errors import InputError, Unsupported
from cbir_faiss.measures.neighbours import exact_neighbours

CONFIG = """\
source: {name: folder, root: pictures}
queries: {every: 4}
extractors: [{name: histogram}]
codecs: [{name: raw}, {name: lsh, bits: 64}]
backends: [{name: faiss-flat}, {name: faiss-binary-flat}]
metrics: {k: [1, 5, 27]}
"""


def average_precision(run: list[str], right: set[str]) -> float:
    """Of one query, as trec_eval has it: sorted by score, over all that is judged relevant."""
    ranking = [line.split()[2] for line in sorted(run, key=lambda line: -float(line.split()[4]))]
    found = np.cumsum([name in right for name in ranking])
    return float(sum(found[i] / (i + 1) for i, name in enumerate(ranking) if name in right) / len(right))


@pytest.mark.usefixtures("only_measured")
def test_a_run_and_its_judgements_have_the_measures_of_the_row(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    (pictures / "blob" / "00.png").rename(pictures / "blob" / "0 0%.png")
    (pictures.parent / "c.yaml").write_text(CONFIG)
    arguments = ["compare", str(pictures.parent / "c.yaml"), "--out", str(tmp_path / "out"), "--trec"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out/results.json").read_text())
    (qrels,) = (tmp_path / "out/trec").glob("*.qrels")
    right: dict[str, set[str]] = {}
    for line in qrels.read_text().splitlines():
        query, zero, item, relevant = line.split()
        assert (zero, relevant) == ("0", "1")
        right.setdefault(query, set()).add(item)
    assert "blob/0%200%25.png" in right
    assert len(right) == 9
    for row in results["rows"]:
        name = Path(row["raw"]).stem
        lines = (tmp_path / "out/trec" / f"{name}.run").read_text().splitlines()
        assert {len(line.split()) for line in lines} == {6}
        assert {line.split()[5] for line in lines} == {name}
        values = []
        for query, mine in right.items():
            run = [line for line in lines if line.split()[0] == query]
            assert [int(line.split()[3]) for line in run] == list(range(1, 28))
            values.append(average_precision(run, mine))
        assert np.mean(values) == pytest.approx(row["metrics"]["map_full@27_observed"])


def vectors(n: int = 40, nq: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6)).astype(np.float32), rng.normal(size=(nq, 6)).astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_an_hdf5_file_of_ann_benchmarks(metric: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    x, q = vectors(200)
    split = Split(Side(x, [()] * 200), Side(q, [()] * 5), title="a / b")
    file = write_ann(split, tmp_path, metric)
    assert file.parent == tmp_path / "hdf5"
    assert file.name.startswith("a-b-")
    with h5py.File(file) as content:
        assert content.attrs["distance"] == {"l2": "euclidean", "cosine": "angular"}[metric]
        assert np.array_equal(content["train"], x)
        assert np.array_equal(content["test"], q)
        ids, distances = np.asarray(content["neighbors"]), np.asarray(content["distances"])
    assert (ids.shape, distances.shape) == ((5, 100), (5, 100))
    a, b = x.astype(float), q.astype(float)
    if metric == "l2":
        exact = np.sqrt(((a[None] - b[:, None]) ** 2).sum(axis=2))
    else:
        exact = 1 - (b @ a.T) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)[:, None]
    np.testing.assert_array_equal(ids, np.argsort(exact, axis=1)[:, :100])
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :100], atol=1e-6)
    with pytest.raises(Unsupported, match="ann-benchmarks knows l2 and cosine, not 'ip'"):
        write_ann(split, tmp_path, "ip")


def test_a_split_without_a_title_is_called_vectors() -> None:
    split = Split(Side(np.eye(2, dtype=np.float32), [()] * 2), Side(np.eye(2, dtype=np.float32), [()] * 2))
    assert export.name_of(split).startswith("vectors-")


def test_few_items_have_fewer_neighbours() -> None:
    x, q = vectors(3)
    ids, distances = exact_neighbours(x, q, 10, "l2")
    assert ids.shape == distances.shape == (5, 3)
    assert (np.sort(ids, axis=1) == np.arange(3)).all()
    with pytest.raises(InputError, match="k must be at least 1"):
        exact_neighbours(x, q, 0, "l2")


def test_what_a_query_ignores_is_in_neither_file(tmp_path: Path) -> None:
    x, q = vectors(4, 1)
    labels = [("a",), ("a",), ("b",), ("a",)]
    split = Split(Side(x, labels, ignored=[("a",), (), (), ()]), Side(q, [("a",)]))
    (qrels,) = write_trec(split, [], tmp_path)
    assert qrels.read_text().splitlines() == ["0 0 1 1", "0 0 3 1"]
    from _rows import made_up

    np.savez(tmp_path / "r.npz", ids=np.array([[0, 2, 1, -1]]))
    _, run = write_trec(split, [made_up(raw="r.npz")], tmp_path)
    assert run.read_text().splitlines() == ["0 Q0 2 1 4 r", "0 Q0 1 2 3 r"]


def test_judgements_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, q = vectors(4, 2)
    with pytest.raises(InputError, match="judgements are of labels"):
        write_trec(Split(Side(x, [()] * 4), Side(q, [()] * 2)), [], tmp_path)
    monkeypatch.setattr(export, "JUDGEMENTS", 7)
    with pytest.raises(InputError, match="8 judgements are more than the 7 of a readable file"):
        write_trec(Split(Side(x, [("a",)] * 4), Side(q, [("a",)] * 2)), [], tmp_path)
    assert not (tmp_path / "trec").exists()


# -- of a whole comparison


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A config over vectors; of class c, which nothing else is of, every fourth item is a query and nothing else."""
    x, _ = vectors(40)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "labels.txt").write_text("".join(f"{'c' if i % 8 == 4 else 'ab'[i % 2]}\n" for i in range(40)))
    (tmp_path / "c.yaml").write_text(NUMBERS)
    return tmp_path / "c.yaml"


NUMBERS = """\
source: {name: vectors, file: x.npy, labels: labels.txt}
queries: {every: 4}
codecs: [{name: raw}]
backends: [{name: faiss-flat}]
metrics: {k: [5], truth: {metric: l2}}
"""


def compare(config: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["compare", str(config), "--out", str(config.parent / "out"), *options])


@pytest.mark.parametrize(
    ("option", "changed", "status", "message"),
    [
        ("--hdf5", ("metric: l2", "metric: ip"), 1, "ann-benchmarks knows l2 and cosine, not 'ip'"),
        ("--trec", (", labels: labels.txt", ""), 1, "judgements are of labels, and these items or queries have none"),
        ("--trec", ("", ""), 1, "judgements are more than the 7 of a readable file"),
        ("--hdf5", ("", ""), 1, "'h5py' is not installed: pip install 'cbir-faiss[hdf5]'"),
    ],
)
def test_what_cannot_be_exported_is_said_before_anything_is_measured(
    option: str, changed: tuple[str, str], status: int, message: str, numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("hours of work")

    monkeypatch.setattr("cbir_faiss.comparison.run.splits", measured)
    monkeypatch.setattr(export, "JUDGEMENTS", 7)
    monkeypatch.setitem(sys.modules, "h5py", None)
    numbers.write_text(NUMBERS.replace(*changed) if changed[0] else NUMBERS)
    result = compare(numbers, option)
    assert (result.exit_code, len(result.stderr.splitlines())) == (status, 1)
    assert message in result.stderr
    assert not (numbers.parent / "out").exists()


@pytest.mark.usefixtures("only_measured")
def test_the_labels_of_queries_from_another_source_are_looked_at(numbers: Path) -> None:
    numbers.write_text(NUMBERS.replace("{every: 4}", "{source: {name: vectors, file: x.npy}}"))
    assert "judgements are of labels" in compare(numbers, "--trec").stderr


@pytest.mark.usefixtures("only_measured")
def test_a_file_that_cannot_be_written_costs_no_report(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_ann", full)
    result = compare(numbers, "--hdf5", "--trec")
    assert result.exit_code == 1
    told = result.stderr.splitlines()[-1]
    assert told == "--hdf5 of vectors was not written: [Errno 28] No space left on device"
    assert "raw, faiss-flat l2" in result.stdout
    out = numbers.parent / "out"
    assert (out / "report.html").is_file()
    assert len(json.loads((out / "results.json").read_text())["rows"]) == 1
    assert len(list((out / "trec").iterdir())) == 2, "what could be written is there"


@pytest.mark.usefixtures("only_measured")
def test_queries_that_no_judgement_has_are_counted(numbers: Path) -> None:
    result = compare(numbers, "--trec")
    assert result.exit_code == 0, result.output
    (qrels,) = (numbers.parent / "out/trec").glob("*.qrels")
    judged = {line.split()[0] for line in qrels.read_text().splitlines()}
    assert len(judged) == 5
    assert f"{qrels.name} is without 5 of 10 queries, which have nothing to find" in result.stderr
