"""A collection as one file: what is in it, that it can be read again, and what bad input gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cbir_faiss.cli import main
from cbir_faiss.collection import Collection, export
from cbir_faiss.collection.export import export as export_store
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError, InputError
from cbir_faiss.sources.vectors import Vectors
from cbir_faiss.storage.store import Store

DOCUMENTS: list[dict[str, Any]] = [
    {"path": "a.png", "label": "cat", "year": 1990, "score": 0.5, "tags": ["x"], "id": "own"},
    {"path": "b.png", "label": "dog", "year": 1991, "score": 2},
    {"path": "ü.png", "year": None, "mixed": 1},
    {"path": "d.png", "label": "cat", "mixed": "text", "true": True},
]


def collection_of(folder: Path, documents: list[dict[str, Any]], codec: dict[str, Any] | None = None) -> np.ndarray:
    """Vectors with these documents, of which item 0 is deleted."""
    x = np.random.default_rng(0).random((len(documents) + 1, 8)).astype(np.float32)
    np.save(folder.parent / "x.npy", x[:1])
    binary = codec is not None
    config = {
        "source": {"name": "vectors", "file": str(folder.parent / "x.npy")},
        "extractors": [{"name": "vectors"}],
        "codecs": [codec or {"name": "raw"}],
        "backends": [{"name": "faiss-binary-flat"} if binary else {"name": "faiss-flat", "metric": "l2"}],
        "rescore": [{"name": "float"} if binary else {"name": "none"}],
    }
    with Collection.build(parse_config(config), folder) as collection:
        collection.add_vectors(x[1:], documents)
        collection.delete([0])
    return x[1:]


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".h5"])
def test_what_is_written_is_read(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_ROWS", 3)
    pytest.importorskip({".npz": "numpy", ".parquet": "pyarrow", ".h5": "h5py"}[suffix])
    x = collection_of(tmp_path / "x.cbir", DOCUMENTS)
    done = CliRunner().invoke(main, ["export", str(tmp_path / "x.cbir"), "--to", str(tmp_path / f"x{suffix}")])
    assert done.exit_code == 0, done.output
    assert f"x{suffix}: 4 items: id, path, label, " in done.stdout
    source = Vectors(file=str(tmp_path / f"x{suffix}"))
    np.testing.assert_array_equal(source.matrix(), x)
    assert not list(tmp_path.glob("*.part"))


def test_parquet_has_columns(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    collection_of(tmp_path / "x.cbir", DOCUMENTS, {"name": "lsh", "bits": 16})
    with Store.open(tmp_path / "x.cbir") as store:
        done = export_store(store, tmp_path / "x.parquet")
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert (done.items, done.columns) == (4, list(table))
    assert table["id"] == [1, 2, 3, 4]
    assert table["path"] == ["a.png", "b.png", "ü.png", "d.png"]
    assert table["label"] == ["cat", "dog", None, "cat"]
    assert table["year"] == [1990, 1991, None, None]
    assert table["score"] == [0.5, 2.0, None, None]
    assert table["mixed"] == [None, None, "1", "text"]
    assert table["tags"] == ['["x"]', None, None, None]
    assert table["true"] == [None, None, None, True]
    assert table["payload.id"] == ["own", None, None, None]
    assert [len(code) for code in table["code"]] == [2] * 4
    assert [len(vector) for vector in table["embedding"]] == [8] * 4
    again = Vectors(file=str(tmp_path / "x.parquet")).items()
    assert [(item.path, item.labels) for item in again][:2] == [("a.png", ("cat",)), ("b.png", ("dog",))]


def test_several_labels(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    documents = [{"path": "a", "label": ["x", "y"]}, {"path": "b", "label": "z"}, {"path": "c"}]
    collection_of(tmp_path / "x.cbir", documents)
    with Store.open(tmp_path / "x.cbir") as store:
        export_store(store, tmp_path / "x.parquet")
        export_store(store, tmp_path / "x.npz")
    assert parquet.read_table(tmp_path / "x.parquet").to_pydict()["label"] == [["x", "y"], ["z"], None]
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["label"].tolist() == ['["x", "y"]', "z", ""]
        assert sorted(arrays) == ["embedding", "id", "label", "path"]


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection_of(tmp_path / "x.cbir", DOCUMENTS[:1])
    with Store.open(tmp_path / "x.cbir") as store:
        with pytest.raises(InputError, match=r"x\.csv: the suffix must be one of \.npz, \.parquet, \.h5"):
            export_store(store, tmp_path / "x.csv")
        (tmp_path / "x.npz").write_text("somebody's")
        with pytest.raises(CbirError, match=r"x\.npz: is there already: remove it, or name another"):
            export_store(store, tmp_path / "x.npz")
        with pytest.raises(CbirError, match="cannot be written: No such file"):
            export_store(store, tmp_path / "nowhere" / "x.npz")

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(export, "sync", full)
        with pytest.raises(CbirError, match="cannot be written: No space left on device"):
            export_store(store, tmp_path / "y.npz")
        assert not list(tmp_path.glob("y.*"))
    assert (tmp_path / "x.npz").read_text() == "somebody's"
    with Collection.open(tmp_path / "x.cbir") as collection:
        collection.delete([1])
    with Store.open(tmp_path / "x.cbir") as store, pytest.raises(InputError, match="has no items"):
        export_store(store, tmp_path / "z.npz")
