"""Servers of a test's own: listening on a port of this machine, until it is over or they are to die."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import Self


class Handler(BaseHTTPRequestHandler):
    """One request to ``owner``, the server that it came to."""

    owner: Any
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, content: bytes, header: Mapping[str, str]) -> None:
        """``header`` may say another length than that of ``content``: HEAD tells of what it does not send."""
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **header}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class HttpServer:
    """``with`` it, ``url`` answers, by a ``handler`` for each request."""

    handler: type[Handler]

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._port = 0
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before after a ``stop``."""
        handler = type("Handler", (self.handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._http.daemon_threads = True
        self._port = self._http.server_port
        self.url = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
