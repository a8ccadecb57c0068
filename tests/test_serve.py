"""The server's answers: search, items, pictures, facets, duplicates, the map and runs, over a real socket."""

from __future__ import annotations

import io
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from _rows import raw
from _serving import Serving, problem, serving, until
from PIL import Image

from cbir_faiss.collection import Collection, recalled
from cbir_faiss.config import parse_config
from cbir_faiss.serve import plane
from cbir_faiss.serve.asking import Asking
from cbir_faiss.serve.plane import _learnt
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Floats


def build(pictures: Path, out: Path, codec: dict[str, object], backend: str, rescore: str) -> Path:
    document = {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "hog", "size": 32}],
        "codecs": [codec],
        "backends": [{"name": backend}],
        "rescore": [{"name": rescore}],
    }
    Collection.build(parse_config(document), out).close()
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all of it is, the cache too: fixtures of a module come before those of a test."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CBIR_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Serving]:
    """Three collections of the same pictures: codes with floats, codes alone, floats alone; and a run."""
    root = make_pictures(place / "pictures")
    lsh = {"name": "lsh", "bits": 32}
    both = build(root, place / "both.cbir", lsh, "faiss-binary-flat", "float")
    codes = build(root, place / "codes.cbir", lsh, "faiss-binary-flat", "none")
    floats = build(root, place / "floats.cbir", {"name": "raw"}, "faiss-flat", "none")
    run = place / "demo"
    run.mkdir()
    (run / "results.json").write_text(json.dumps({"environment": {}, "rows": [raw().as_json()]}))
    (run / "report.html").write_text("<!doctype html><title>report</title>")
    with serving(both, codes, floats, runs=(run,)) as server:
        yield server


