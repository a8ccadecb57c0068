"""The runners of the papers: protocols, rows over seeds, and the cut that is chosen off the queries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _rows import made_up, raw

from cbir_faiss.base import Item, registry
from cbir_faiss.errors import InputError
from cbir_faiss.measures.paired import paired_test
from cbir_faiss.measures.seeds import over_seeds
from cbir_faiss.sources.folder import Folder
from cbir_faiss.sources.list import List

PAPERS = Path(__file__).parents[1] / "benchmarks" / "papers"


@pytest.fixture(autouse=True)
def papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PAPERS))
    monkeypatch.syspath_prepend(str(PAPERS.parent))


def run(monkeypatch: pytest.MonkeyPatch, module: Any, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, args)])
    module.main()


# ----------------------------------------------------------------------------------------------------------- protocols


@pytest.mark.parametrize(
    ("sizes", "counts", "shared"),
    [((2, 3, False), (6, 9, 21), 0), ((2, 3, True), (6, 9, 30), 9), ((4, None, True), (12, 24, 24), 24)],
)
def test_parts_of_a_protocol(sizes: Any, counts: Any, shared: int, pictures: Path) -> None:
    from protocols import draw

    items = Folder(root=str(pictures)).items()
    queries, training, database = draw(items, 0, sizes)
    assert (len(queries), len(training), len(database)) == counts
    assert not np.intersect1d(queries, np.concatenate([training, database])).size
    assert len(np.intersect1d(training, database)) == shared
    for part, each in ((queries, sizes[0]), (training, counts[1] // 3)):
        assert set(Counter(items[row].labels for row in part).values()) == {each}
    assert [part.tolist() for part in draw(items, 0, sizes)] == [p.tolist() for p in (queries, training, database)]
    assert draw(items, 1, sizes)[0].tolist() != queries.tolist()


def test_lists_of_a_protocol(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of parts that came in folders of their own, the class is the last folder."""
    import protocols

    for number, file in enumerate(sorted(pictures.rglob("*.png"))):
        place = tmp_path / "data" / ("train" if number % 3 else "test") / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(protocols, "PROTOCOLS", {"small": (2, 3, False)})
    run(monkeypatch, protocols, tmp_path / "data", "--out", tmp_path / "out", "--only", "small", "--seeds", 0, 1)
    for seed in (0, 1):
        parts = [List(file=str(tmp_path / f"out/small/{seed}/{name}.csv")) for name in protocols.PARTS]
        assert [len(part.items()) for part in parts] == [6, 9, 21]
        assert {item.labels for part in parts for item in part.items()} == {("blob",), ("checks",), ("stripes",)}
        assert parts[2].read(0).size == (48, 48)


def test_a_protocol_of_too_little(pictures: Path) -> None:
    from protocols import PROTOCOLS, draw

    items = Folder(root=str(pictures)).items()
    for sizes, message in (
        (PROTOCOLS["1k-5k-54k"], "class 'blob' has 12 pictures: the protocol takes 100 queries, 500 to train on and a"),
        (PROTOCOLS["10k-50k-50k"], "class 'blob' has 12 pictures: the protocol takes 1000 queries and a database"),
        ((6, 6, False), "class 'blob' has 12 pictures"),
    ):
        with pytest.raises(InputError, match=message):
            draw(items, 0, sizes)
    with pytest.raises(InputError, match="no classes: they must lie in sub-folders"):
        draw(Folder(root=str(pictures / "blob")).items(), 0, (1, 1, True))


