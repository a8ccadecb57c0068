"""The sqlite-vec connector: the contract on its real engine, and what is its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sqlite_vec")

from cbir_connectors import sqlite_vec
from cbir_connectors.sqlite_vec import SqliteVec
from click.testing import CliRunner

from cbir_faiss.base import Backend
from cbir_faiss.cli import main
from cbir_faiss.collection import Collection
from cbir_faiss.collection.sync import Target, difference, push
from cbir_faiss.config import parse_config
from cbir_faiss.errors import BackendError, ConfigError, Unsupported
from cbir_faiss.testing import BackendContract
from cbir_faiss.testing.backends import Case

loads_extensions = pytest.mark.skipif(
    not hasattr(sqlite3.Connection, "enable_load_extension"), reason="this Python's sqlite3 loads no extensions"
)


@loads_extensions
class TestSqliteVec(BackendContract):
    plugin = SqliteVec

    def make(self, place: Path, case: Case) -> Backend:
        return SqliteVec(path=str(place / "items.sqlite"), **({} if case[1] == "hamming" else {"metric": case[1]}))


@pytest.fixture
def floats(tmp_path: Path) -> Iterator[SqliteVec]:
    with_items = SqliteVec(path=str(tmp_path / "x.sqlite"), metric="l2")
    with_items.create(4, "float")
    with_items.upsert(np.arange(5000), np.repeat(np.arange(5000, dtype=np.float32)[:, None], 4, axis=1))
    yield with_items
    with_items.close()


@loads_extensions
def test_more_than_the_virtual_table_finds(floats: SqliteVec) -> None:
    query = np.zeros((1, 4), np.float32)
    many = floats.search(query, 4500)
    assert many.ids[0].tolist() == list(range(4500))
    np.testing.assert_array_equal(many.distances[0], 4 * np.arange(4500, dtype=np.float32) ** 2)
    np.testing.assert_array_equal(floats.search(query, 4000).distances, many.distances[:, :4000])


@loads_extensions
def test_bits_and_floats_in_one_file(floats: SqliteVec, tmp_path: Path) -> None:
    codes = SqliteVec(path=str(tmp_path / "x.sqlite"), table="codes.of-it")
    codes.create(16, "binary")
    codes.upsert(np.array([7]), np.array([[255, 1]], np.uint8), [{"a": "b"}])
    again = SqliteVec(path=str(tmp_path / "x.sqlite"), table="codes.of-it")
    assert (again.kind, again.dim, again.count(), floats.count()) == ("binary", 16, 1, 5000)
    assert again.search(np.array([[255, 0]], np.uint8), 1).distances.tolist() == [[1]]
    codes.remove()
    codes.close()
    again.close()
    assert floats.count() == 5000


@loads_extensions
def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("this is no database, whatever its name says" * 9)
    with pytest.raises(BackendError, match=r"text\.sqlite table 'cbir': .*not a database"):
        SqliteVec(path=str(tmp_path / "text.sqlite"))
    with pytest.raises(ConfigError, match="table"):
        SqliteVec(path=str(tmp_path / "x.sqlite"), table='a"; DROP TABLE b')
    wide = SqliteVec(path=str(tmp_path / "x.sqlite"))
    with pytest.raises(Unsupported, match="at most 8,192 dimensions or bits, not 16,384"):
        wide.create(16_384, "binary")
    wide.close()
    with pytest.raises(BackendError, match="is closed"):
        wide._run("SELECT 1")


def test_a_python_that_loads_no_extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        Connection = object

    monkeypatch.setattr(sqlite_vec, "sqlite3", Without)
    with pytest.raises(Unsupported, match="this Python's sqlite3 loads no extensions: take a Python"):
        SqliteVec(path=str(tmp_path / "x.sqlite"))


@loads_extensions
def test_a_collection_is_pushed(pictures: Path, tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "histogram"}],
        "codecs": [{"name": "lsh", "bits": 64}],
        "backends": [{"name": "faiss-binary-flat"}],
    }
    Collection.build(parse_config(document), tmp_path / "x.cbir").close()
    target = Target("sqlite-vec", {"path": str(tmp_path / "x.sqlite")})
    assert push(tmp_path / "x.cbir", target).new == 36
    assert not difference(tmp_path / "x.cbir", target)
    assert push(tmp_path / "x.cbir", target).new == 0


@loads_extensions
def test_a_place_that_is_only_looked_at_stays_empty(tmp_path: Path) -> None:
    place = tmp_path / "mistyped" / "x.db"
    pulled = CliRunner().invoke(main, ["pull", "sqlite-vec", f"path={place}", "--out", str(tmp_path / "p.cbir")])
    assert pulled.exit_code == 1
    assert "there is nothing to pull" in pulled.stderr
    assert len(pulled.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    with closing(SqliteVec(path=str(place))) as one, closing(SqliteVec(path=str(place))) as two:
        assert (one.count(), two.count()) == (0, 0)
        assert list(tmp_path.iterdir()) == []
        one.upsert(np.arange(3), np.ones((3, 8), np.uint8))
        assert two.count() == 3