def make_pictures(root: Path) -> Path:
    """Two classes of eight pictures, stripes and blobs, and one picture twice."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    for name, pattern in {"stripes": (x // 5) % 2, "blob": ((x - 20) ** 2 + (y - 20) ** 2 < 150) * 1}.items():
        (root / name).mkdir(parents=True)
        for i in range(8):
            pixels = 60 + 140 * np.roll(pattern, i, axis=1)[..., None] + rng.normal(0, 8, (40, 40, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    (root / "blob" / "copy ü.png").write_bytes((root / "blob" / "0.png").read_bytes())
    return root


def picture(place: Path, name: str = "blob/3.png") -> bytes:
    return (place / "pictures" / name).read_bytes()


def upload(served: Serving, name: str, *pictures: bytes, **fields: object) -> httpx.Response:
    files = [("image", (f"{i}.png", content)) for i, content in enumerate(pictures)]
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    return served.client.post(f"/api/v1/collections/{name}/search", files=files, data=texts)


def test_collections_are_listed_by_their_names(served: Serving) -> None:
    listed = served.get("collections")["collections"]
    assert [(one["name"], one["items"]) for one in listed] == [("both", 17), ("codes", 17), ("floats", 17)]


@pytest.mark.parametrize("name", ["both", "codes", "floats"])
@pytest.mark.parametrize("where", [None, 'label = "blob"', {"label": {"in": ["stripes"]}}])
def test_a_search_finds_what_the_library_does(served: Serving, place: Path, name: str, where: object) -> None:
    with Collection.open(place / f"{name}.cbir") as collection:
        expected = collection.search_ids([0, 9], 4, where)  # type: ignore[arg-type]
        by_file = collection.search([place / "pictures" / "blob" / "3.png"], 4, where)  # type: ignore[arg-type]
    found = served.search(name, ids=[0, 9], k=4, where=where)
    assert [[hit["id"] for hit in hits] for hits in found] == [[match.id for match in some] for some in expected]
    first, best = found[0][0], expected[0][0]
    assert (first["path"], first["label"], first["missing"]) == (best.path, best.label, False)
    assert first["distance"] == pytest.approx(best.distance, abs=1e-6)
    assert first["relevant"] is None
    fields = {} if where is None else {"where": where}
    uploaded = upload(served, name, picture(place), k=4, **fields)
    assert [hit["id"] for hit in uploaded.json()["results"][0]] == [match.id for match in by_file[0]]


def test_pictures_and_vectors_in_one_request_are_queries_of_their_own(served: Serving, place: Path) -> None:
    results = upload(served, "both", picture(place), picture(place, "stripes/1.png"), k=1).json()["results"]
    assert [hits[0]["path"] for hits in results] == ["blob/3.png", "stripes/1.png"]
    with Collection.open(place / "both.cbir") as collection:
        vectors = collection.embeddings([3, 12])
    found = served.search("both", vectors=vectors.tolist(), k=1)
    assert [hits[0]["id"] for hits in found] == [3, 12]


def test_the_same_query_by_code_rescored_and_exactly(served: Serving, place: Path) -> None:
    with Collection.open(place / "floats.cbir") as collection:
        floats = collection.embeddings(range(17))
    centred = floats - floats.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    near = np.argsort(1 - centred @ centred[2], kind="stable")
    exact = served.search("both", ids=[2], k=5, rescore="exact")[0]
    assert [hit["id"] for hit in exact] == [i for i in near.tolist() if i != 2][:5]
    code = served.search("both", ids=[2], k=5, rescore="none")[0]
    assert all(hit["distance"] == int(hit["distance"]) for hit in code), "bits"
    assert served.search("both", ids=[2], k=5)[0] == exact, "every item is a candidate of so few"
    assert served.search("floats", ids=[2], k=5, rescore="exact")[0] == served.search("floats", ids=[2], k=5)[0]
    only = served.search("both", ids=[2], k=50, rescore="exact", where='label = "stripes"')[0]
    assert {hit["label"] for hit in only} == {"stripes"}
    assert len(only) == 8
    assert served.search("both", ids=[2], rescore="exact", where='label = "none"') == [[]]
    detail = served.problem("POST", "collections/codes/search", 422, json={"ids": [2], "rescore": "exact"})
    assert "no floats" in detail


def test_several_queries_combined_lead_towards_the_liked_and_away_from_the_unlike(served: Serving, place: Path) -> None:
    both = served.search("both", ids=[1, 2, 3], combine=True, k=4)
    assert len(both) == 1
    assert not {hit["id"] for hit in both[0]} & {1, 2, 3}, "it does not find what it is made of"
    assert {hit["label"] for hit in both[0]} == {"blob"}
    mixed = served.search("both", ids=[1, 10], combine=True, unlike=[11, 12], k=6)[0]
    assert {hit["label"] for hit in mixed[:3]} == {"blob"}
    with_picture = upload(served, "both", picture(place), combine=True, ids=[2], unlike=[12], k=3)
    assert {hit["label"] for hit in with_picture.json()["results"][0]} == {"blob"}
    one = upload(served, "codes", picture(place), picture(place, "blob/4.png"), combine=True, k=2).json()["results"]
    assert len(one) == 1, "uploads need no stored floats"
    asked = {"ids": [1, 2], "combine": True}
    assert "no floats" in served.problem("POST", "collections/codes/search", 422, json=asked)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "give ids, vectors, or pictures"),
        ({"ids": [1], "vectors": [[1.0]]}, "one kind at a time"),
        ({"ids": [1], "k": 0}, "k: must be greater"),
        ({"ids": [1], "k": 1001}, "k: must be less"),
        ({"ids": [1], "k": "5"}, "k: must be a valid integer"),
        ({"ids": "1"}, "ids: must be a valid array"),
        ({"ids": [-1]}, "ids.0: must be greater"),
        ({"ids": [1.5]}, "ids.0"),
        ({"ids": [True]}, "ids.0"),
        ({"ids": [0] * 101}, "ids: List should have at most 100"),
        ({"vectors": [[1.0, 2.0]]}, "dimensions|width"),
        ({"vectors": [[1.0], [1.0, 2.0]]}, "same width"),
        ({"vectors": [[1e39] * 3]}, "float32"),
        ({"vectors": [[]]}, "vectors.0"),
        ({"vectors": [["x"]]}, "vectors.0.0"),
        ({"ids": [1], "where": "label ="}, "filter"),
        ({"ids": [1], "where": {"label": [1]}}, "filter"),
        ({"ids": [1], "where": 5}, "where"),
        ({"ids": [1], "where": "not " * 30 + "a = 1"}, "nested at most 20"),
        ({"ids": [1], "rescore": "best"}, "rescore"),
        ({"ids": [1], "unlike": [2]}, "combine"),
        ({"ids": [1], "ks": 5}, "ks: Extra inputs"),
    ],
)
def test_what_cannot_be_asked_is_said(served: Serving, body: object, words: str) -> None:
    detail = served.problem("POST", "collections/both/search", 422, json=body)
    assert any(word in detail for word in words.split("|")), detail


def test_unknown_things_are_not_found(served: Serving) -> None:
    assert "99" in served.problem("POST", "collections/both/search", 404, json={"ids": [0, 99]})
    assert "there are both, codes" in served.problem("GET", "collections/none", 404)
    for path in ("items/99", "items/99/thumb", "items/99/image", f"items/{1 << 70}", "items/-1", "items/x", "nothing"):
        served.problem("GET", f"collections/both/{path}", 404)
    served.problem("GET", "runs/none", 404)
    served.problem("PUT", "collections/both", 405)
    problem(served.client.get("/nothing"), 404)


def test_a_bad_query_does_not_spoil_those_it_came_with(served: Serving) -> None:
    statuses: list[int] = []

    def ask(item: int) -> None:
        body = {"ids": [item], "k": 3}
        statuses.append(served.client.post("/api/v1/collections/both/search", json=body).status_code)

    threads = [threading.Thread(target=ask, args=(item,)) for item in [0, 1, 99, 2, 3, 98] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 16 + [404] * 8


def test_items_are_listed_by_pages_and_filters(served: Serving, place: Path) -> None:
    page = served.get("collections/both/items", params={"offset": 2, "limit": 3})
    assert page["total"] == 17
    assert [item["id"] for item in page["items"]] == [2, 3, 4]
    some = served.get("collections/both/items", params={"where": 'label = "stripes"'})
    assert {item["label"] for item in some["items"]} == {"stripes"}
    assert some["total"] == 8
    assert served.get("collections/both/items", params={"offset": 100})["items"] == []
    for wrong in ({"limit": 0}, {"limit": "x"}, {"offset": -1}, {"where": "label ="}, {"what": 1}):
        served.problem("GET", "collections/both/items", 422, params=wrong)
    item = served.get(f"collections/both/items/{page['items'][0]['id']}")
    assert item["missing"] is False
    assert item["payload"] == {}


def test_thumbnails_are_made_once_and_kept(served: Serving, place: Path) -> None:
    first = served.client.get("/api/v1/collections/both/items/0/thumb", params={"size": 24})
    assert first.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(first.content)) as image:
        assert max(image.size) == 24
    tag = first.headers["etag"]
    again = served.client.get(first.request.url, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert len(list((place / "cache" / "thumbs").rglob("*.jpg"))) == 1
    served.problem("GET", "collections/both/items/0/thumb", 422, params={"size": 5000})


def test_an_original_is_sent_as_a_browser_can_show_it(served: Serving, place: Path) -> None:
    answer = served.client.get("/api/v1/collections/both/items/1/image")
    assert answer.headers["content-type"] == "image/png"
    path = served.get("collections/both/items/1")["path"]
    assert answer.content == picture(place, path)


def test_facets_count_labels_under_a_filter(served: Serving) -> None:
    assert served.get("collections/both/facets") == {"fields": {"label": [["blob", 9], ["stripes", 8]]}}
    some = served.get("collections/both/facets", params={"where": 'label = "blob"'})
    assert some == {"fields": {"label": [["blob", 9]]}}


def test_duplicates_are_copies_and_look_alikes(served: Serving) -> None:
    found = served.get("collections/both/duplicates")
    assert [[one["path"] for one in group] for group in found["exact"]] == [["blob/0.png", "blob/copy ü.png"]]
    wide = served.get("collections/both/duplicates", params={"radius": 32})
    assert len(wide["alike"]) == 1
    served.problem("GET", "collections/both/duplicates", 422, params={"radius": -1})
    served.problem("GET", "collections/floats/duplicates", 422, params={"radius": 1})


@pytest.mark.parametrize("name", ["both", "codes", "floats"])
def test_the_map_has_a_place_for_each_item(served: Serving, name: str) -> None:
    found = served.get(f"collections/{name}/map")
    assert sorted(found["ids"]) == list(range(17))
    assert max(map(abs, [*found["x"], *found["y"]])) == 1.0
    few = served.get(f"collections/{name}/map", params={"points": 5})
    assert (len(few["ids"]), len(few["x"]), few["total"]) == (5, 5, 17)
    labels = {one["id"]: one["label"] for one in served.get(f"collections/{name}/items")["items"]}
    assert [found["labels"][number] for number in found["label"]] == [labels[item] for item in found["ids"]]


def test_the_map_is_by_umap_where_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of that name, in place of the real one where there is none: what it is given, and that it is said."""
    x = np.random.default_rng(0).standard_normal((150, 6), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    document = {
        "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat"}],
    }
    Collection.build(parse_config(document), tmp_path / "x.cbir").close()
    asked: list[dict[str, object]] = []

    class UMAP:
        def __init__(self, **options: object) -> None:
            asked.append(options)

        def fit(self, rows: Floats) -> UMAP:
            self.embedding_ = rows[:, 2:4] + np.float32(7)
            return self

    def places() -> tuple[str, Floats]:
        with serving(tmp_path / "x.cbir") as server:
            found = server.get("collections/x/map")
            assert len(server.get("collections/x/map", params={"points": 20})["x"]) == 20
        return found["how"], np.column_stack([found["x"], found["y"]])

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    how, xy = places()
    assert (how, asked) == ("umap", [{"n_components": 2, "random_state": 0, "n_jobs": 1}]), (
        "too few have neighbourhoods"
    )
    middle = x[:, 2:4] - (x[:, 2:4].max(axis=0) + x[:, 2:4].min(axis=0)) / 2
    np.testing.assert_allclose(xy, middle / np.abs(middle).max(axis=0), atol=1e-3)
    monkeypatch.setitem(sys.modules, "umap", None)  # not installed, or not to be imported
    how, axes = places()
    assert (how, np.abs(axes).max()) == ("axes", 1.0)