def test_losses_by_a_protocol_are_measured_as_the_figures_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    import protocol_losses

    rng = np.random.default_rng(0)
    labels = np.arange(180) % 3
    x = (rng.standard_normal((3, 16))[labels] + rng.standard_normal((180, 16))).astype(np.float32)
    items = [Item(f"{label}/{number}.png", (str(label),)) for number, label in enumerate(labels)]
    pictures = protocol_losses.Pictures(items, labels, x)
    monkeypatch.setattr(protocol_losses, "PROTOCOLS", {"few": (10, 20, False), "all": (10, 20, True)})
    monkeypatch.setattr(protocol_losses.Pictures, "extracted", lambda *_: pictures)
    monkeypatch.setattr(protocol_losses, "FIRST", 7)
    args = ("root", "--weights", "w", "--out", tmp_path, "--only")
    run(monkeypatch, protocol_losses, *args, "itq", "csq", "--bits", 8, "--seeds", 0, 1, "--protocols", "few", "all")
    stored = json.loads((tmp_path / "protocols.json").read_text())
    assert [(row["method"], row["bits"]) for row in stored["few"]["rows"]] == [("itq", 8), ("csq", 8)]
    itq, csq = stored["few"]["rows"]
    assert csq["map"] > itq["map"]
    assert itq["map"] == np.mean([one["map"] for one in itq["by seed"].values()])
    assert stored["all"]["rows"] != stored["few"]["rows"]
    run(monkeypatch, protocol_losses, *args, "csq", "--bits", 16, "--seeds", 0, 1, "--protocols", "few")
    kept = json.loads((tmp_path / "protocols.json").read_text())["few"]["rows"]
    assert kept[:2] == [itq, csq]
    assert [(row["method"], row["bits"]) for row in kept[2:]] == [("csq", 16)]

    queries, training, database = protocol_losses.draw(items, 0, (10, 20, False))
    bits = np.unpackbits(registry.make("codecs", "itq", bits=8).fit(x[training]).encode(x), axis=1).astype(int)
    order = np.argsort((bits[queries][:, None] != bits[database][None]).sum(axis=2), axis=1, kind="stable")
    relevant = labels[database][order] == labels[queries][:, None]
    precisions = np.cumsum(relevant, axis=1) / np.arange(1, len(database) + 1)
    by_hand = ((precisions * relevant).sum(axis=1) / relevant.sum(axis=1)).mean()
    assert itq["by seed"]["0"]["map as returned"] == pytest.approx(by_hand)
    # In expectation over ties: the mean over many orders of equals.
    apart = (bits[queries][:, None] != bits[database][None]).sum(axis=2)
    means: dict[str, list[float]] = {"map": [], "map@1000": []}
    for _ in range(200):
        order = np.argsort(apart + rng.random(len(database)), axis=1)
        relevant = labels[database][order] == labels[queries][:, None]
        for name, k in (("map", len(database)), ("map@1000", 7)):
            hits = relevant[:, :k]
            sums = (np.cumsum(hits, axis=1) / np.arange(1, k + 1) * hits).sum(axis=1)
            means[name].append(float((sums / np.maximum(1, hits.sum(axis=1))).mean()))
    for name, tolerance in (("map", 3e-3), ("map@1000", 2e-2)):
        assert itq["by seed"]["0"][name] == pytest.approx(np.mean(means[name]), abs=tolerance)


# ---------------------------------------------------------------------------------------------------------- over seeds

SCORES = {"wide-0": 0.70, "wide-1": 0.74, "wide-2": 0.72, "plain-0": 0.60, "plain-1": 0.66, "once-7": 0.5, "shelf": 0.4}


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    rows = [made_up(title=title, values=score, bits=48) for title, score in SCORES.items()]
    (tmp_path / "run").mkdir()
    text = json.dumps({"environment": {}, "rows": [row.as_json() for row in rows], "skipped": []})
    (tmp_path / "run/results.json").write_text(text)
    return tmp_path / "run"


def test_mirrored_networks_are_of_several_seeds_too() -> None:
    import over_seeds as runner

    titles = [f"net-{seed}{which}" for seed in (0, 1) for which in ("", " mirrored", " code")]
    groups = runner.grouped([raw(title=title) for title in [*titles, "squeezenet1_1"]])
    seeds = {network: sorted(rows, key=str) for (network, _), rows in groups.items()}
    assert seeds == {"net": [0, 1], "net mirrored": [0, 1], "net code": [0, 1], "squeezenet1_1": [None]}


