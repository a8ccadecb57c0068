"""Who may ask, and what a hostile request meets: each is refused with its status, and the server goes on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import platform
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from _serving import TOKEN, Serving, problem, serving, until
from PIL import Image

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError, ConfigError
from cbir_faiss.serve import decoder
from cbir_faiss.serve.decoding import Decoders
from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.problems import Problem
from cbir_faiss.serve.safety import HEADERS, Guard
from cbir_faiss.serve.server import Server, Settings

LIMITS = Limits(body=200_000, held=500_000, parts=3, megapixels=1.0)
SEARCH = "/api/v1/collections/small/search"
BODY = {"ids": [0], "k": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("safe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CBIR_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def small(place: Path) -> Path:
    """A collection of three pictures of one colour each, and of one beside them that is not among them."""
    root = place / "pictures"
    root.mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (20, 20), name).save(root / f"{name}.png")
    document = {
        "source": {"name": "folder", "root": str(root)},
        "extractors": [{"name": "histogram"}],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat"}],
    }
    Collection.build(parse_config(document), place / "small.cbir").close()
    Image.new("RGB", (20, 20), "white").save(root / "secret.png")
    return place / "small.cbir"


@pytest.fixture(scope="module")
def served(small: Path) -> Iterator[Serving]:
    with serving(small, limits=LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(small: Path) -> Iterator[Serving]:
    """A server that waits for nobody."""
    with serving(small, limits=Limits(body=200_000, held=500_000, head=0.3, receiving=0.5)) as server:
        yield server


@pytest.fixture
def stranger(served: Serving) -> Iterator[httpx.Client]:
    """A client without a token."""
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        yield client


# -- who may ask


def test_nothing_is_told_without_a_token(served: Serving, stranger: httpx.Client) -> None:
    for path in ("/", "/index.html", "/metrics", "/openapi.json", "/api/v1/collections", "/api/v1/nothing", "/nothing"):
        assert stranger.get(path).status_code == 401, path
    problem(stranger.post(SEARCH, json=BODY), 401)
    for wrong in ("", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"):
        assert stranger.get("/metrics", headers={"Authorization": wrong.encode("latin-1")}).status_code == 401
    assert stranger.get("/healthz").status_code == 200
    assert stranger.get("/readyz").status_code == 200


def test_the_link_opens_the_page_once(small: Path) -> None:
    with serving(small) as server, httpx.Client(base_url=server.url, trust_env=False) as browser:
        came = browser.get(server.link)
        assert (came.status_code, came.headers["location"]) == (303, "/")
        cookie = came.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite" in cookie
        assert browser.get("/").status_code == 200
        assert browser.get("/api/v1/collections").status_code == 200
        with httpx.Client(base_url=server.url, trust_env=False) as another:
            assert "used" in another.get(server.link).text
            assert browser.get(server.link).status_code == 303, "who is in already needs no other link"
            assert another.get("/?token=x").status_code == 401
            assert another.get("/").status_code == 401
            assert another.get("/", params={"token": TOKEN}).status_code == 303, "who has the token needs no link"
            assert another.get("/").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST", 200),
        ("[::1]:{port}", 200),
        ("[::1]", 200),
        ("127.0.0.1:1", 200),
        ("evil.example", 403),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:{port}", 403),
        ("127.0.0.1@evil.example", 403),
        ("127.0.0.1:{port}:80", 403),
        ("127.0.0.1:x", 403),
        ("127.0.0.1:99999", 403),
        ("[::1", 403),
        ("[evil]:80", 403),
        ("10.0.0.1", 403),
        ("2130706433", 403),
        ("", 403),
    ],
)
def test_a_host_that_is_not_this_one_is_refused(served: Serving, host: str, status: int) -> None:
    named = host.format(port=served.server.port)
    head = f"GET /api/v1/collections HTTP/1.1\r\nHost: {named}\r\nAuthorization: Bearer {TOKEN}\r\n"
    assert served.raw(f"{head}Connection: close\r\n\r\n".encode()).startswith(b"HTTP/1.1 %d" % status)


def test_a_name_that_was_given_is_known(small: Path) -> None:
    with serving(small, names=frozenset({"photos.example"})) as server:
        assert server.client.get("/metrics", headers={"Host": "photos.example"}).status_code == 200
        assert server.client.get("/metrics", headers={"Host": "other.example"}).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "x", ""])
def test_pages_of_others_may_not_ask(served: Serving, origin: str) -> None:
    problem(served.client.post(SEARCH, json=BODY, headers={"Origin": origin}), 403)
    problem(served.client.get("/api/v1/collections", headers={"Origin": origin}), 403)


def test_our_own_page_may_ask(served: Serving) -> None:
    headers = {"Origin": served.url, "Sec-Fetch-Site": "same-origin"}
    answer = served.client.post(SEARCH, json=BODY, headers=headers)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    for site in ("cross-site", "same-site", "x"):
        problem(served.client.post(SEARCH, json=BODY, headers={"Sec-Fetch-Site": site}), 403)
    proxied = {"Origin": "https://127.0.0.1", "Host": "127.0.0.1"}
    assert served.client.post(SEARCH, json=BODY, headers=proxied).status_code == 200


def test_an_origin_that_is_named_may_ask(small: Path) -> None:
    there = "https://app.example"
    with serving(small, cors=frozenset({there})) as server:
        headers = {"Origin": there, "Sec-Fetch-Site": "cross-site"}
        answer = server.client.post(SEARCH, json=BODY, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == there
        asked = httpx.options(f"{server.url}{SEARCH}", headers=headers, trust_env=False)
        assert asked.status_code == 204
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert server.client.get("/metrics", headers={"Origin": "https://other.example"}).status_code == 403


def test_every_answer_has_the_headers_that_keep_it_apart(served: Serving, stranger: httpx.Client) -> None:
    for answer in (served.client.get("/"), served.client.get("/api/v1/collections"), stranger.get("/")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


def test_other_machines_come_only_with_a_token_that_was_chosen(small: Path) -> None:
    with pytest.raises(ConfigError, match=r"--token.*reverse proxy"):
        Server([small], [], Settings(host="0.0.0.0", port=0))
    guard = Guard("0.0.0.0", 80, "t")
    guard.check("GET", "/", {"host": "192.168.0.7:80"})  # an address cannot be rebound


def test_a_port_in_use_is_one_line(small: Path, served: Serving) -> None:
    with pytest.raises(CbirError, match=r"is in use: choose another --port"):
        Server([small], [], Settings(port=served.server.port))


def test_two_of_one_name_are_refused(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "small.cbir"
    other.mkdir()
    with pytest.raises(ConfigError, match="two collections are called 'small'"):
        Server([small, other], [], Settings(port=0))


# -- paths


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/page/index.html",
        "/api/v1/collections/..%2fsmall",
        "/api/v1/collections/small/items/../../../etc/passwd",
        "/api/v1/collections/small/items/0/thumb/..%2f..%2fsecret.png",
        "/api/v1/collections/%00/items",
        "/api/v1/runs/..%2f..%2fsmall.cbir",
        "/\xff",
    ],
)
def test_no_path_leads_out(served: Serving, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    answer = served.raw(head.encode("latin-1"))
    assert answer[9:12] in (b"404", b"400"), answer[:80]
    assert b"root:" not in answer


def test_what_a_document_says_of_its_path_leads_nowhere_else(place: Path, small: Path) -> None:
    """A collection of a stranger's may name any file: one that is no picture is not sent, nor one above its root."""
    with Collection.open(small) as collection:
        vectors = collection.embeddings([0])
    root = place / "pictures" / "below"
    root.mkdir()
    Image.new("RGB", (20, 20), "red").save(root / "a.png")
    document = {
        "source": {"name": "folder", "root": str(root)},
        "extractors": [{"name": "histogram"}],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat"}],
    }
    with Collection.build(parse_config(document), place / "strange.cbir") as collection:
        collection.add_vectors(
            np.repeat(vectors, 3, 0), [{"path": "../secret.png"}, {"path": "/etc/passwd"}, {"path": "a\0b"}]
        )
    with serving(place / "strange.cbir") as server:
        for item in (1, 3):
            server.problem("GET", f"collections/strange/items/{item}/image", 404)
        server.problem("GET", "collections/strange/items/2/image", 422)
        for item in (1, 2, 3):
            answer = server.client.get(f"/api/v1/collections/strange/items/{item}/thumb")
            assert answer.headers["content-type"].startswith("image/svg"), "a placeholder"


