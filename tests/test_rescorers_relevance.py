"""Rescorer ``relevance``: against the formula taken pair by pair, in a comparison, and in a collection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _plugins import installed
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir_faiss.base import registry
from cbir_faiss.collection import Collection
from cbir_faiss.comparison.run import run
from cbir_faiss.config import load_config
from cbir_faiss.errors import ConfigError, DimensionMismatch, InputError
from cbir_faiss.report.row import Row, name_of
from cbir_faiss.types import Hits


def relevance(**options: Any) -> Any:
    return registry.make("rescorers", "relevance", **{"candidates": "all", **options})


def columns(rng: np.random.Generator, n: int, classes: int, bits: int) -> dict[str, Any]:
    """Rows of probabilities, mostly of one class; signs and the codes packed of them."""
    probs = rng.dirichlet(np.full(classes, 0.3), n).astype(np.float32)
    projection = rng.standard_normal((n, bits)).astype(np.float32)
    return {"probs": probs, "projection": projection, "code": np.packbits(projection > 0, axis=1)}


def rescore(rescorer: Any, items: dict[str, Any], queries: dict[str, Any], ids: Any = None, k: int = 1000) -> Hits:
    n = len(queries["probs"])
    ids = np.tile(np.arange(len(items["probs"])), (n, 1)) if ids is None else np.array(ids)
    stored = {"code": items["code"], **rescorer.pack(items)}
    first = Hits(ids, np.where(ids < 0, np.inf, np.float32(0)).astype(np.float32))  # their distances are not read
    return rescorer.rescore(queries, first, lambda some, column: stored[column][some], k)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    bits=st.integers(1, 40),
    classes=st.integers(1, 6),
    t=st.sampled_from([0.0, 0.2, 0.5]),
    priors=st.sampled_from(["none", "estimated"]),
    seed=st.integers(0, 99),
)
def test_it_is_the_formula(bits: int, classes: int, t: float, priors: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, queries = columns(rng, 30, classes, bits), columns(rng, 5, classes, bits)
    hits = rescore(relevance(t=t, priors=priors).fit(items), items, queries)
    prior = (items["probs"].sum(axis=0, dtype=float) + 1 / classes) / 31 if priors == "estimated" else 1 / classes
    for row in range(5):
        a = queries["probs"][row].astype(float)
        shared = (a * items["probs"].astype(float) / (prior * classes)).sum(axis=1)
        differing = ((queries["projection"][row] > 0) != (items["projection"] > 0)).sum(axis=1)
        fused = 1 - shared * (1 - np.sqrt(differing / bits))
        found = hits.ids[row][hits.ids[row] >= 0]
        assert set(np.flatnonzero(shared > t + 1e-5)) <= set(found.tolist()) <= set(np.flatnonzero(shared > t - 1e-5))
        np.testing.assert_allclose(hits.distances[row, : len(found)], fused[found], atol=1e-5)
        assert (np.diff(hits.distances[row, : len(found)]) >= 0).all()
        assert np.isinf(hits.distances[row, len(found) :]).all()


def test_what_does_not_exceed_the_threshold_is_dropped() -> None:
    items = {"probs": np.eye(2, dtype=np.float32)[[0, 1, 0]], "code": np.array([[255], [0], [0]], np.uint8)}
    queries = {"probs": np.array([[0.5, 0.5]], np.float32), "code": np.array([[0]], np.uint8)}
    queries["projection"] = np.zeros((1, 8), np.float32)
    hits = rescore(relevance(t=0.5).fit(items), items, queries)
    assert hits.ids.tolist() == [[-1, -1, -1]]  # 0.5 is not above 0.5
    hits = rescore(relevance(t=0.49).fit(items), items, queries)
    assert hits.ids.tolist() == [[1, 2, 0]]
    assert hits.distances.tolist() == [[0.5, 0.5, 1.0]]  # equal codes, and the opposite one
    certain = {**queries, "probs": np.array([[1.0, 0.0]], np.float32)}
    hits = rescore(relevance(t=0).fit(items), items, certain, [[1, -1, 2, 0]])
    assert hits.ids.tolist() == [[2, 0, -1, -1]]  # no chance at all is dropped at 0 too


def test_padding_bits_do_not_count() -> None:
    """A code of 12 bits is stored in 16: the distance is of 12."""
    rng = np.random.default_rng(0)
    items, queries = columns(rng, 1, 1, 12), columns(rng, 1, 1, 12)
    queries["projection"] = -items["projection"]
    queries["code"] = np.packbits(queries["projection"] > 0, axis=1)
    hits = rescore(relevance().fit(items), items, queries)
    assert hits.distances.tolist() == [[1.0]]


def test_equal_priors_change_nothing_and_rare_classes_count_for_more() -> None:
    rng = np.random.default_rng(1)
    items, queries = columns(rng, 9, 3, 8), columns(rng, 2, 3, 8)
    items["probs"] = np.eye(3, dtype=np.float32)[np.arange(9) % 3]
    plain, estimated = (
        rescore(relevance(t=0, priors=priors).fit(items), items, queries) for priors in ("none", "estimated")
    )
    np.testing.assert_array_equal(plain.ids, estimated.ids)
    np.testing.assert_allclose(plain.distances, estimated.distances, atol=1e-6)
    items["probs"] = np.eye(3, dtype=np.float32)[[0] * 7 + [1, 1]]  # class 2 never occurs
    queries["probs"] = np.tile(np.float32(1 / 3), (2, 3))
    items["code"][:] = queries["code"][:1]
    hits = rescore(relevance(t=0, priors="estimated").fit(items), items, queries)
    assert set(hits.ids[0, :2].tolist()) == {7, 8}
    assert np.isfinite(hits.distances).all()


def test_probabilities_are_what_is_stored() -> None:
    probs = np.full((7, 101), 1 / 101, np.float32)
    rescorer = relevance().fit({"probs": probs})
    packed = rescorer.pack({"probs": probs, "embedding": np.ones((7, 3), np.float32)})
    assert {name: (column.shape, column.dtype) for name, column in packed.items()} == {
        "probs": ((7, 101), np.dtype(np.float32))
    }
    assert rescorer.resident_bytes(7, {"probs": 404, "code": 0}) == 7 * 404


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([[0.5, 0.5], [0.9, 0.9]], "row 1 of 'probs' of items is not a distribution over classes: it sums to 1.8"),
        ([[0.2, 0.2]], "it sums to 0.4"),
        ([[1.5, -0.5]], "its least value is -0.5"),
        ([[np.nan, 1.0]], "vector 0 holds NaN"),
        ([[]], "it sums to 0"),
    ],
)
def test_no_probabilities(probs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        relevance().fit({"probs": np.array(probs, np.float32)})
    fitted = relevance().fit({"probs": np.full((1, max(1, len(probs[0]))), 1 / max(1, len(probs[0])), np.float32)})
    with pytest.raises(InputError):
        fitted.pack({"probs": np.array(probs, np.float32)})


def test_other_bad_input() -> None:
    rng = np.random.default_rng(0)
    items, queries = columns(rng, 4, 3, 16), columns(rng, 2, 3, 16)
    for t in (-0.1, 1.1, "high"):
        with pytest.raises(ConfigError, match="t: "):
            relevance(t=t)
    with pytest.raises(InputError, match="not fitted"):
        relevance().pack(items)
    rescorer = relevance().fit(items)
    with pytest.raises(InputError, match="needs 'probs' of the items, the extractor gives embedding"):
        rescorer.pack({"embedding": np.ones((4, 2), np.float32)})
    for column in ("probs", "code", "projection"):  # without the projection the code's length is not known
        some = {name: values for name, values in queries.items() if name != column}
        with pytest.raises(InputError, match=f"needs '{column}' of 2 queries, got none"):
            rescorer.rescore(some, Hits(np.zeros((2, 1), np.int64), np.zeros((2, 1), np.float32)), lambda i, c: i, 1)
    with pytest.raises(DimensionMismatch, match="takes vectors of 3 dimensions, got 5"):
        rescore(rescorer, items, {**queries, "probs": columns(rng, 2, 5, 16)["probs"]})
    with pytest.raises(InputError, match="'probs' of queries is not a distribution"):
        rescore(rescorer, items, {**queries, "probs": queries["probs"] * 2})
    with pytest.raises(DimensionMismatch, match="codes of 24 bits, got 16"):
        rescore(rescorer, items, {**queries, "projection": np.ones((2, 20), np.float32)})


# ---------------------------------------------------------------------------------------- with an extractor of its own

TINY = '''
import numpy as np
from cbir_faiss import base

class Tiny(base.Extractor):
    """The 8 x 8 grey picture, and how bright each third of it is, as three probabilities."""
    name = "tiny"
    outputs = {"embedding": (64, "float32"), "code": (16, "float32"), "probs": (3, "float32")}
    embeddings = ("embedding", "code")

    def _prepare(self, image):
        return np.asarray(image.convert("L").resize((8, 8)), np.float32)

    def _extract(self, batch):
        x = batch.reshape(len(batch), -1) / 255
        odds = np.exp(8 * np.stack([x[:, i::3].mean(axis=1) for i in range(3)], axis=1))
        return {"embedding": x, "code": x[:, :16] - 0.5, "probs": odds / odds.sum(axis=1, keepdims=True)}
'''


@pytest.fixture
def tiny(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An extractor of embedding, real-valued code and probabilities, installed as a stranger's plugin is."""
    entry = "[cbir_faiss.extractors]\ntiny = tiny_plugin:Tiny\n"
    with installed(tmp_path_factory.mktemp("tiny"), "tiny", TINY, entry, monkeypatch):
        yield


