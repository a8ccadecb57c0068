"""A real server over a real socket, in a thread of the test's own process."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cbir_faiss.serve.server import Server, Settings

TOKEN = "a token of the tests"


@dataclass
class Serving:
    """A server that runs, and a client of it that has its token."""

    server: Server
    client: httpx.Client

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def link(self) -> str:
        return self.server.link

    def get(self, path: str, **options: Any) -> Any:
        """The JSON of a GET below /api/v1, which must do."""
        answer = self.client.get(f"/api/v1/{path}", **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def search(self, name: str, **asked: Any) -> Any:
        answer = self.client.post(f"/api/v1/collections/{name}/search", json=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()["results"]

    def clients(self) -> set[int]:
        """The ports of those who are connected."""
        return {at[1] for one in list(self.server._server.server_state.connections) if (at := one.client)}

    def problem(self, method: str, path: str, status: int, **options: Any) -> str:
        """The detail of a request below /api/v1 that must fail like this."""
        return problem(self.client.request(method, f"/api/v1/{path}", **options), status)

    def raw(self, content: bytes, timeout: float = 10.0) -> bytes:
        """All that comes back for bytes sent as they are."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout) as opened:
            opened.sendall(content)
            parts = []
            while part := opened.recv(65536):
                parts.append(part)
        return b"".join(parts)


def problem(answer: httpx.Response, status: int) -> str:
    """The detail of a problem+json."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    content = json.loads(answer.content)
    assert content["status"] == status
    assert content["detail"]
    assert "\n" not in content["detail"]
    for place in (tempfile.gettempdir(), str(Path.cwd()), str(Path.home())):
        assert place not in content["detail"], "where it lies on the server is nobody's business"
    return str(content["detail"])


@contextmanager
def serving(*folders: Path, runs: tuple[Path, ...] = (), **settings: Any) -> Iterator[Serving]:
    """Collections and runs, served until the block ends."""
    server = Server(folders, runs, Settings(**{"port": 0, "token": TOKEN, "warming": False, **settings}))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as client:
            yield Serving(server, client)
    finally:
        server.stop()
        thread.join()


def until(what: Any, seconds: float = 60.0) -> Any:
    """What ``what()`` gives, once it is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "did not come to pass"
        time.sleep(0.01)
    return found