def test_no_problem_says_where_anything_lies(small: Path, tmp_path: Path) -> None:
    """Whatever is wrong, wherever it is noticed; ``problem`` looks for more than is looked for here."""
    place = tmp_path / "my own things"
    place.mkdir()
    for name in ("small", "gone", "cut"):
        shutil.copytree(small, place / f"{name}.cbir")
    shutil.copytree(Path(__file__).parent / "fixtures" / "vectors-0.1", place / "vectors.cbir")
    for name in ("bad", "none", "lacks"):
        (place / name).mkdir()
    (place / "bad" / "results.json").write_text("{")
    (place / "lacks" / "results.json").write_text('{"rows": [{}]}')
    runs = (place / "bad", place / "none", place / "lacks")
    told = []
    with serving(*place.glob("*.cbir"), runs=runs, limits=LIMITS, write=True) as server:
        shutil.rmtree(place / "gone.cbir")
        (place / "cut.cbir" / "codec.npz").write_bytes(b"")
        for name in ("gone", "cut"):
            until(lambda name=name: server.client.get(f"/api/v1/collections/{name}").status_code == 503)
            told.append(server.problem("GET", f"collections/{name}/items", 503))
        picture = {"files": [("image", ("x", saved("PNG")))]}
        for place_of, asked in (("search", picture), ("items", picture), ("search", {"json": {"text": "a red bus"}})):
            told.append(server.problem("POST", f"collections/vectors/{place_of}", 422, **asked))
        told.append(server.problem("POST", "collections/small/search", 404, json={"ids": [10**6]}))
        told += [server.problem("GET", f"runs/{name}", 503) for name in ("bad", "none", "lacks")]
        told.append(server.problem("GET", "runs/bad/report", 404))
        assert [one["problem"] for one in server.get("runs")["runs"]] == told[-4:-1]
        told += [str(one["problem"]) for one in server.get("collections")["collections"]]
    assert not [detail for detail in told if "my own things" in detail or str(tmp_path) in detail]
    assert any("gone.cbir" in detail for detail in told), "but what it is called"


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ("/srv/my own/c.cbir holds vectors", "c.cbir holds vectors"),
        ("/srv/my own/c.cbir/extractor/model.onnx: cut short", "c.cbir/extractor/model.onnx: cut short"),
        ("/srv/my own/c.cbir.old/x: missing", "srv/my own/c.cbir.old/x: missing"),
        ("cannot write '/usr/lib/x.npy'", "cannot write 'x.npy'"),
        ("no 'photos/sea/1.jpg', 1 / 2, /openapi.json", "no 'photos/sea/1.jpg', 1 / 2, /openapi.json"),
        ("ask http://localhost/usr/lib or a/usr/lib", "ask http://localhost/usr/lib or a/usr/lib"),
    ],
)
def test_of_paths_the_names_are_left(told: str, left: str) -> None:
    assert Problem(503, told).without_paths({"/srv": "srv", "/srv/my own/c.cbir": "c.cbir"}).detail == left


