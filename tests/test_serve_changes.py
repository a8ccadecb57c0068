"""The server while its collections change, by itself and by others; the command, and the clients."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from _serving import TOKEN, Serving, problem, serving, until
from click.testing import CliRunner, Result
from PIL import Image

import cbir_faiss as cf
from cbir_faiss.cli import main
from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import BadImage, CbirError, ConfigError, CorruptCollection, InputError, UnknownId
from cbir_faiss.serve.app import as_json
from cbir_faiss.serve.asking import Asking
from cbir_faiss.serve.client import connect
from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.live import Live
from cbir_faiss.serve.photos import collection_of
from cbir_faiss.serve.uploads import Uploads
from cbir_faiss.storage.lock import LOCK

COLOURS = ("red", "green", "blue", "black", "orange")


def photo(colour: str, size: int = 20) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for name in COLOURS:
        (root / f"{name}.png").write_bytes(photo(name))
    return root


def document(photos: Path) -> dict[str, object]:
    return {
        "source": {"name": "folder", "root": str(photos)},
        "extractors": [{"name": "histogram"}],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat"}],
    }


@pytest.fixture
def folder(photos: Path) -> Path:
    Collection.build(parse_config(document(photos)), photos.with_name("c.cbir")).close()
    return photos.with_name("c.cbir")


def count(served: Serving) -> int | None:
    return next(one["items"] for one in served.get("collections")["collections"])


def post(served: Serving, *pictures: bytes) -> httpx.Response:
    files = [("image", ("x", content)) for content in pictures]
    return served.client.post("/api/v1/collections/c/items", files=files)


# -- others change it


def test_what_others_add_and_delete_is_served_without_a_gap(folder: Path, photos: Path) -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def ask(served: Serving) -> None:
        with httpx.Client(base_url=served.url, headers=served.client.headers, trust_env=False) as client:
            while not stop.is_set():
                body = {"ids": [0], "k": 10}
                statuses.append(client.post("/api/v1/collections/c/search", json=body).status_code)

    with serving(folder) as served:
        asking = threading.Thread(target=ask, args=(served,))
        asking.start()
        try:
            for number in range(5):
                (photos / f"{number}.png").write_bytes(photo("white", 21 + number))
                with Collection.open(folder) as collection:
                    collection.add([photos])
                until(lambda n=number: count(served) == 6 + n)
            with Collection.open(folder) as collection:
                collection.delete([1, 2])
            until(lambda: count(served) == 8)
        finally:
            stop.set()
            asking.join()
        assert set(statuses) == {200}
        served.problem("GET", "collections/c/items/1", 404)


def test_a_request_ends_on_the_generation_that_it_began_with(folder: Path) -> None:
    with serving(folder) as served:
        live = served.server.api.collections["c"]
        with live.generation() as old, Collection.open(folder) as collection:
            collection.delete([0])
            until(lambda: count(served) == 4)
            assert len(old.collection) == 5
            assert old.collection.search_ids([0], 1)[0], "its files are open still"
        with pytest.raises(Exception, match="exchanged"), old.held():
            pass


def test_a_collection_that_is_removed_is_said_and_comes_back(folder: Path, tmp_path: Path) -> None:
    with serving(folder) as served:
        folder.rename(tmp_path / "aside")
        detail = until(lambda: _refused(served))
        assert "was removed" in detail
        assert served.client.get("/healthz").status_code == 200
        assert served.client.get("/readyz").status_code == 503
        assert count(served) is None
        (tmp_path / "aside").rename(folder)
        until(lambda: served.client.get("/readyz").status_code == 200)
        assert served.search("c", ids=[0])


def test_a_collection_that_is_damaged_is_said_and_read_no_more(folder: Path) -> None:
    """To read a mapped file that was cut short would end the process."""
    with serving(folder) as served:
        codes = next(folder.rglob("codes.npy"))
        content = codes.read_bytes()
        os.truncate(codes, 200)
        assert "manifest says" in until(lambda: _refused(served))
        codes.unlink()
        codes.write_bytes(content)
        until(lambda: _refused(served) is None)
        (folder / "CURRENT").write_text("nonsense")
        assert "cannot be served" in until(lambda: _refused(served))
        assert served.client.get("/healthz").status_code == 200


def test_another_collection_in_its_place_is_served_instead(folder: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("red", "green"):
        (photos / f"{name}.png").unlink()
    other = document(photos) | {"extractors": [{"name": "hog", "size": 16}]}
    Collection.build(parse_config(other), tmp_path / "other").close()
    with serving(folder) as served:
        assert _upload(served, photo("blue")).status_code == 200
        folder.rename(tmp_path / "aside")
        (tmp_path / "other").rename(folder)
        until(lambda: count(served) == 3)
        assert _upload(served, photo("blue")).status_code == 200, "by its own extractor"


def _upload(served: Serving, content: bytes) -> httpx.Response:
    return served.client.post("/api/v1/collections/c/search", files=[("image", ("x", content))])


def _refused(served: Serving) -> str | None:
    answer = served.client.post("/api/v1/collections/c/search", json={"ids": [0]})
    return None if answer.status_code == 200 else problem(answer, 503)


def test_a_missing_original_is_said_and_has_a_placeholder(folder: Path, photos: Path) -> None:
    (photos / "green.png").unlink()
    with serving(folder) as served:
        hits = served.search("c", ids=[0], k=5)[0]
        gone = {hit["path"]: hit["missing"] for hit in hits}
        assert gone["green.png"]
        assert not gone["red.png"]
        item = next(hit["id"] for hit in hits if hit["missing"])
        thumb = served.client.get(f"/api/v1/collections/c/items/{item}/thumb")
        assert thumb.headers["content-type"].startswith("image/svg")
        assert thumb.headers["cache-control"] == "no-store"
        served.problem("GET", f"collections/c/items/{item}/image", 404)
        (photos / "green.png").write_bytes(photo("green"))
        assert served.client.get(f"/api/v1/collections/c/items/{item}/thumb").headers["content-type"] == "image/jpeg"


# -- it changes them


def uploaded(collection: Path) -> list[bytes]:
    """The pictures that are kept, but not the file by which servers wait for each other."""
    kept = collection.parent / "c.uploads"
    return sorted(path.read_bytes() for path in kept.iterdir() if path.name != LOCK) if kept.exists() else []


def test_what_is_uploaded_is_found_and_what_is_deleted_is_not(folder: Path, photos: Path) -> None:
    with serving(folder, write=True) as served:
        done = post(served, photo("white"), photo("yellow"), photo("white")).json()
        assert done["added"] == 2
        assert done["ids"] == [done["ids"][0], done["ids"][1], done["ids"][0]]
        assert uploaded(folder) == sorted([photo("white"), photo("yellow")])
        assert served.get("collections/c")["write"] is True
        assert _upload(served, photo("white")).json()["results"][0][0]["id"] == done["ids"][0]
        again = post(served, photo("white")).json()
        assert (again["ids"], again["added"]) == ([done["ids"][0]], 0)
        gone = served.client.delete(f"/api/v1/collections/c/items/{done['ids'][0]}").json()
        assert gone == {"deleted": 1, "items": 6}
        assert uploaded(folder) == [photo("yellow")]
        served.problem("DELETE", f"collections/c/items/{done['ids'][0]}", 404)
        back = post(served, photo("white")).json()
        assert back["added"] == 1, "what was deleted may be uploaded again"
        assert served.client.delete("/api/v1/collections/c/items/0").status_code == 200
        assert len(list(photos.iterdir())) == len(COLOURS), "no file of the user's is ever removed"


def test_nothing_is_changed_unless_that_was_allowed(folder: Path) -> None:
    with serving(folder) as served:
        assert "--write" in problem(post(served, photo("white")), 403)
        served.problem("DELETE", "collections/c/items/0", 403)
    assert not (folder.parent / "c.uploads").exists()


def test_an_upload_that_cannot_be_added_leaves_nothing(folder: Path) -> None:
    with serving(folder, write=True) as served:
        assert "image 2" in problem(post(served, photo("white"), b"nothing"), 422)
        problem(served.client.post("/api/v1/collections/c/items", json={}), 415)
        problem(post(served), 415)
        files = [("image", ("x", photo("white")))]
        problem(served.client.post("/api/v1/collections/c/items", files=files, data={"label": "a"}), 422)
        assert count(served) == 5
    assert not uploaded(folder)


def test_two_who_write_at_once_both_do(folder: Path) -> None:
    with serving(folder, write=True) as served:
        done: list[int] = []

        def add(number: int) -> None:
            with httpx.Client(
                base_url=served.url, headers=served.client.headers, timeout=60, trust_env=False
            ) as client:
                files = [("image", ("x", photo("white", 30 + number)))]
                done.append(client.post("/api/v1/collections/c/items", files=files).status_code)

        threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done == [200] * 4
        assert count(served) == 9


def test_a_change_that_takes_long_goes_on_and_the_next_one_waits_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, began = threading.Event(), []
    add, delete = Uploads.add, Uploads.delete

    def slowly(change: Any) -> Any:
        def slow(self: Uploads, *given: Any) -> Any:
            began.append(change)
            assert go.wait(60)
            return change(self, *given)

        return slow

    monkeypatch.setattr(Uploads, "add", slowly(add))
    monkeypatch.setattr(Uploads, "delete", slowly(delete))
    with serving(folder, write=True, limits=Limits(seconds=1.0)) as served:
        assert "it goes on: ask the same again" in problem(post(served, photo("white")), 503)
        assert "nothing was done" in served.problem("DELETE", "collections/c/items/0", 503)
        go.set()
        until(lambda: count(served) == 6)
        again = until(lambda: (answer := post(served, photo("white"))).status_code == 200 and answer.json())
        assert again["added"] == 0
        assert served.client.get("/api/v1/collections/c/items/0").status_code == 200
        go.clear()
        assert "it goes on" in served.problem("DELETE", "collections/c/items/0", 503)
        began.clear()
        go.set()
        until(lambda: count(served) == 5)
        until(lambda: served.client.delete("/api/v1/collections/c/items/0").status_code == 404)
        go.clear()
        assert "it goes on" in problem(post(served, photo("yellow")), 503)
        threading.Timer(0.2, go.set).start()
    with Collection.open(folder) as collection:
        assert len(collection) == 6, "the end waits for what is being written"


def test_a_change_that_fails_late_keeps_what_is_an_item(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def added(opened: Collection, paths: Any) -> Any:
        real(opened, paths[:1])
        raise CbirError("a fault, when one of them was an item already")

    real = Collection.add
    uploads = Uploads.beside(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Collection, "add", added)
        with pytest.raises(CbirError, match="a fault"):
            uploads.add(folder, [(photo("white"), "PNG"), (photo("yellow"), "PNG")])
    assert uploaded(folder) == [photo("white")]
    assert uploads.add(folder, [(photo("white"), "PNG"), (photo("yellow"), "PNG")])[1] == 1


def test_what_another_server_adds_while_it_is_deleted_keeps_its_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    white = [(photo("white"), "PNG")]
    ids, *_ = Uploads.beside(folder).add(folder, white)
    real = Collection.delete

    def late(opened: Collection, items: Any) -> Any:
        """Between an item's end and its file's, another server is given the same picture."""
        deleted = real(opened, items)
        assert Uploads.beside(folder).add(folder, white)[1] == 1
        return deleted

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "delete", late)
        Uploads.beside(folder).delete(folder, ids[0])
    assert uploaded(folder) == [photo("white")]


@pytest.mark.parametrize("name", ["räder & söhne", "a b%2fc", "-x?y#z", "日本"])
def test_a_collection_of_any_name_is_found_by_it(folder: Path, name: str) -> None:
    strange = folder.rename(folder.with_name(f"{name}.cbir"))
    with serving(strange) as served:
        assert served.get("collections")["collections"][0]["name"] == name
        with connect(f"{served.url}/{quote(name)}", token=TOKEN) as there:
            assert len(there) == 5
        with connect(served.url, token=TOKEN) as alone:
            assert len(alone.search_ids([0], 2)[0]) == 2
        assert "cbir_collection_items" in served.client.get("/metrics").text


def test_payload_of_every_kind_is_told_as_it_is(photos: Path, tmp_path: Path) -> None:
    with Collection.build(parse_config(document(photos)), tmp_path / "odd.cbir") as collection:
        vector = collection.embeddings([0])
        collection.add_vectors(vector, [{"path": "x ü", "label": "a", "score": 1.5}])
        collection.add_vectors(vector, [{"path": "y", "label": ["a", "b"], "deep": {"a": [1]}}])
    with serving(tmp_path / "odd.cbir") as served:
        item = served.get("collections/odd/items/5")
        assert (item["payload"], item["path"], item["missing"]) == ({"score": 1.5}, "x ü", True)
        item = served.get("collections/odd/items/6")
        assert (item["payload"], item["label"]) == ({"deep": {"a": [1]}}, ["a", "b"])
        assert served.get("collections/odd/facets")["fields"]["label"] == [["a", 2], ["b", 1]]
        assert served.search("odd", ids=[0], k=1)[0][0]["path"] == "x ü"


def test_a_number_that_is_none_is_null() -> None:
    assert json.loads(as_json({"a": [float("nan"), 1.5], "b": float("inf")})) == {"a": [None, 1.5], "b": None}


# -- what fails is said, and closed all the same


def test_what_fails_before_the_first_request_is_logged_and_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[Collection] = []
    close = Collection.close
    monkeypatch.setattr(Collection, "close", lambda self: (closed.append(self), close(self)))
    monkeypatch.setattr(Asking, "by_pictures", lambda *_: 1 / 0)
    with serving(folder, warming=True) as served:
        until(lambda: "not loaded before" in caplog.text)
        assert served.search("c", ids=[0])
        collection = served.server.api.collections["c"]._current.collection
    assert collection in closed
    assert "ZeroDivisionError" in caplog.text


def test_a_fault_beside_the_requests_is_logged_and_all_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(folder) as served:
        looked: list[Live] = []
        monkeypatch.setattr(Live, "look", lambda live: (looked.append(live), 1 / 0))
        until(lambda: looked)
    assert "ZeroDivisionError" in caplog.text
    assert served.server.api.collections["c"]._current is None


def test_a_new_generation_that_fails_to_open_is_said_and_tried_again(
    folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(folder) as served:
        with monkeypatch.context() as patch:
            patch.setattr(Live, "_opened", lambda _: 1 / 0)
            with Collection.open(folder) as collection:
                collection.delete([0])
            assert "division by zero" in until(lambda: _refused(served))
        assert "ZeroDivisionError" in caplog.text
        until(lambda: count(served) == 4)


# -- its clients


def test_connect_answers_as_the_collection_does(folder: Path, photos: Path) -> None:
    with serving(folder, write=True) as served, Collection.open(folder) as here:
        with connect(f"{served.url}/c", token=TOKEN) as there:
            assert len(there) == 5
            for queries in (
                [photos / "red.png", str(photos / "blue.png")],
                [Image.new("RGB", (20, 20), "green")],
                here.embeddings([1, 2]),
                list(here.embeddings([3])),
            ):
                assert _told(there.search(queries, 3)) == _told(here.search(queries, 3))
            assert _told(there.search_ids([0, 1], 2, 'path != "blue.png"')) == _told(
                here.search_ids([0, 1], 2, 'path != "blue.png"')
            )
            assert there.search_ids(range(5), 1, rescore="exact")
            assert there.documents([0, 1]) == here.documents([0, 1])
            many = np.repeat(here.embeddings([0]), 150, 0)
            assert len(there.search(many, 1)) == 150
            (photos.parent / "new.png").write_bytes(photo("white"))
            ids = there.add([photos.parent / "new.png"])
            assert len(there) == 6
            assert there.delete(ids) == 1
            with pytest.raises(UnknownId, match="99"):
                there.search_ids([99])
            with pytest.raises(InputError, match="k: must be"):
                there.search_ids([0], 0)
            with pytest.raises(BadImage, match="No such file"):
                there.search([photos / "none.png"])
            with pytest.raises(InputError, match="image 1 cannot be used"):
                there.search([__file__])
            with pytest.raises(InputError, match="a path, an image or a vector"):
                there.search([5])
        with cf.connect(served.url, token=TOKEN) as alone:
            assert len(alone) == 5
        with pytest.raises(CbirError, match="no token"):
            connect(served.url)
        with pytest.raises(UnknownId, match="no collection 'd'"):
            connect(f"{served.url}/d", token=TOKEN)


def _told(found: list[list[cf.Match]]) -> list[list[tuple[object, ...]]]:
    return [[(m.id, m.path, m.label, pytest.approx(m.distance, abs=1e-5)) for m in some] for some in found]


def test_connect_says_who_does_not_answer() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(CbirError, match=f"http://127.0.0.1:{port} does not answer"):
        connect(f"http://127.0.0.1:{port}")
    for wrong in ("photos.cbir", "ftp://x", "http://", "http://x:y"):
        with pytest.raises(ConfigError):
            connect(wrong)


def cbir(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env=environment)


def test_search_takes_an_address(folder: Path, photos: Path) -> None:
    with serving(folder) as served:
        there = cbir("search", f"{served.url}/c", photos / "red.png", "-k", 2, "--json", CBIR_TOKEN=TOKEN)
        assert there.exit_code == 0, there.output
        found = json.loads(there.stdout)[0]
        assert found[0]["path"] == "red.png"
        assert set(found[0]) >= {"id", "path", "label", "distance"}
        refused = cbir("search", served.url, photos / "red.png", CBIR_TOKEN="wrong")
        assert refused.exit_code == 1
        assert "no token" in refused.stderr
        assert cbir("search", served.url, "--id", 77, CBIR_TOKEN=TOKEN).exit_code == 1


# -- the command


@contextlib.contextmanager
def command(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`cbir serve` in a process of its own, and the link that it prints."""
    words = [sys.executable, "-m", "cbir_faiss.cli", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        yield process, link
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("told", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_command_prints_one_link_and_ends_well(folder: Path, told: signal.Signals) -> None:
    with command(folder, "--log-json") as (process, link):
        base = link.split("/?")[0]
        with httpx.Client(base_url=base, trust_env=False) as browser:
            assert until(lambda: _opened(browser, link)) == 303
            assert browser.get("/api/v1/collections/c").json()["items"] == 5
            process.send_signal(told)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in said.splitlines()]
    assert {"method": "GET", "status": 200, "path": "/api/v1/collections/c"}.items() <= lines[-1].items()
    assert "token=" not in "".join(map(str, lines)), "what opens the page stands in no log"


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_the_other_loopback_is_served_too(folder: Path) -> None:
    with command(folder, "--host", "::1") as (_, link):
        assert link.startswith("http://[::1]:")
        with httpx.Client(base_url=link.split("/?")[0], trust_env=False) as browser:
            assert until(lambda: _opened(browser, link)) == 303
            assert browser.get("/api/v1/collections/c").json()["items"] == 5


def test_what_is_being_asked_is_answered_before_the_end(folder: Path) -> None:
    token, body = "t" * 20, b'{"ids": [0], "k": 2}'
    head = f"POST /api/v1/collections/c/search HTTP/1.1\r\nAuthorization: Bearer {token}\r\nHost: "
    with command(folder, "--token", token) as (process, link):
        address = link.removeprefix("http://").split("/")[0]
        host, port = address.split(":")
        httpx.get(f"http://{address}/readyz", trust_env=False).raise_for_status()
        with socket.create_connection((host, int(port)), timeout=60) as asking:
            rest = f"{address}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            asking.sendall((head + rest).encode() + body[:5])
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            asking.sendall(body[5:])
            answer = b"".join(iter(lambda: asking.recv(1 << 16), b""))
        process.communicate(timeout=60)
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["results"][0]) == 2
    assert process.returncode == 0