@pytest.mark.parametrize("shape", [(50, 12), (40, 70), (30, 30), (2, 9), (5, 1)])
def test_the_axes_are_those_in_which_the_rows_differ_most(shape: tuple[int, int], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal(shape) * rng.uniform(0.1, 3, shape[1]) + 5).astype(np.float32)
    how, place = _learnt(rows)
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:2]
    expected = np.zeros((len(rows), 2))
    expected[:, : len(directions)] = centred @ directions.T
    places = place(rows)
    signs = np.where((places * expected).sum(axis=0) < 0, -1, 1)
    assert how == "axes"
    np.testing.assert_allclose(places * signs, expected, atol=2e-4)


@pytest.mark.parametrize("name", ["umap", "axes"])
def test_rows_of_any_width_have_a_map(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their covariance would take 29 GB; and no more rows are held at once than is said."""
    wide, most = 62_720, 100

    class UMAP:
        def __init__(self, **_: object) -> None: ...

        def fit(self, rows: Floats) -> UMAP:
            self.embedding_ = rows[:, :2]
            return self

    module = SimpleNamespace(UMAP=UMAP) if name == "umap" else None
    monkeypatch.setitem(sys.modules, "umap", module)
    monkeypatch.setattr(plane, "_NUMBERS", most * wide)
    held, rows_of = [], plane._rows

    def counted(store: Store, ids: Any) -> Floats:
        held.append(len(ids))
        return rows_of(store, ids)

    monkeypatch.setattr(plane, "_rows", counted)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((120, wide), dtype=np.float32))
    document = {
        "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat"}],
    }
    with Collection.build(parse_config(document), tmp_path / "x.cbir") as collection:
        found = plane.plane(collection.store, 1000)
    assert found["how"] == name
    assert len(found["x"]) == 120
    assert max(held) == most


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what it imports and compiles is its own affair
def test_umap_itself_keeps_apart_what_is_apart() -> None:
    """The real one, where it is installed: it is no dependency, since it holds NumPy back."""
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    middles = 20 * rng.standard_normal((3, 8))
    rows = np.concatenate([middle + rng.standard_normal((100, 8)) for middle in middles]).astype(np.float32)
    how, place = _learnt(rows[::2])
    others = place(rows[1::2]).reshape(3, 50, 2)
    spread = np.abs(others - others.mean(axis=1, keepdims=True)).max()
    apart = [np.abs(others[i].mean(axis=0) - others[j].mean(axis=0)).max() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert how == "umap"
    assert min(apart) > spread


def test_what_the_first_pictures_need_is_there_before_they_come(
    served: Serving, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extractor has extracted, the collection was searched, and every decoder runs, but nothing counts as asked."""
    found, search = [], Asking.by_pictures

    def noted(*given: Any) -> Any:
        found.append(search(*given))
        return found[-1]

    monkeypatch.setattr(Asking, "by_pictures", noted)
    with serving(place / "both.cbir", warming=True) as server:
        until(lambda: found)
        decoders = server.server.api.decoders
        assert len(decoders.processes()) == decoders.count
        assert server.get("collections/both")["latency_ms"]["p50"] is None
    assert len(found[0][0][0]) == 1


def test_info_says_what_can_be_asked(served: Serving) -> None:
    served.search("both", ids=[0])
    about = served.get("collections/both")
    assert (about["items"], about["floats"], about["images"], about["write"]) == (17, True, True, False)
    assert about["latency_ms"]["p50"] > 0
    assert served.get("collections/codes")["floats"] is False


def test_info_says_what_recall_found_last(served: Serving, place: Path) -> None:
    assert served.get("collections/floats")["recall"] is None
    told = {"recall": 0.9, "ci95": [0.8, 1.0], "k": 10, "queries": 17}
    recalled.keep(place / "floats.cbir", {**told, "settings": []}, 1)
    assert served.get("collections/floats")["recall"] == {**told, "generation": 1, "current": True}
    recalled.keep(place / "floats.cbir", told, 7)
    assert served.get("collections/floats")["recall"]["current"] is False


def test_runs_are_shown_with_their_report_apart(served: Serving, place: Path) -> None:
    assert served.get("runs")["runs"] == [{"name": "demo", "rows": 1, "report": True, "problem": None}]
    told = served.get("runs/demo")
    assert told["rows"] == json.loads(json.dumps([{**raw().as_json(), "name": "raw, faiss-flat l2"}]))
    assert (told["measure"], told["knn"]) == ("map@5", "knn_recall@10")
    report = served.client.get("/api/v1/runs/demo/report")
    assert "sandbox" in report.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["pictures-0.1", "vectors-0.1"])
