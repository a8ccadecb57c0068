"""The perceptual hash: as extractor, joined to another extractor, and as the order of what ties in a code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cbir_faiss.base import registry
from cbir_faiss.collection import Collection
from cbir_faiss.comparison.run import run
from cbir_faiss.comparison.split import _title
from cbir_faiss.config import Choice, load_config, parse_config
from cbir_faiss.errors import ConfigError, DimensionMismatch, InputError, MissingDependency
from cbir_faiss.extractors.joined import Joined
from cbir_faiss.extractors.phash import PHash
from cbir_faiss.pipeline.extraction import extract
from cbir_faiss.sources.folder import Folder
from cbir_faiss.testing import ExtractorContract
from cbir_faiss.types import Hits, missing_hits

HOG = {"name": "hog", "size": 32}
NETWORK = {
    "name": "torchvision",
    "model": "squeezenet1_1",
    "weights": "none",
    "preprocess": {"resize": 40, "crop": 32},
    "runtime": "torch",
}


def noise(*size: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


# ----------------------------------------------------------------------------------------------------------- extractors


class TestPHashContract(ExtractorContract):
    plugin = PHash


class TestJoinedContract(ExtractorContract):
    plugin = Joined
    options = {"of": [HOG, {"name": "phash"}], "embeddings": "all"}


class TestNestedContract(ExtractorContract):
    plugin = Joined
    options = {
        "of": [HOG, {"name": "joined", "of": [{**HOG, "cell": 4}, {"name": "phash"}]}],
        "embeddings": ["finer", "phash.embedding", "embedding"],
        "columns": [{"embedding": "embedding"}, {"embedding": "finer", "phash.embedding": "phash.embedding"}],
    }


def test_the_hash_is_that_of_imagehash() -> None:
    imagehash = pytest.importorskip("imagehash")
    pictures = [noise(40, 60), noise(200, 31, seed=1), Image.new("RGB", (9, 9), (1, 2, 3))]
    columns = PHash()(pictures)
    assert [row.tobytes().hex() for row in columns["phash"]] == [str(imagehash.phash(picture)) for picture in pictures]
    codec = registry.make("codecs", "sign").fit(columns["embedding"])
    np.testing.assert_array_equal(codec.encode(columns["embedding"]), columns["phash"])


def test_a_picture_barely_changed_has_nearly_the_same_hash() -> None:
    y, x = np.mgrid[:64, :64]
    plain = np.uint8(127 + 60 * np.sin(x / 9) + 60 * np.cos((x + y) / 14))
    one = Image.fromarray(plain).convert("RGB")
    brighter = one.point([min(255, value + 12) for value in range(256)] * 3)
    hashes = PHash()([one, brighter, one.resize((200, 200)), noise(64, 64)])["phash"]
    distances = np.bitwise_count(hashes ^ hashes[:1]).sum(axis=1)
    assert max(distances[1:3]) <= 6 < distances[3]


def test_without_the_library_there_is_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    with pytest.raises(MissingDependency, match=r"pip install 'cbir-faiss\[phash\]'"):
        PHash().load()


def test_joined_gives_what_its_parts_give() -> None:
    pictures = [noise(40, 60), noise(33, 20, seed=1)]
    joined = Joined(of=[HOG, {"name": "phash"}])
    hog, phash = registry.make("extractors", "hog", size=32)(pictures), PHash()(pictures)
    found = joined(pictures)
    assert list(found) == list(joined.outputs) == ["embedding", "phash.embedding", "phash"]
    assert joined.embeddings == ("embedding",)
    np.testing.assert_array_equal(found["embedding"], hog["embedding"])
    np.testing.assert_array_equal(found["phash.embedding"], phash["embedding"])
    np.testing.assert_array_equal(found["phash"], phash["phash"])


def test_columns_and_embeddings_can_be_chosen() -> None:
    of = [HOG, {"name": "phash"}]
    assert Joined(of=of, embeddings="all").embeddings == ("embedding", "phash.embedding")
    chosen = Joined(of=of, columns=[{"embedding": "shape"}, {"phash": "phash"}])
    assert list(chosen.outputs) == ["shape", "phash"]
    assert chosen.embeddings == ("shape",)
    # The first of the embeddings is the first column: what a collection indexes.
    other = Joined(of=of, embeddings=["phash.embedding"])
    assert list(other([noise(9, 9)])) == list(other.outputs) == ["phash.embedding", "embedding", "phash"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": [HOG, HOG, HOG]}, r"columns: parts 1 and 2 both give a column 'hog\.embedding': name them apart"),
        (
            {"of": [HOG, HOG], "columns": [{"embedding": "x"}, {"embedding": "x"}]},
            "columns: parts 0 and 1 both give a column 'x'",
        ),
        (
            {"of": [HOG, HOG], "columns": [{"embedding": "x"}, {"phash": "y"}]},
            r"columns\.1\.phash: 'hog' has no column 'phash'; it has embedding",
        ),
        ({"of": [HOG, {"name": "phash"}], "embeddings": ["phash"]}, "embeddings: 'phash' is no float column"),
        (
            {"of": [HOG, {"name": "phash"}], "embeddings": ["x"]},
            "'x' is no float column; there are: embedding, phash.e",
        ),
        ({"of": [HOG, {"name": "phash"}], "columns": [{}, {"phash": "phash"}]}, "columns: leaves no embedding"),
    ],
)
def test_columns_that_do_not_fit(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = Joined(**options).outputs


CONFIG = """\
source: {{name: folder, root: pictures}}
extractors:
  - name: joined
    of:
      - {{name: hog, size: 32}}
      - {part}
{more}codecs: [{{name: raw}}]
backends: [{{name: faiss-flat}}]
"""
BAD_PARTS = [
    ("{name: hgo}", "", 6, "extractors.0.of.1.name: no extractor named 'hgo'; did you mean 'hog'?"),
    ("{name: hog, size: big}", "", 6, "extractors.0.of.1.size: must be a valid integer"),
    ("{name: hog, size: [32, 64]}", "", 6, "extractors.0.of.1.size: must be a valid integer"),
    ("{name: hog, siez: 32}", "", 6, "extractors.0.of.1.siez: unknown key; did you mean 'size'?"),
    ("{size: 32}", "", 6, "extractors.0.of.1.name: is required"),
    ("{name: 3}", "", 6, "extractors.0.of.1.name: must be text"),
    ("hog", "", 6, "extractors.0.of.1: must be"),
    ("{name: vectors}", "", 6, "extractors.0.of.1.name: 'vectors' does not read pictures"),
    ("{name: phash}", "    embeddings: none\n", 7, "extractors.0.embeddings"),
    ("{name: phash}", "    embeddings: []\n", 7, "extractors.0.embeddings: must name at least one column"),
    (
        "{name: phash}",
        "    embeddings: [a, a]\n",
        7,
        "extractors.0.embeddings: must name at least one column, and none",
    ),
    ("{name: phash}", "    columns: [{a: b}]\n", 7, "extractors.0.columns: names the columns of 1 parts of 2"),
    ("{name: joined, of: [{name: hog}]}", "", 6, "extractors.0.of.1.of: "),
    ("{name: joined, of: [{name: hog}, {name: hog, size: 3}]}", "", 6, "extractors.0.of.1.of.1.size: must be"),
]


@pytest.mark.parametrize(("part", "more", "line", "message"), BAD_PARTS)
def test_a_mistake_in_a_part_has_its_place(tmp_path: Path, part: str, more: str, line: int, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.format(part=part, more=more))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}:{line}: {message}")
    assert "\n" not in str(caught.value)


def test_what_only_the_part_itself_finds_wrong_has_its_place() -> None:
    wrong = {"name": "onnx", "model": "no/such/file.onnx"}
    with pytest.raises(ConfigError, match="model: no such file"):
        _ = Joined(of=[HOG, wrong]).outputs
    with pytest.raises(ConfigError, match=r"^of\.1\.preprocess"):
        Joined(of=[HOG, {**NETWORK, "preprocess": {"crop": None}}])


def test_paths_in_a_part_are_relative_to_the_config(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.format(part="{name: onnx, model: nets/x.onnx}", more=""))
    (choice,) = load_config(path).extractors
    assert choice.options["of"][1] == {"name": "onnx", "model": str(tmp_path / "nets" / "x.onnx")}


def test_fingerprint_is_made_of_the_parts() -> None:
    one = Joined(of=[NETWORK, {"name": "phash"}]).fingerprint()
    # A batch size decides nothing, in a part as elsewhere.
    assert Joined(of=[{**NETWORK, "batch_size": 3}, {"name": "phash"}]).fingerprint() == one
    assert Joined(of=[{**NETWORK, "seed": 1}, {"name": "phash"}]).fingerprint() != one
    assert Joined(of=[{"name": "phash"}, NETWORK]).fingerprint() != one
    assert Joined(of=[NETWORK, {"name": "phash"}], embeddings="all").fingerprint() != one


def test_pictures_are_read_as_large_as_the_most_demanding_part_needs() -> None:
    small, large = {**NETWORK}, {**NETWORK, "preprocess": {"resize": 64, "crop": 32}}
    assert Joined(of=[small, large]).min_side == 3 * 64
    assert Joined(of=[small, {"name": "phash"}]).min_side is None


def test_parts_that_prepare_pictures_in_several_shapes(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that keeps the size of its pictures: those of one size still go together."""

    class Plain(PHash):
        outputs = {"embedding": (1, "float32")}

        def _prepare(self, item: Any) -> Any:
            return np.asarray(item)

        def _extract(self, batch: Any) -> Any:
            return {"embedding": batch.mean(axis=(1, 2, 3), dtype=np.float32)[:, None]}

    for number, file in enumerate(sorted(pictures.rglob("*.png"))):
        noise(20 + number % 2, 20, seed=number).save(file)
    joined = Joined(of=[HOG, {"name": "phash"}])
    joined._parts[1] = Plain()
    found = extract(Folder(root=str(pictures)), joined, cache=None, batch_size=4)
    assert len(found) == 36
    assert found.columns["phash.embedding"].std() > 0