CONFIG = """\
source: {{name: folder, root: pictures}}
extractors: [{{name: tiny}}{more}]
codecs: [{{name: sigmoid-mean}}]
backends: [{{name: faiss-binary-flat}}]
rescore: [{none}{{name: relevance, candidates: all, t: {t}}}]
metrics: {{k: [5, 50]}}
"""


def config(pictures: Path, **words: Any) -> Any:
    path = pictures.parent / "c.yaml"
    path.write_text(CONFIG.format(**{"none": "", "more": "", "t": 0.2, **words}))
    return load_config(path)


@pytest.mark.usefixtures("tiny", "only_measured")
def test_a_sweep_of_the_threshold_is_a_row_each(pictures: Path, tmp_path: Path) -> None:
    chosen = config(pictures, none="{name: none}, ", t="[0.0, 0.1, 0.2, 0.9, 1.0]")
    rows = run(chosen, tmp_path / "out")["rows"]
    assert [(row["rescore"], row["options"]["rescore"].get("t"), row["bits"]) for row in rows] == [
        (name, t, bits)
        for bits in (64, 16)  # of the embedding, and of the column called code
        for name, t in (("none", None), *(("relevance", t) for t in (0.0, 0.1, 0.2, 0.9, 1.0)))
    ]
    found = [int((np.load(tmp_path / "out" / row["raw"])["ids"] >= 0).sum()) for row in rows]
    assert found[1] >= found[2] >= found[3] > found[4] >= found[5] == 0
    assert found[1] == 8 * 28
    assert (
        name_of(Row.from_json(rows[3])) == "sigmoid-mean 64 bits, faiss-binary-flat, relevance t=0.2 rescoring of all"
    )
    for row, count in zip(rows, found, strict=True):
        assert (row["metrics"]["map@5"] > 0) == (count > 0)
        assert row["bytes"]["rescore"] == (28 * 3 * 4 if row["rescore"] == "relevance" else 0)