# -- bodies


def form(served: Serving, *pictures: bytes) -> httpx.Response:
    return served.client.post(SEARCH, files=[("image", (f"{i}", content)) for i, content in enumerate(pictures)])


def png(width: int, height: int, chunks: bytes = b"") -> bytes:
    """A PNG that says it is so large, and has next to nothing in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def saved(form: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (30, 30), "red").save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello", "not an image"),
        (b"GIF89a", "not an image|cut short"),
        (saved("PNG")[:60], "cut short|damaged"),
        (saved("JPEG")[:200], "cut short|damaged|not an image"),
        (png(60_000, 60_000), "limit of 1 megapixels"),
        (png(2**31 - 1, 2**31 - 1), "limit|damaged|not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "damaged|not an image"),
    ],
    ids=["empty", "text", "gif", "half png", "half jpeg", "bomb", "larger bomb", "svg", "postscript"],
)
def test_a_picture_that_cannot_be_used_is_named_with_its_reason(served: Serving, content: bytes, words: str) -> None:
    detail = problem(form(served, saved("PNG"), content), 422)
    assert detail.startswith("image 2 cannot be used: ")
    assert any(word in detail for word in words.split("|")), detail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_pictures_of_every_usual_form_are_read(served: Serving, kind: str) -> None:
    hits = form(served, saved(kind)).json()["results"][0]
    assert hits[0]["path"] == "red.png"


STRANGE = {
    "of one pixel": Image.new("RGB", (1, 1), "red"),
    "a line": Image.new("RGB", (3000, 1), "red"),
    "for print": Image.new("CMYK", (30, 30), (0, 255, 255, 0)),
    "of 16 bits": Image.fromarray(np.full((30, 30), 40_000, np.uint16)),
    "of floats": Image.fromarray(np.full((30, 30), 0.5, np.float32)),
    "of one bit": Image.new("1", (30, 30), 1),
    "grey and clear": Image.new("LA", (30, 30), (128, 0)),
    "with a palette": Image.new("P", (30, 30), 3),
    "all clear": Image.new("RGBA", (30, 30), (255, 0, 0, 0)),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_pictures_of_every_depth_and_colour_are_read(served: Serving, kind: str) -> None:
    image, out = STRANGE[kind], io.BytesIO()
    image.save(out, "JPEG" if image.mode == "CMYK" else "TIFF")
    assert form(served, out.getvalue()).json()["results"][0]


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        ("multipart/form-data", b"x", 422),
        ("multipart/form-data; boundary=", b"x", 422),
        ("multipart/form-data; boundary=b", b"", 422),
        ("multipart/form-data; boundary=b", b"no boundary at all", 422),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", 422),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", 422),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n',
            422,
        ),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="k"\r\n\r\n5\r\n' * 5, 422),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nx\r\n--b--\r\n',
            422,
        ),
        ("multipart/form-data; boundary=b; charset=nonsense", b"--b\r\n", 422),
        ("multipart/form-data; boundary=" + "b" * 5000, b"--b\r\n", 422),
        ("application/json", b"", 422),
        ("application/json", b"{", 422),
        ("application/json", b"[]", 422),
        ("application/json", b"\xff\xfe", 422),
        ("application/json", b"[" * 100_000, 422),
        ("application/json", b'{"ids": [' + b"9" * 10_000 + b"]}", 422),
        ("application/json", b'{"ids": [0], "k": NaN}', 422),
        ("application/json", b'{"ids": [0], "where": ' + b'{"not": ' * 5000 + b"1" + b"}" * 5001, 422),
        ("text/plain", b"{}", 415),
        ("application/x-www-form-urlencoded", b"ids=1", 415),
        ("", b"{}", 415),
    ],
)
def test_a_body_that_cannot_be_read_is_a_problem(served: Serving, head: str, body: bytes, status: int) -> None:
    problem(served.client.post(SEARCH, content=body, headers={"Content-Type": head}), status)


def test_a_body_that_is_too_large_is_refused_said_or_not(served: Serving) -> None:
    large = b"x" * (LIMITS.body + 1)
    headers = {"Content-Type": "application/json"}
    problem(served.client.post(SEARCH, content=large, headers=headers), 413)
    pieces = (large[i : i + 50_000] for i in range(0, len(large), 50_000))
    problem(served.client.post(SEARCH, content=pieces, headers=headers), 413)
    assert served.search("small", **BODY)


def test_too_many_parts_are_refused(served: Serving) -> None:
    assert "Too many files" in problem(form(served, *[saved("GIF")] * 4), 422)


def test_too_much_at_once_is_asked_to_come_back(hasty: Serving) -> None:
    """Bodies that have not come whole are held up to a limit, and let go when they are too slow."""
    slow = []
    head = (
        f"POST {SEARCH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nContent-Length: 190000\r\n\r\n"
    ).encode()
    try:
        for _ in range(3):
            slow.append(socket.create_connection(("127.0.0.1", hasty.server.port), 10))
            slow[-1].sendall(head + b" " * 180_000)
        assert any(one.recv(100)[9:12] in (b"429", b"408") for one in slow)
    finally:
        for one in slow:
            one.close()
    until(lambda: form(hasty, saved("PNG")).status_code == 200)
    assert hasty.server.api.receiver.held == 0


def test_slow_clients_are_let_go_and_hold_nobody_up(hasty: Serving) -> None:
    """A head, and a body, that come byte by byte."""
    slow_body = (
        f"POST {SEARCH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    ).encode()
    heads = [socket.create_connection(("127.0.0.1", hasty.server.port), 20) for _ in range(20)]
    bodies = [socket.create_connection(("127.0.0.1", hasty.server.port), 20) for _ in range(20)]
    try:
        for one in heads:
            one.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        for one in bodies:
            one.sendall(slow_body)
        assert hasty.search("small", **BODY), "meanwhile"
        assert all(one.recv(100) == b"" for one in heads)
        assert all(one.recv(100)[9:12] == b"408" for one in bodies)
    finally:
        for one in [*heads, *bodies]:
            one.close()


def test_who_does_not_read_is_let_go(hasty: Serving, place: Path) -> None:
    large = place / "pictures" / "red.png"
    before = large.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    Image.fromarray(noise).save(large)
    head = f"GET /api/v1/collections/small/items/2/image HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}"
    try:
        with socket.socket() as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            opened.connect(("127.0.0.1", hasty.server.port))
            opened.sendall(f"{head}\r\n\r\n".encode())
            mine = opened.getsockname()[1]
            until(lambda: mine in hasty.clients())
            until(lambda: mine not in hasty.clients())
    finally:
        large.write_bytes(before)


POST_IN_PARTS = (
    f"POST {SEARCH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
).encode()


def test_what_is_no_http_is_refused(served: Serving) -> None:
    for content in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        assert served.raw(content).startswith(b"HTTP/1.1 400")
    last = b"Host: localhost\r\nConnection: close\r\n"
    two = b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n" + last + b"\r\n0\r\n\r\n"
    assert served.raw(two)[9:12] in (b"400", b"401")
    long = b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n" + last + b"\r\n"
    assert served.raw(long)[9:12] == b"422"
    assert b"application/problem+json" in served.raw(long)
    assert b"x-content-type-options: nosniff\r\n" in served.raw(long)
    hosts = b"GET /healthz HTTP/1.1\r\nHost: example.com\r\n" + last + b"\r\n"
    assert served.raw(hosts)[9:12] == b"400"
    assert served.raw(b"GET /healthz HTTP/1.0\r\n\r\n")[9:12] == b"200"
    assert served.search("small", **BODY)


@pytest.mark.parametrize(
    "begin",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: ",
        b"GET /",
        POST_IN_PARTS,
        POST_IN_PARTS + b"2\r\n{}\r\n0\r\nX: ",
        POST_IN_PARTS + b"2\r\n{}\r\n0\r\n\r\nGET /?",
        POST_IN_PARTS + b"1800000\r\n" + bytes(24 << 20) + b"\r\n0\r\n\r\nGET /?",
    ],
    ids=["a header", "a line", "the size of a part", "a trailer", "the next request", "what follows a large body"],
)
def test_what_is_no_body_does_not_go_on_for_ever(served: Serving, begin: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.server.port), 20) as opened:
        opened.sendall(begin)
        sent = 0
        with contextlib.suppress(OSError):  # it was closed
            while sent < 64 << 20:
                sent += opened.send(b"0" * 65_536)
    assert sent < 16 << 20, "what the system holds on the way is all"
    assert served.search("small", **BODY)


def test_what_stands_behind_a_body_is_no_header(served: Serving) -> None:
    """A body in many small parts is read; a token in its trailer opens nothing."""
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in json.dumps(BODY).encode())
    with_token = f"Authorization: Bearer {TOKEN}\r\n".encode()
    first, rest = POST_IN_PARTS.split(with_token)
    end = b"Connection: close\r\n\r\n"
    assert served.raw(first + with_token + rest.removesuffix(b"\r\n") + end + body + b"0\r\n\r\n")[9:12] == b"200"
    late = first + rest.removesuffix(b"\r\n") + end + body + b"0\r\n" + with_token + b"\r\n"
    assert served.raw(late)[9:12] == b"401"


def test_requests_that_are_sent_without_waiting_are_answered_in_turn(served: Serving) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    answers = served.raw(50 * (ask + b"\r\n") + ask + b"Connection: close\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200 OK") == 51


def test_one_connection_too_many_is_told_by_a_problem(small: Path) -> None:
    with serving(small, limits=Limits(connections=3)) as server, contextlib.ExitStack() as opened:
        assert server.search("small", **BODY)
        for _ in range(3):  # beside the client's own
            opened.enter_context(socket.create_connection(("127.0.0.1", server.server.port), 20))
        until(lambda: len(server.clients()) > 3)
        refused = httpx.get(f"{server.url}/healthz", trust_env=False)
        assert "too many connections" in problem(refused, 503)
        assert all(refused.headers[name] == value for name, value in HEADERS.items())
        assert refused.headers["connection"] == "close"
        opened.close()
        until(lambda: len(server.clients()) <= 3)
        assert server.search("small", **BODY)


def test_a_connection_that_says_nothing_is_let_go(hasty: Serving) -> None:
    """Line breaks between requests are allowed, and are no request."""
    with socket.create_connection(("127.0.0.1", hasty.server.port), 20) as opened:
        opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert opened.recv(1000)[9:12] == b"200"
        with contextlib.suppress(OSError):
            for _ in range(200):
                opened.sendall(b"\r\n")
                time.sleep(0.05)
            raise AssertionError("it is still there")


# -- decoding in processes that may die


def test_where_memory_cannot_be_told_it_is_not_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on macOS: without this, every decoder would end before its first picture."""
    monkeypatch.setattr(decoder, "_MEMORY_NOW", tmp_path / "nowhere")
    monkeypatch.setattr(decoder.resource, "setrlimit", lambda *_: pytest.fail("a limit of what?"))
    decoder.limit_memory()


