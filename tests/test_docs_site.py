"""The reference is that of this code, and the site is built without a warning and fetches nothing from elsewhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "reference.py"))


def test_the_reference_is_that_of_this_code(reference: dict[str, Any]) -> None:
    said: list[str] = []
    assert reference["check"](said.append) == 0, "\n".join(said)


def test_a_stale_page_is_named(reference: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("commands.md", "plugins.md"):
        (tmp_path / name).write_bytes((ROOT / "docs" / "reference" / name).read_bytes())
    with (tmp_path / "commands.md").open("a") as file:
        file.write("more\n")
    monkeypatch.setitem(reference["check"].__globals__, "PLACE", tmp_path)
    said: list[str] = []
    assert reference["check"](said.append) == 2
    assert [line.split()[0] for line in said] == ["docs/reference/commands.md", "docs/reference/python.md"]


def test_the_reference_has_every_command_option_and_public_name(reference: dict[str, Any]) -> None:
    """Each in the words that a user would search for."""
    import cbir_faiss
    from cbir_faiss.base.registry import GROUPS, load, names
    from cbir_faiss.cli import main

    pages = {name: (ROOT / "docs" / "reference" / name).read_text("utf-8") for name in reference["pages"]()}
    assert all(f"## cbir {name}\n" in pages["commands.md"] for name in main.commands)
    assert all(f"### {name}\n" in pages["python.md"] for name in cbir_faiss.__all__)
    for group in GROUPS:
        for name in names(group):
            plugin: Any = load(group, name)
            if plugin.__module__.startswith(reference["OURS"]):
                section = pages["plugins.md"].split(f"\n## {group.capitalize()}\n")[1].split(f"\n### {name}\n")[1]
                section = section.split("\n### ")[0]
                assert all(f"| `{key}` |" in section for key in plugin.Options.model_fields), f"{group} {name}"


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    """As `make docs` builds it."""
    (line,) = re.findall(r"^docs:.*\n\t\$\(BIN\)/sphinx-build (.*) site$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    command = [sys.executable, "-m", "sphinx", *line.split(), "-d", str(tmp_path / "trees"), str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"([^\"]+)\"", page.read_text("utf-8"))
        assert not [address for address in loaded if re.match(r"(?:\w+:)?//", address)], page.name
    first = (tmp_path / "site" / "index.html").read_text("utf-8")
    (address,) = re.findall(r'<a href="([^"]+)">', first)
    assert (tmp_path / "site" / address).exists()
    styles = "".join(path.read_text("utf-8") for path in (tmp_path / "site").rglob("*.css"))
    assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", styles)
