"""A browser and a server for the tests of the page and for the screenshots: the real ones, each in its process."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
QUIET += ("--disable-component-update", "--disable-sync")
TOKEN = "for-tests-only"


class Server:
    """``cbir serve`` in a process of its own."""

    def __init__(self, places: tuple[Path, ...], cache: Path, options: tuple[str, ...]) -> None:
        command = [sys.executable, "-m", "cbir_faiss.cli", "serve", *map(str, places), "--token", TOKEN, *options]
        environment = {**os.environ, "CBIR_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        link = self.process.stdout.readline()
        if not link.startswith("http"):
            raise AssertionError(f"not served: {self.process.communicate()[1]}")
        self.url = link.split("/?")[0]

    @property
    def link(self) -> str:
        return f"{self.url}/?token={TOKEN}"

    @property
    def port(self) -> str:
        return self.url.rsplit(":", 1)[1]

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


@contextmanager
def served(*places: Path, cache: Path, options: tuple[str, ...] = ("--port", "0")) -> Iterator[Server]:
    """Serves ``places`` within the block."""
    server = Server(places, cache, options)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser within the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


def enter(page: Any, server: Server, fragment: str = "") -> None:
    """Open the page with its token at a state, which goes along to where the token leads."""
    page.goto("about:blank")  # or another fragment alone would load nothing
    page.goto(server.link + fragment)


def drop(page: Any, *files: Path, shift: bool = False) -> None:
    """Let files fall onto the page."""
    page.dispatch_event("#main", "drop", {"dataTransfer": _carried(page, files), "shiftKey": shift})


def paste(page: Any, *files: Path) -> None:
    """Paste files into the page."""
    page.evaluate(
        """(clipboardData) =>
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }))""",
        _carried(page, files),
    )


def _carried(page: Any, files: Sequence[Path]) -> Any:
    told = [{"name": file.name, "data": base64.b64encode(file.read_bytes()).decode()} for file in files]
    return page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const { name, data } of files) {
                const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            }
            return transfer;
        }""",
        told,
    )


def settled(page: Any) -> None:
    """Wait until what was asked for is there, with its pictures; what is around the window is drawn a frame later."""
    _whole(page)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    _whole(page)


def _whole(page: Any) -> None:
    page.wait_for_function(
        """() => !document.querySelector("[aria-busy]")
            && document.querySelector("main").children.length
            && [...document.images].every((image) => image.src && image.complete)"""
    )