@pytest.mark.usefixtures("tiny", "only_measured")
def test_an_extractor_without_the_column_loses_only_the_rows_that_need_it(pictures: Path, tmp_path: Path) -> None:
    results = run(config(pictures, none="{name: none}, ", more=", {name: hog, size: 32}"), tmp_path / "out")
    assert [(row["extractor"], row["rescore"]) for row in results["rows"]] == [
        ("tiny", "none"),
        ("tiny", "relevance"),
        ("tiny", "none"),
        ("tiny", "relevance"),
        ("hog", "none"),
    ]
    (skipped,) = results["skipped"]
    assert skipped["combination"].endswith("with relevance candidates=all t=0.2")
    assert "needs 'probs' of the items, the extractor gives embedding" in skipped["reason"]


@pytest.mark.usefixtures("tiny")
def test_a_collection_searches_by_it(pictures: Path, tmp_path: Path) -> None:
    asked = sorted(pictures.rglob("*.png"))[3]
    with Collection.build(config(pictures), tmp_path / "x.cbir") as built:
        (hits,) = built.search([asked])
        assert hits[0].path == asked.relative_to(pictures).as_posix()
        (again,) = built.search_ids([hits[0].id])
        assert [match.id for match in again[:4]] == [match.id for match in hits[1:]]
        np.testing.assert_allclose([m.distance for m in again[:4]], [m.distance for m in hits[1:]], atol=1e-6)
        with pytest.raises(InputError, match="needs 'probs' of 1 queries, got none"):
            built.search(np.ones((1, 64), np.float32))
        with pytest.raises(InputError, match="needs 'probs' of the items, the extractor gives embedding"):
            built.add_vectors(np.ones((1, 64), np.float32))
        added = pictures.parent / "more.png"
        added.write_bytes(asked.read_bytes())
        built.add([added])
        assert {match.path for match in built.search([asked], k=2)[0]} == {hits[0].path, str(added)}


@pytest.mark.usefixtures("tiny")
def test_a_build_without_the_column_says_so(pictures: Path, tmp_path: Path) -> None:
    config(pictures)
    path = pictures.parent / "c.yaml"
    text = path.read_text()
    path.write_text(text.replace("{name: tiny}", "{name: hog}"))
    with pytest.raises(InputError, match="rescorer 'relevance' needs 'probs' of the items"):
        Collection.build(load_config(path), tmp_path / "x.cbir")
    assert not (tmp_path / "x.cbir").exists()
    path.write_text(text.replace("sigmoid-mean", "raw").replace("faiss-binary-flat", "faiss-flat"))
    with pytest.raises(ConfigError, match="'relevance' reads binary codes, which codec 'raw' does not give"):
        Collection.build(load_config(path), tmp_path / "y.cbir")