@pytest.mark.slow
def test_decoders_end_with_a_server_that_was_killed(folder: Path) -> None:
    with command(folder, "--token", TOKEN) as (process, link):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=link.split("/?")[0], headers=headers, timeout=60, trust_env=False) as client:
            until(lambda: _opened(client, "/readyz") == 200)
            files = [("image", ("x", photo("white")))]
            assert client.post("/api/v1/collections/c/search", files=files).status_code == 200
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        process.kill()
        process.wait()
        until(lambda: not any(_runs(number) for number in children))


def _runs(number: str) -> bool:
    """Whether a process is there, and no mere entry of one that has ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _opened(browser: httpx.Client, link: str) -> int:
    try:
        return browser.get(link).status_code
    except httpx.TransportError:
        return 0


def test_two_commands_and_a_folder_of_photos_is_served(photos: Path, tmp_path: Path) -> None:
    from cbir_faiss.cli.starting import defaults_of
    from cbir_faiss.serve.photos import follow

    collection, done = follow(photos, defaults_of)
    assert collection == tmp_path / "photos.cbir"
    assert done.items == 5
    (photos / "white.png").write_bytes(photo("white"))
    (photos / "red.png").unlink()
    _, done = follow(photos, defaults_of)
    assert done.items == 5
    with Collection.open(collection) as opened:
        assert {opened.documents([hit.id])[0]["path"] for hit in opened.search_ids([1], 9)[0]} >= {"white.png"}
    moved = tmp_path / "elsewhere" / "photos"
    moved.mkdir(parents=True)
    shutil.copytree(collection, tmp_path / "elsewhere" / "photos.cbir")
    with pytest.raises(CbirError, match="is the collection of"):
        follow(moved, defaults_of)


def test_a_folder_that_cannot_be_written_beside_has_its_collection_with_the_users_data(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert collection_of(photos).parent == tmp_path / "data" / "cbir_faiss"
    other = tmp_path / "other" / "photos"
    assert collection_of(photos) != collection_of(other), "two folders of one name"


@pytest.mark.parametrize(("name", "words"), [("empty", "no image file"), ("broken.cbir", "its build did not finish")])
def test_what_cannot_be_served_is_one_line(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).mkdir()
    result = cbir("serve", tmp_path / name)
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_nothing_is_built_for_an_address_that_cannot_be_served(pictures: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        for options in (["--port", taken.getsockname()[1]], ["--host", "0.0.0.0"]):
            assert cbir("serve", pictures, *options).exit_code in (1, 2)
    assert [path.name for path in pictures.parent.iterdir()] == [pictures.name]


def test_other_addresses_and_ports_in_use_are_one_line(folder: Path) -> None:
    result = cbir("serve", folder, "--host", "0.0.0.0")
    assert (result.exit_code, "--token" in result.stderr) == (2, True)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        result = cbir("serve", folder, "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert "is in use: choose another --port" in result.stderr
    assert cbir("serve", folder, "--port", 70000).exit_code == 2
    assert cbir("serve", folder, "--host", "no.such.host.example", "--token", "t").exit_code == 1
    with pytest.raises(CorruptCollection):
        Collection.open(folder.parent)