# ------------------------------------------------------------------------------------------------------------- rescorer


class Database:
    """Few short codes, so that there are many ties, hashes, and an engine that orders ties as it likes."""

    def __init__(self, seed: int, n: int = 120, bits: int = 12, spread: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.n, self.bits = n, bits
        words = self.rng.integers(0, 2, (spread, bits))
        self.codes = self._codes(words[self.rng.integers(0, spread, n)])
        self.hashes = self.rng.integers(0, 256, (n, 8), dtype=np.uint8)
        self.hashes[: n // 2, 1:] = 0  # some are near each other, some are equal
        asked = self.rng.integers(0, n, 5)
        self.queries = {"code": self.codes[asked], "phash": self.hashes[self.rng.integers(0, n, 5)]}

    def _codes(self, words: Any) -> Any:
        flips = self.rng.random(words.shape) < 0.08
        return np.packbits((words ^ flips).astype(np.uint8), axis=1)

    def engine(self, shuffle: int) -> Callable[[Any, int], Hits]:
        rng = np.random.default_rng(shuffle)
        self.depths: list[int] = []

        def first(codes: Any, depth: int) -> Hits:
            self.depths.append(depth)
            distances = np.bitwise_count(codes[:, None] ^ self.codes[None]).sum(axis=2)
            order = np.lexsort((rng.random(distances.shape), distances), axis=1)[:, :depth]
            hits = missing_hits(len(codes), depth)
            hits.ids[:, : self.n], hits.distances[:, : self.n] = order, np.take_along_axis(distances, order, axis=1)
            return hits

        return first

    def fetch(self, ids: Any, column: str) -> Any:
        return {"code": self.codes, "phash": self.hashes}[column][ids]

    def search(self, shuffle: int, k: int, **options: Any) -> Hits:
        rescorer = registry.make("rescorers", "phash", **options)
        return rescorer.search(self.queries, k, self.n, self.engine(shuffle), self.fetch)

    def distances(self) -> tuple[Any, Any]:
        """Hamming distances of codes and of hashes, one by one, int64 ``(queries, n)``."""
        pairs = [
            [[(a ^ b).tolist() for b in mine] for a in asked]
            for asked, mine in ((self.queries["code"], self.codes), (self.queries["phash"], self.hashes))
        ]
        deep, visual = (np.array([[sum(v.bit_count() for v in x) for x in row] for row in some]) for some in pairs)
        return deep, visual


CASES = {
    "seed": st.integers(0, 10_000),
    "k": st.integers(1, 60),
    "candidates": st.sampled_from([1, 5, 30, 500, "all"]),
    "bits": st.sampled_from([8, 12, 48, 64, 70]),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**CASES)
def test_strict_order_is_the_code_then_the_hash(seed: int, k: int, candidates: Any, bits: int) -> None:
    data = Database(seed, bits=bits)
    deep, visual = data.distances()
    whole = np.lexsort((visual, deep), axis=1)[:, :k]
    found, again = (data.search(shuffle, k, candidates=candidates) for shuffle in (1, 2))
    np.testing.assert_array_equal(found.ids, again.ids)  # whatever order the engine has for ties
    for distances in (deep, visual):
        got, expected = (np.take_along_axis(distances, ids, axis=1) for ids in (found.ids, whole))
        np.testing.assert_array_equal(got, expected)
    exact = np.take_along_axis(deep + visual / 65, found.ids, axis=1)
    np.testing.assert_allclose(found.distances, exact, rtol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**CASES)
def test_printed_formula_ranks_by_the_similarity_of_the_paper(seed: int, k: int, candidates: Any, bits: int) -> None:
    data = Database(seed, bits=bits)
    deep, visual = data.distances()
    agreeing = 1 - visual / 64
    similarity = np.where(deep > 0, (bits - deep) / bits + agreeing / bits, (bits - 1) / bits + agreeing / bits)
    for shuffle in (1, 2):
        found = data.search(shuffle, k, candidates=candidates, formula="printed")
        got = np.take_along_axis(similarity, found.ids, axis=1)
        np.testing.assert_allclose(got, -np.sort(-similarity, axis=1)[:, :k], rtol=1e-12)
        np.testing.assert_allclose(found.distances, bits * (1 - got), atol=1e-5)


def test_what_still_ties_is_not_in_the_order_of_the_ids() -> None:
    """Else the first classes of a sorted data set would be found first."""
    data = Database(7, n=1000, spread=1)
    data.codes[:], data.hashes[:] = data.codes[0], 0
    found = data.search(1, k=100)
    assert abs(found.ids[0].mean() - 500) < 50


def test_no_more_is_searched_than_the_ties_need() -> None:
    data = Database(3, n=2000, bits=12)
    deep, _ = data.distances()
    data.search(1, k=5, candidates=10)
    ties = (deep <= np.sort(deep, axis=1)[:, 9:10]).sum(axis=1).max()
    assert data.depths[0] == 10
    assert data.depths[-1] < 4 * (ties + 1)
    data.search(1, k=5, candidates="all")
    assert data.depths == [2000]


def test_queries_go_in_blocks_that_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from cbir_faiss.base import rescorer

    data = Database(4)
    whole = data.search(1, k=20, candidates=7)
    monkeypatch.setattr(rescorer, "_HITS_AT_ONCE", 2 * data.n)
    parts = data.search(1, k=20, candidates=7)
    np.testing.assert_array_equal(whole.ids, parts.ids)
    assert len([depth for depth in data.depths if depth == 20]) == 3  # five queries by twos


def test_fewer_items_than_asked_for() -> None:
    data = Database(5, n=6)
    found = data.search(1, k=10)
    assert found.ids.shape == (5, 10)
    assert (found.ids[:, 6:] == -1).all()
    assert np.isinf(found.distances[:, 6:]).all()


def test_what_the_rescorer_refuses() -> None:
    rescorer = registry.make("rescorers", "phash")
    data = Database(6)
    with pytest.raises(InputError, match="rescorer 'phash' needs 'phash' of the items, the extractor gives embedding"):
        rescorer.fit({"embedding": np.zeros((3, 4), np.float32)})
    with pytest.raises(DimensionMismatch, match="'phash' takes codes of 64 bits, got 32"):
        rescorer.fit({"phash": np.zeros((3, 4), np.uint8)})
    with pytest.raises(InputError, match="'phash' takes packed codes, uint8"):
        rescorer.pack({"phash": np.zeros((3, 8), np.float32)})
    with pytest.raises(InputError, match="needs 'phash' of 5 queries, got none"):
        rescorer.search({"code": data.queries["code"]}, 3, data.n, data.engine(1), data.fetch)
    floats_instead = {**data.queries, "code": data.queries["code"].astype(np.float32)}
    with pytest.raises(InputError, match="'code' takes packed codes"):
        rescorer.rescore(floats_instead, missing_hits(5, 3), data.fetch, 3)


@pytest.mark.parametrize("options", [{"candidates": 0}, {"formula": "other"}, {"metric": "l2"}])
def test_bad_options_are_config_errors(options: Any) -> None:
    with pytest.raises(ConfigError):
        registry.make("rescorers", "phash", **options)


# --------------------------------------------------------------------------------------------------------- all together


DOCUMENT = {
    "queries": {"every": 4},
    "extractors": [{"name": "joined", "of": [HOG, {"name": "phash"}]}],
    "codecs": [{"name": "itq", "bits": 8}],
    "backends": [{"name": "faiss-binary-flat"}],
    "rescore": [{"name": "phash", "candidates": 2}],
}


@pytest.fixture
def document(pictures: Path) -> dict[str, Any]:
    return {"source": {"name": "folder", "root": str(pictures)}, **DOCUMENT}


@pytest.mark.usefixtures("only_measured")
def test_a_comparison_with_ties_ordered_by_the_hash(document: dict[str, Any], tmp_path: Path) -> None:
    document["rescore"] = [
        {"name": "none"},
        {"name": "phash", "candidates": 2},
        {"name": "phash", "formula": "printed"},
    ]
    document["metrics"] = {"k": [1, 5, 20]}
    document["extractors"] = [*document["extractors"], HOG]
    results = run(parse_config(document), tmp_path / "out")
    plain, strict, printed, alone = results["rows"]
    assert [row["rescore"] for row in results["rows"]] == ["none", "phash", "phash", "none"]
    assert [row["title"] for row in results["rows"]] == ["hog + phash"] * 3 + ["hog"]
    # No expectation over ties is taken where there are none any more.
    assert plain["metrics"]["map@5_min"] is not None
    for row in (strict, printed):
        assert row["metrics"]["map@5_min"] is None
        assert row["bytes"]["rescore"] == 8 * row["items"]
    hits = np.load(tmp_path / "out" / strict["raw"])
    before = np.load(tmp_path / "out" / plain["raw"])
    np.testing.assert_array_equal(np.floor(hits["distances"]), before["distances"])
    # Without the hashes the second stage cannot be measured, and says why.
    assert alone["extractor"] == "hog"
    assert {"rescorer 'phash' needs 'phash'"} == {skip["reason"].partition(" of")[0] for skip in results["skipped"]}


def test_rows_of_two_networks_have_two_titles() -> None:
    parts = [{"name": "trained", "path": "runs/multipool"}, {"name": "phash"}]
    assert _title(Choice("extractors", "joined", {"of": parts}), "code", several=False) == "multipool + phash"
    assert _title(Choice("extractors", "trained", parts[0]), "code", several=True) == "multipool code"


def test_a_collection_that_orders_ties_by_the_hash(document: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    with Collection.build(parse_config(document), tmp_path / "x.cbir") as collection:
        file = pictures / "blob" / "03.png"
        stored, hashes = collection._store, PHash()
        with Image.open(file) as picture:
            own = hashes([picture])["phash"]
        (found,) = collection.search([file], k=12)
        ids = np.array([match.id for match in found])
        visual = np.bitwise_count(stored.fetch(ids, "phash") ^ own).sum(axis=1)
        deep = np.array([int(match.distance) for match in found])
        assert found[0].path == "blob/03.png"
        assert found[0].distance == 0
        np.testing.assert_allclose([match.distance for match in found], deep + visual / 65, rtol=1e-6)
        assert [match.distance for match in found] == sorted(match.distance for match in found)
        (by_id,) = collection.search_ids([found[0].id], k=11)
        assert [(m.id, m.distance) for m in by_id] == [(m.id, m.distance) for m in found[1:]]
        (filtered,) = collection.search([file], k=40, where={"label": "checks"})
        assert len(filtered) == 12
        noise(48, 48).save(tmp_path / "new.png")
        collection.add([tmp_path / "new.png"])
        (again,) = collection.search([tmp_path / "new.png"], k=1)
        assert again[0].distance == 0


@pytest.mark.slow
def test_a_joined_network_is_frozen_whole(document: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    joined = {"name": "joined", "of": [NETWORK, {"name": "phash"}]}
    document["extractors"] = [joined]
    Collection.build(parse_config(document), tmp_path / "x.cbir").close()
    moved = (tmp_path / "x.cbir").rename(tmp_path / "y.cbir")
    with Collection.open(moved) as collection:
        frozen = collection.manifest.extractor
        assert frozen is not None
        assert [part["name"] for part in frozen.options["of"]] == ["onnx", "phash"]
        assert frozen.options["of"][0]["model"] == "0/model.onnx"
        assert not collection.verify()
        (found,) = collection.search([pictures / "checks" / "07.png"], k=1)
        assert found[0].path == "checks/07.png"
        with pytest.raises(InputError, match="needs 'phash' of 1 queries, got none"):
            collection.search(np.zeros((1, collection.manifest.dim), np.float32))


def test_a_build_without_hashes_or_codes_is_one_clear_error(document: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs 'phash' of the items, the extractor gives embedding"):
        Collection.build(parse_config({**document, "extractors": [HOG]}), tmp_path / "x")
    floats_only = {**document, "codecs": [{"name": "raw"}], "backends": [{"name": "faiss-flat"}]}
    with pytest.raises(ConfigError, match=r"rescore\.0\.name: 'phash' reads binary codes, which codec 'raw' does not"):
        Collection.build(parse_config(floats_only), tmp_path / "x")
    assert not (tmp_path / "x").exists()