def test_collections_of_an_earlier_version_are_served(tmp_path: Path, name: str) -> None:
    shutil.copytree(Path(__file__).parent / "fixtures" / name, tmp_path / "old.cbir")
    with serving(tmp_path / "old.cbir", write=True) as served:
        first = served.get("collections/old/items", params={"limit": 1})["items"][0]["id"]
        assert served.search("old", ids=[first], k=3)[0]
        for path in ("", "/facets", "/map", "/duplicates", f"/items/{first}"):
            assert served.get(f"collections/old{path}")
        assert (
            served.client.get(f"/api/v1/collections/old/items/{first}/thumb")
            .headers["content-type"]
            .startswith("image/")
        )
        uploaded = upload(served, "old", _dot())
        if served.get("collections/old")["images"]:
            assert uploaded.status_code == 200
        else:
            assert "holds vectors" in problem(uploaded, 422)
            files = [("image", ("x", _dot()))]
            assert "holds vectors" in problem(served.client.post("/api/v1/collections/old/items", files=files), 422)
            assert not any((tmp_path / "old.uploads").glob("*.png"))


def _dot() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(out, "PNG")
    return out.getvalue()


def test_the_page_and_its_files_come_from_the_package(served: Serving) -> None:
    page = served.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    again = served.client.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert again.status_code == 304


def test_those_who_watch_it_are_told(served: Serving) -> None:
    served.search("both", ids=[0])
    assert served.client.get("/healthz").text == "ok\n"
    assert served.client.get("/readyz").text == "ready\n"
    text = served.client.get("/metrics").text
    assert 'cbir_requests_total{method="POST",route="/collections/{name}/search",status="200"}' in text
    assert 'cbir_collection_items{collection="both"} 17' in text
