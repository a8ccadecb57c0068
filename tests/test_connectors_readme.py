"""connectors/README.md shows a connector and its test, CONTRIBUTING.md what to write: they run as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
from _plugins import installed
from _readme import blocks, run_pytest
from cbir_connectors.lancedb import Lancedb
from cbir_connectors.pgvector import Pgvector
from cbir_connectors.qdrant import Qdrant
from cbir_connectors.usearch import Usearch
from click.testing import CliRunner

from cbir_faiss.backends.database import Database
from cbir_faiss.base import Backend
from cbir_faiss.base.plugin import Plugin
from cbir_faiss.cli import main

CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_connector_in_the_readme_passes_the_contract(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d\d passed", run.stdout)


def test_the_example_is_short() -> None:
    code = {name: len(re.sub(r"\n\s*(?=\n)", "", text).splitlines()) for name, text in blocks().items()}
    assert code["my_sqlite.py"] <= 80
    assert code["test_my_sqlite.py"] <= 7


@pytest.mark.usefixtures("only_measured")
def test_the_connector_in_the_readme_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).standard_normal((120, 16), dtype=np.float32))
    config = (
        "source: {name: vectors, file: x.npy}\n"
        "codecs: [{name: lsh, bits: [16, 64]}]\n"
        "rescore: [{name: none}, {name: float}]\n"
        "backends: [{name: faiss-binary-flat}, {name: sqlite"
    )
    entry_points = "[cbir_faiss.backends]\nsqlite = sqlite_plugin:Sqlite\n"
    with installed(tmp_path, "sqlite", blocks()["my_sqlite.py"], entry_points, monkeypatch):
        for path in ("", ", path: some/codes", ", path: some/codes"):  # again, over what was left there
            Path("compare.yaml").write_text(f"{config}{path}}}]\n")
            done = CliRunner().invoke(main, ["compare", "compare.yaml", "--out", "out"], catch_exceptions=False)
            assert done.exit_code == 0, done.output
    results = json.loads(Path("out/results.json").read_text())
    assert results["skipped"] == []
    found = {(row["backend"], row["bits"], row["rescore"]): row["metrics"]["knn_recall@10"] for row in results["rows"]}
    assert len(found) == 8
    for bits in (16, 64):
        for rescore in ("none", "float"):
            same = found["faiss-binary-flat", bits, rescore]
            assert found["sqlite", bits, rescore] == pytest.approx(same, abs=1e-6)


def test_contributing_names_everything_to_write() -> None:
    (step,) = re.findall(r"1\. \*\*The module\*\*(.*?)2\. \*\*The entry point", CONTRIBUTING, re.DOTALL)
    named = set(re.findall(r"`(\w+)`", step))
    assert Database.__abstractmethods__ <= named
    written = {name for plugin in (Lancedb, Pgvector, Qdrant, Usearch) for name in vars(plugin)}
    assert {
        name for base in (Database, Backend, Plugin) for name in vars(base) if _is_hook(base, name)
    } & written <= named


def _is_hook(base: type, name: str) -> bool:
    return not name.startswith("__") and isinstance(vars(base)[name], FunctionType | classmethod | property)