def test_rows_over_seeds(compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import over_seeds as runner

    run(monkeypatch, runner, compared, "--keep", "x", "--out", tmp_path, "--reference", "wide")
    stored = json.loads((tmp_path / "x.json").read_text())["seeds"]
    assert stored["environment"]["cpu"]
    rows = {row["network"]: row for row in stored["rows"]}
    assert list(rows) == ["wide", "plain", "once", "shelf"]
    expected = over_seeds([0.70, 0.74, 0.72])
    assert rows["wide"]["map@5"] == pytest.approx(expected.mean)
    assert rows["wide"]["map@5 ±"] == pytest.approx(expected.deviation)
    assert rows["wide"]["map@5 95 %"] == f"{expected.low:.3f}–{expected.high:.3f}"
    assert rows["wide"]["by seed"]["map@5"] == pytest.approx({"0": 0.7, "1": 0.74, "2": 0.72})
    for network in ("once", "shelf"):
        assert rows[network]["seeds"] == 1
        assert "map@5 ±" not in rows[network]
        assert rows[network]["map@5 of queries"] == [0.1, 0.9]
    (difference,) = stored["differences"]
    wanted = paired_test(np.array([0.60, 0.66]), np.array([0.70, 0.74]))
    assert difference["network"] == "plain"
    assert {key: difference[key] for key in wanted._fields} == pytest.approx(wanted._asdict())


def test_an_interval_that_one_seed_has_not(compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import over_seeds as runner

    for reference in ("once", "shelf", "gone"):
        with pytest.raises(InputError, match=f"no network has two seeds in common with '{reference}'"):
            run(monkeypatch, runner, compared, "--keep", "x", "--out", tmp_path, "--reference", reference)
    with pytest.raises(InputError, match=r"wide-0 .* is there twice"):
        run(monkeypatch, runner, compared, compared, "--keep", "x", "--out", tmp_path)
    with pytest.raises(InputError, match=r"not every row has 'mpa@5'; all have: .*map@5"):
        run(monkeypatch, runner, compared, "--keep", "x", "--out", tmp_path, "--measures", "mpa@5")
    assert not (tmp_path / "x.json").exists()


def test_intervals_are_cut_where_measures_end() -> None:
    from _seeds import of_seeds

    assert of_seeds("map", [0.97, 1.0])["map 95 %"] == "0.794–1.000"
    assert of_seeds("map", [0.97]) == {"map": 0.97}


def test_a_script_says_in_one_line_what_is_wrong(pictures: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "papers" / "protocols.py"
    asked = [sys.executable, str(script), str(pictures), "--out", str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"class '\w+' has \d+ pictures: the protocol takes .*\n", done.stderr)


def test_variants_of_the_networks_are_right() -> None:
    """Every training that the runner would begin is one that its config allows."""
    pytest.importorskip("torch")
    import yaml
    import zeng2019
    from _variants import changed

    from cbir_faiss.training.config import parse_training

    base = yaml.safe_load(zeng2019.CONFIG.read_text())
    trainings = {
        name: parse_training(changed(base, how), folder=str(zeng2019.CONFIG.parent))
        for name, how in {**zeng2019.MAIN, **zeng2019.OTHERS}.items()
    }
    assert trainings["wide-12"].bits == 12
    assert trainings["mnist-dsh"].network.name == "plain"
    assert trainings["mnist-dsh"].fit.epochs == 2
    assert trainings["pairwise"].head.norm
    compared = (zeng2019.CONFIG.parent / "zeng2019.yaml").read_text() + (
        zeng2019.CONFIG.parent / "zeng2019-mnist.yaml"
    ).read_text()
    for name in trainings:
        for seed in zeng2019.SEEDS if name in zeng2019.MAIN else (0,):
            assert f"runs/zeng2019/{name}-{seed}}}" in compared


CONFIGS = Path(__file__).parents[1] / "configs"
TRAININGS = [file for file in sorted(CONFIGS.rglob("*.yaml")) if "\nlosses:" in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", TRAININGS, ids=lambda file: file.stem)
def test_groups_of_a_config_are_those_of_its_network(file: Path) -> None:
    """Without the weights and the pictures: the parameters that a recipe names are there, and something is trained."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from cbir_faiss.nets.model import Model
    from cbir_faiss.training.config import load_training
    from cbir_faiss.training.optimizer import Optimizer

    training = load_training(file)
    module, preprocess = training.network.make().build(pretrained=False)
    classes = 10 if any("logits" in loss.plugin().needs for loss in training.losses) else None
    model = Model(module, preprocess.size, training.bits, classes, training.head)
    optimizer = Optimizer(model, torch.nn.ModuleList(), training.fit, 100)
    optimizer.train_mode()
    groups = optimizer._optimizer.param_groups
    assert len(groups) == 1 + sum(not group.frozen for group in training.fit.groups)
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])
    frozen = sum(group.frozen for group in training.fit.groups)
    assert bool(frozen) == any(not parameter.requires_grad for parameter in model.parameters())


# ----------------------------------------------------------------------------------------------------------- varga2016


@pytest.mark.slow
@pytest.mark.usefixtures("only_measured")
def test_the_cut_is_chosen_off_the_queries(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("faiss")
    import varga2016
    import yaml

    from cbir_faiss.training.config import load_training
    from cbir_faiss.training.seeds import train_seeds

    training = {
        "source": {"name": "folder", "root": str(pictures)},
        "queries": {"every": 4},
        "network": {"name": "plain", "width": 4, "features": 16, "preprocess": {"resize": [16, 16], "crop": None}},
        "head": {"temperature": 0.1, "calibrate": True},
        "losses": [{"name": "classification"}],
        "fit": {"epochs": 2, "batch_size": 6, "lr": 0.01, "held_out": 4, "device": "cpu"},
        "seeds": [0, 1],
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(training))
    config = load_training(tmp_path / "c.yaml")
    train_seeds(config, tmp_path / "net")
    asked: list[tuple[int, int]] = []
    right = varga2016.measured

    def note(source: Any, queries: Any, network: Path, cuts: Any) -> Any:
        rows = right(source, queries, network, cuts)
        asked.append((rows[0].items, rows[0].queries))
        return rows

    monkeypatch.setattr(varga2016, "measured", note)
    places = ("--networks", tmp_path / "net", "--config", tmp_path / "c.yaml", "--lists", tmp_path / "lists")
    run(monkeypatch, varga2016, *places, "--seeds", 0, 1, "--out", tmp_path)
    # Of 36 pictures 9 are queries; of the other 27 every fourth is held out.
    assert asked == [(20, 7), (27, 9)] * 2
    stored = json.loads((tmp_path / "varga2016.json").read_text())["fusion"]
    assert [row["search"] for row in stored["rows"]] == ["code alone", "fused, t = 0", "fused, t chosen"]
    assert all(len(row["map_full@100 by seed"]) == 2 and row["ms"] > 0 for row in stored["rows"])
    with pytest.raises(SystemExit):
        run(monkeypatch, varga2016, *places, "--seeds", 0, "--out", tmp_path)
