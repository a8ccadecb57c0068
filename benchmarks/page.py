"""The page: how long after a drop the first results are seen.

    python benchmarks/page.py             40 drops, a collection of 2,000 photos
    python benchmarks/page.py --quick     3 drops, 100 photos, to see that it runs; stores nothing

`cbir serve` and a headless Chromium (playwright), each in a process of its own. The photos are noise over shapes, 640 x
480 as JPEG; extractor compact, codes of 64 bits (itq) in faiss-binary-flat, 100 candidates rescored by float. A drop is
timed in the page: from the event to the second frame after the first thumbnail was decoded. Each drop is of another
photo, so nothing is answered from memory; the thumbnails of the results are made anew or not, as it happens. The first
drop is reported apart.

Raw figures go to benchmarks/results/page.json.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from _report import show, store
from PIL import Image

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config

TOKEN = "benchmark"
CODE = {"codecs": [{"name": "itq", "bits": 64}], "backends": [{"name": "faiss-binary-flat"}]}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
# Milliseconds from a drop to the frame in which the first new thumbnail is seen.
DROP = """async (data) => {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "query.jpg", { type: "image/jpeg" }));
    const before = new Set(document.querySelectorAll(".grid .tile"));
    const began = performance.now();
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    const fresh = (image) => image.naturalWidth && !before.has(image.closest(".tile"));
    const seen = () => [...document.querySelectorAll(".grid img")].find(fresh);
    while (!seen()) await new Promise(requestAnimationFrame);
    await seen().decode();
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
    return performance.now() - began;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few photos, few drops, nothing stored")
    chosen = parser.parse_args()
    photos, drops = (100, 3) if chosen.quick else (2_000, 40)
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        place = Path(folder)
        queries = _photos(place / "queries", drops + 1, seed=1)
        collection = _collection(place, photos)
        with _served(collection, place) as url:
            times = _drops(url, queries)
    found = {
        "photos": photos,
        "first_ms": times[0],
        "median_ms": statistics.median(times[1:]),
        "p95_ms": float(np.percentile(times[1:], 95)),
        "most_ms": max(times[1:]),
    }
    show(f"from a drop to the first result, {drops} drops", [found], list(found))
    if not chosen.quick:
        print(store("page", {"drop": {**found, "milliseconds": times}}))


def _photos(folder: Path, count: int, seed: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:480, :640]
    for number in range(count):
        across, down, phase = rng.uniform((0.01, 0.01, 0), (0.05, 0.05, 6))
        shape = np.sin(x * across + phase) * np.cos(y * down)
        pixels = 120 + 80 * shape[..., None] * rng.uniform(0.3, 1, 3) + rng.normal(0, 12, (480, 640, 1))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=88)
    return sorted(folder.iterdir())


def _collection(place: Path, photos: int) -> Path:
    _photos(place / "photos", photos, seed=0)
    rescore = [{"name": "float", "candidates": 100}]
    config = parse_config({"source": {"name": "folder", "root": str(place / "photos")}, **CODE, "rescore": rescore})
    Collection.build(config, place / "photos.cbir", cache=place / "cache").close()
    return place / "photos.cbir"


@contextmanager
def _served(collection: Path, place: Path) -> Iterator[str]:
    """Yields the link."""
    command = [sys.executable, "-m", "cbir_faiss.cli", "serve", str(collection), "--port", "0", "--token", TOKEN]
    environment = {**os.environ, "CBIR_CACHE": str(place / "cache")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().partition("/?")[0] + f"/?token={TOKEN}"
        finally:
            server.terminate()


def _drops(link: str, queries: list[Path]) -> list[float]:
    """Milliseconds of each drop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page: Any = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(link)
        page.wait_for_function("() => [...document.querySelectorAll('.grid img')].some((image) => image.naturalWidth)")
        times = []
        for query in queries:
            times.append(float(page.evaluate(DROP, base64.b64encode(query.read_bytes()).decode())))
            page.wait_for_timeout(300)  # what else the page loads of the last drop is not the next one's
        browser.close()
    return times


if __name__ == "__main__":
    main()
