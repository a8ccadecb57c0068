"""A collection as one file: what is in it, that it can be read again, and what bad input gets."""

from __future__ import annotations

import json
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
    binary = codec is not None and codec["name"] == "lsh"
    config = {
        "source": {"name": "vectors", "file": str(folder.parent / "x.npy")},
        "extractors": [{"name": "vectors"}],
        "codecs": [codec or {"name": "raw"}],
        "backends": [{"name": "faiss-binary-flat"} if binary else {"name": "faiss-flat", "metric": "l2"}],
        "rescore": [{"name": "float"} if codec else {"name": "none"}],
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


def test_hdf5_has_columns(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    x = collection_of(tmp_path / "x.cbir", DOCUMENTS, {"name": "lsh", "bits": 16})
    with Store.open(tmp_path / "x.cbir") as store:
        done = export_store(store, tmp_path / "x.h5")
        codes = store.fetch(np.arange(1, 5), "code")
    with h5py.File(tmp_path / "x.h5") as file:
        assert sorted(done.columns) == sorted(file)
        assert file["id"][:].tolist() == [1, 2, 3, 4]
        assert file["path"].asstr()[:].tolist() == ["a.png", "b.png", "ü.png", "d.png"]
        assert file["label"].asstr()[:].tolist() == ["cat", "dog", "", "cat"]
        assert json.loads(file["payload"].asstr()[1]) == {"year": 1991, "score": 2}
        np.testing.assert_array_equal(file["code"][:], codes)
        np.testing.assert_array_equal(file["embedding"][:], x)


def test_rotated_vectors_are_codes(tmp_path: Path) -> None:
    """The embeddings that a rescorer keeps beside them are the embeddings."""
    x = collection_of(tmp_path / "x.cbir", DOCUMENTS, {"name": "rotate"})
    with Store.open(tmp_path / "x.cbir") as store:
        done = export_store(store, tmp_path / "x.npz")
        turned = store.fetch(np.arange(1, 5), "code")
    assert {"code", "embedding"} <= set(done.columns)
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_array_equal(arrays["embedding"], x)
        np.testing.assert_array_equal(arrays["code"], turned)
    assert not np.allclose(turned, x)


def test_what_a_format_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    parquet = pytest.importorskip("pyarrow.parquet")
    large = (1 << 60) + 1
    documents = [{"path": "a", "mixed": large, "whole": large}, {"path": "b\0", "mixed": 0.5, "whole": 1}]
    collection_of(tmp_path / "x.cbir", documents)
    with Store.open(tmp_path / "x.cbir") as store:
        export_store(store, tmp_path / "x.parquet")
        table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
        assert (table["mixed"], table["whole"]) == ([str(large), "0.5"], [large, 1])
        with pytest.raises(CbirError, match=r"x\.h5: cannot be written: the path of item 2 has a NUL in it"):
            export_store(store, tmp_path / "x.h5")
        monkeypatch.setattr(export, "_write_hdf5", lambda *_: np.zeros(2).reshape(3))
        with pytest.raises(CbirError, match=r"x\.h5: cannot be written: cannot reshape"):
            export_store(store, tmp_path / "x.h5")
    monkeypatch.setattr(export, "_ROOM", 1000)
    collection_of(tmp_path / "y.cbir", [{"path": str(row)} for row in range(20)] + [{"path": "long" * 100}])
    message = "the longest path has 400 characters, and .npz would take as many for each of 21 items: "
    with Store.open(tmp_path / "y.cbir") as store, pytest.raises(CbirError, match=message):
        export_store(store, tmp_path / "y.npz")


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
