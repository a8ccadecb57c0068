"""Makes the pictures of docs/serve.md: python tests/screenshots.py. They show scenes that are drawn here."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from _page import chromium, enter, served, settled
from _scenes import album

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config

OUT = Path(__file__).parents[1] / "docs" / "img"
EACH = 60
WIDE, PHONE = {"width": 1200, "height": 760}, {"width": 390, "height": 760}
SHOTS: dict[str, tuple[str, dict[str, int], str]] = {
    "serve-photos": ("#/c/photos?like=5,303&unlike=62", WIDE, "light"),
    "serve-sides": ("#/c/photos/compare?like=95", WIDE, "light"),
    "serve-map": ("#/c/photos/map", WIDE, "dark"),
    "serve-phone": ("#/c/photos?like=250", PHONE, "dark"),
}


def main() -> None:
    """Build a collection of drawn scenes, serve it, and look at it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = {"name": "folder", "root": str(album(root / "photos", EACH))}
        parts = {"codecs": [{"name": "itq", "bits": 64}], "backends": [{"name": "faiss-binary-flat"}]}
        config = parse_config({"source": source, **parts, "rescore": [{"name": "float", "candidates": 40}]})
        Collection.build(config, root / "photos.cbir", cache=root / "cache").close()
        with served(root / "photos.cbir", cache=root / "cache") as server, chromium() as browser:
            for name, (fragment, size, scheme) in SHOTS.items():
                with browser.new_context(viewport=size, color_scheme=scheme) as context:
                    page = context.new_page()
                    enter(page, server, fragment)
                    take(page, OUT / f"{name}.jpg")


def take(page: Any, path: Path) -> None:
    """A screenshot, as JPEG: the pictures in it are most of its bytes."""
    settled(page)
    page.wait_for_timeout(500)  # transitions
    page.screenshot(path=path, type="jpeg", quality=86)


if __name__ == "__main__":
    main()