def test_decoders_that_are_killed_are_replaced(served: Serving) -> None:
    assert form(served, saved("PNG")).status_code == 200
    decoders = served.server.api.decoders
    for number in decoders.processes():
        os.kill(number, signal.SIGKILL)
    assert form(served, saved("PNG")).status_code == 200


@pytest.mark.parametrize(
    ("code", "seconds", "words"),
    [
        ("import os; os.abort()", 60.0, "ends the process"),
        ("print('nonsense' * 100)", 60.0, "ends the process"),
        ("import time; time.sleep(60)", 0.2, "takes more than"),
    ],
)
def test_a_picture_that_ends_its_decoder_is_no_more_than_bad(
    small: Path, code: str, seconds: float, words: str
) -> None:
    with serving(small, limits=Limits(decoding=seconds, seconds=120), decoder=(sys.executable, "-c", code)) as server:
        assert words in problem(form(server, saved("PNG")), 422)
        assert server.search("small", **BODY)


STUCK = (sys.executable, "-c", "import time; time.sleep(600)")


def test_a_form_has_a_limit_of_time_as_a_whole(small: Path) -> None:
    """Each of its pictures would be given its own, one after the other."""
    with serving(small, limits=Limits(decoding=60, seconds=1), decoder=STUCK) as server:
        assert "ask for fewer pictures" in problem(form(server, *[saved("PNG")] * 20), 503)
        assert server.server.api.decoders.processes() == [], "what nobody waits for is no more"
        assert server.search("small", **BODY)


