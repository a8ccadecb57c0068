"""The documents say what is true: links lead somewhere, tables are those of the stored results, configs are right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cbir_faiss.base.registry import GROUPS, names
from cbir_faiss.config import load_config
from cbir_faiss.training.config import load_training
from cbir_faiss.tuning.data import read_naming

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "connectors").glob("*.md")])
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_nothing_of_this_machine_stands_in_a_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(?:root|home|tmp|work)/", text)


def test_tables_are_those_of_the_stored_results() -> None:
    done = subprocess.run(
        [sys.executable, "tables.py", "--check"], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_is_right(path: Path) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not {"codecs", "losses"} & set(document):  # of a tuning, which needs no more than the data
        named = read_naming(path).config.document
        assert {**named, **document} == named
        return
    config = load_training(path) if "losses" in document else load_config(path)
    assert config.document == document


def test_every_installed_plugin_of_ours_is_in_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for group in GROUPS:
        table = text.split(f'[project.entry-points."cbir_faiss.{group}"]')[1].split("\n[")[0]
        declared = set(re.findall(r"^([\w-]+) =", table, re.MULTILINE))
        assert declared
        assert declared <= set(names(group)), "a new entry point is read at installation: pip install -e ."