@pytest.mark.parametrize("what", ["thumb", "shown", "check"])
def test_every_queue_for_decoders_has_a_length_and_an_end(what: str) -> None:
    async def asked() -> list[int]:
        decoders = Decoders(2, Limits(waiting=3, seconds=0.5), STUCK)
        ask = {"thumb": lambda: decoders.thumb("x", 20), "shown": lambda: decoders.shown("x")}
        try:
            many = [ask.get(what, lambda: decoders.check(b""))() for _ in range(5)]
            found = await asyncio.gather(*many, return_exceptions=True)
            return sorted(one.status for one in found if isinstance(one, Problem))
        finally:
            await decoders.close()

    assert asyncio.run(asked()) == [429, 429, 503, 503, 503]


def test_who_scrolls_sends_nobody_away_who_searches(small: Path) -> None:
    async def scrolling() -> str:
        decoders = Decoders(2, Limits(waiting=3, seconds=20))
        picture = saved("PNG")
        try:
            scrolls = [asyncio.create_task(decoders.shown(str(small.parent / "pictures" / "red.png"))) for _ in "abc"]
            await asyncio.sleep(0)
            found = await decoders.check(picture)
            await asyncio.gather(*scrolls)
            return found
        finally:
            await decoders.close()

    assert asyncio.run(scrolling()) == "PNG"


def test_a_decoder_has_a_limit_of_memory(served: Serving) -> None:
    """Text in a picture that unpacks to more than there may be."""
    text = zlib.compress(b"\0" * (1 << 20), 9)
    chunk = b"zTXt", b"x\0\0" + text
    packed = struct.pack(">I", len(chunk[1])) + chunk[0] + chunk[1] + struct.pack(">I", zlib.crc32(b"".join(chunk)))
    answer = form(served, png(8, 8, packed * 100))
    assert answer.status_code in (200, 422)
    assert served.search("small", **BODY)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, with other names")
def test_a_decoder_keeps_the_memory_of_the_last_picture() -> None:
    """Or it takes a quarter of its time to be given the same again, page by page."""
    picture = saved("PNG")
    with Image.new("RGB", (800, 800)) as large:
        out = io.BytesIO()
        large.save(out, "JPEG")

    def faults(number: int) -> int:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[7])

    async def taken() -> int:
        decoders = Decoders(1, LIMITS)
        try:
            for content in (picture, out.getvalue(), out.getvalue()):
                await decoders.check(content)
            (number,) = decoders.processes()
            before = faults(number)
            for _ in range(10):
                await decoders.check(out.getvalue())
            return faults(number) - before
        finally:
            await decoders.close()

    assert asyncio.run(taken()) < 10 * 800 * 800 * 3 // os.sysconf("SC_PAGE_SIZE") // 4


@pytest.mark.slow
def test_many_bombs_at_once_leave_it_standing(served: Serving) -> None:
    statuses: list[int] = []

    def attack() -> None:
        with httpx.Client(base_url=served.url, headers=served.client.headers, trust_env=False, timeout=60) as client:
            for _ in range(5):
                files = [("image", ("bomb", png(60_000, 60_000)))]
                statuses.append(client.post(SEARCH, files=files).status_code)

    threads = [threading.Thread(target=attack) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {422, 429}
    assert served.search("small", **BODY)


def test_requests_that_go_away_leave_nothing_behind(served: Serving) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", served.server.port), 10) as opened:
            opened.sendall(
                f"POST {SEARCH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
                "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{".encode()
            )
    until(lambda: served.server.api.receiver.held == 0)
    assert served.search("small", **BODY)
