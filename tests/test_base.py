"""Checks of arrays, saved state, and what the base classes do around an author's methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.backends.faiss.flat import FaissFlat
from cbir_faiss.base import Backend, Capabilities, Extractor, Item, Source
from cbir_faiss.base.checks import check_codes, check_floats, check_ids, check_payload, normalise, within
from cbir_faiss.base.state import read_state, write_state
from cbir_faiss.codecs.raw import Raw
from cbir_faiss.errors import CorruptCollection, DimensionMismatch, InputError, Unsupported
from cbir_faiss.testing import BackendContract
from cbir_faiss.types import Batch, Hits

# --------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_contiguous_float32(dtype: Any) -> None:
    x = np.arange(12, dtype=dtype).reshape(3, 4)[:, ::2]
    checked = check_floats(x, "test")
    assert checked.dtype == np.float32
    assert checked.flags.c_contiguous
    assert checked.tolist() == x.tolist()


def test_large_finite_values_pass() -> None:
    x = np.full((4, 4), 3e38, np.float32)
    assert check_floats(x, "test") is x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0]], "got list"),
        (np.zeros(3, np.float32), r"got float32 \(3,\)"),
        (np.zeros((2, 3), np.int32), "got int32"),
        (np.zeros((2, 3), np.complex64), "got complex64"),
        (np.array([[0.0, 1], [np.nan, 1], [np.inf, 0]]), "vector 1 holds NaN or infinity"),
        (np.array([[0.0, 1], [0, 1], [-np.inf, 0]]), "vector 2 holds NaN or infinity"),
        (np.array([[np.inf, -np.inf]]), "vector 0 holds NaN or infinity"),
        (np.array([[1e300, 0.0]]), "vector 0 holds NaN or infinity"),
    ],
)
def test_floats_that_are_refused(x: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_floats(x, "test")


def test_other_widths_are_refused() -> None:
    with pytest.raises(DimensionMismatch, match="4 dimensions, got 3"):
        check_floats(np.zeros((2, 3), np.float32), "test", 4)
    with pytest.raises(DimensionMismatch, match="64 bits, got 16"):
        check_codes(np.zeros((2, 2), np.uint8), "test", 64)


@pytest.mark.parametrize("x", [np.zeros(2, np.uint8), np.zeros((2, 2), np.int8), np.zeros((2, 2)), [[1]]])
def test_codes_that_are_refused(x: Any) -> None:
    with pytest.raises(InputError, match="packed codes"):
        check_codes(x, "test", 16)


def test_codes_become_contiguous() -> None:
    x = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert check_codes(x, "test", 32) is x
    assert check_codes(x[:, ::2], "test", 16).flags.c_contiguous


@pytest.mark.parametrize("ids", [[3, 1, 2], np.array([3, 1, 2], np.uint8), np.array([3, 1, 2], np.int32), []])
def test_ids_become_int64(ids: Any) -> None:
    checked = check_ids(ids, unique=True)
    assert checked.dtype == np.int64
    assert checked.tolist() == list(ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, -2], "not negative, got -2"),
        ([[1]], "1-d array of integers"),
        ([1.5], "1-d array of integers"),
        (["a"], "1-d array of integers"),
        ([True], "1-d array of integers"),
        ([3, 1, 3], "id 3 occurs twice"),
        (np.array([2**64 - 1], np.uint64), "not negative"),
    ],
)
def test_ids_that_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_ids(ids, unique=True)


def test_payload_is_json() -> None:
    check_payload(None)
    check_payload([{}, {"a": [1, None, {"b": True}]}])
    for bad in ({"a": object()}, {"a": float("nan")}, "text", {"a": {1, 2}}):
        with pytest.raises(InputError, match="payload of row 1 is not JSON"):
            check_payload([{}, bad])  # type: ignore[list-item]


def test_normalise_names_the_zero_vector() -> None:
    x = np.array([[3, 4], [1e-30, 0], [0, 0]], np.float32)
    np.testing.assert_allclose(normalise(x[:2]), [[0.6, 0.8], [1, 0]], rtol=1e-6)
    with pytest.raises(InputError, match="row 2"):
        normalise(x)
    with pytest.raises(InputError, match="id 30"):
        normalise(x, np.array([10, 20, 30]))


def test_within() -> None:
    hits = Hits(np.array([[4, 5, -1], [6, -1, -1]]), np.array([[1, 2, np.inf], [3, np.inf, np.inf]], np.float32))
    near = within(hits, 2)
    assert near.limits.tolist() == [0, 2, 2]
    assert near.ids.tolist() == [4, 5]
    assert len(within(hits, np.inf).ids) == 3


# ---------------------------------------------------------------------------------------------------------------- state


@pytest.fixture
def state(tmp_path: Path) -> Path:
    write_state(
        tmp_path / "state", {"name": "žába", "n": 3}, {"x": np.arange(6.0).reshape(2, 3), "y": np.array([True])}
    )
    return tmp_path / "state"


def test_state_comes_back(state: Path) -> None:
    meta, arrays = read_state(state)
    assert meta == {"name": "žába", "n": 3}
    assert {name: (a.dtype.str, a.tolist()) for name, a in arrays.items()} == {
        "x": ("<f8", [[0, 1, 2], [3, 4, 5]]),
        "y": ("|b1", [True]),
    }


def test_state_that_was_cut_or_altered_is_refused(state: Path) -> None:
    content = state.read_bytes()
    for end in range(0, len(content), 97):
        state.write_bytes(content[:end])
        with pytest.raises(CorruptCollection):
            read_state(state)
    data = content.index(np.arange(6.0).tobytes())
    for at in (data, data + 17):
        state.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(CorruptCollection):
            read_state(state)


def test_state_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptCollection, match="missing"):
        read_state(tmp_path / "nothing")
    np.savez(tmp_path / "plain.npz", x=np.arange(3))
    with pytest.raises(CorruptCollection):
        read_state(tmp_path / "plain.npz")
    (tmp_path / "text").write_text("not an archive")
    with pytest.raises(CorruptCollection):
        read_state(tmp_path / "text")


def test_state_is_never_unpickled(tmp_path: Path) -> None:
    trap = np.array([_Trap()], dtype=object)
    np.savez(tmp_path / "trap.npz", x=trap, allow_pickle=True)
    with pytest.raises(CorruptCollection):
        read_state(tmp_path / "trap.npz")


class _Trap:
    def __reduce__(self) -> Any:
        return pytest.fail, ("state was unpickled",)


# --------------------------------------------------------------------------------------------------------- base classes


class Listed(Source):
    """Holds what it is given."""

    name = "listed"
    content: list[Item]

    def _setup(self) -> None:
        self.content = []

    def _items(self) -> list[Item]:
        return self.content

    def _read(self, index: int) -> Any:
        raise NotImplementedError

    def _content_key(self, index: int) -> bytes:
        return b""


def test_an_empty_source() -> None:
    with pytest.raises(InputError, match=r"source 'listed' is empty: Listed\(\)"):
        Listed().items()


class Wide(Extractor):
    """Breaks its declaration: three columns where two are declared."""

    name = "wide"
    reads = "vector"
    outputs: Mapping[str, tuple[int, str]] = {"embedding": (2, "float32")}

    def _prepare(self, item: Any) -> Any:
        return item

    def _extract(self, batch: Any) -> Any:
        return {"embedding": batch}


def test_an_extractor_that_breaks_its_declaration() -> None:
    assert Wide()([np.zeros(2, np.float32)])["embedding"].shape == (1, 2)
    with pytest.raises(InputError, match=r"column 'embedding' should be float32 \(1, 2\), got float32 \(1, 3\)"):
        Wide()([np.zeros(3, np.float32)])


def test_a_codec_refuses_the_state_of_another(tmp_path: Path) -> None:
    Raw().fit(np.ones((2, 3), np.float32)).save(tmp_path / "raw")
    meta, arrays = read_state(tmp_path / "raw")
    write_state(tmp_path / "other", meta | {"plugin": "itq"}, arrays)
    with pytest.raises(CorruptCollection, match=r"'itq'.*'raw'"):
        Raw().restore(tmp_path / "other")


def test_places_of_their_own() -> None:
    assert Backend.scoped({"path": "a/b", "m": 3}, "x") == {"path": "a/b/x", "m": 3}
    assert Backend.scoped({"collection": "photos"}, "x") == {"collection": "photos-x"}
    assert Backend.scoped({"m": 3}, "x") == {"m": 3}


def test_a_metric_that_does_not_go_with_the_vectors() -> None:
    with pytest.raises(Unsupported, match="takes float vectors, not binary"):
        FaissFlat().upsert(np.arange(2), np.zeros((2, 8), np.uint8))
    with pytest.raises(InputError, match="0 dimensions"):
        FaissFlat().create(0, "float")


# A stranger's backend in about 40 lines: brute force over a dict. It passes the contract, so the contract can be met
# by what refuses most of what may be refused.


class Small(Backend):
    """A dict of vectors; refuses what is optional."""

    name = "small"
    accepts = frozenset({"float"})
    metrics = ("l2",)
    capabilities = Capabilities("refused", "refused", "refused", "refused", "refused")

    def _create(self) -> None:
        self.rows: dict[int, tuple[Any, dict[str, Any]]] = {}

    def _upsert(self, ids: Any, vectors: Any, payload: Any) -> None:
        payload = [{}] * len(ids) if payload is None else [_copied(p) for p in payload]
        self.rows = self.rows | dict(zip(ids.tolist(), zip(vectors.copy(), payload, strict=True), strict=True))

    def _search(self, vectors: Any, k: int, where: Any, options: Any) -> Hits:
        rows, shape = self.rows, (len(vectors), k)
        ids, distances = np.full(shape, -1), np.full(shape, np.inf, np.float32)
        if rows:
            apart = ((vectors[:, None] - np.stack([row[0] for row in rows.values()])) ** 2).sum(axis=2)
            near = np.argsort(apart, axis=1)[:, :k]
            ids[:, : near.shape[1]] = np.array(list(rows))[near]
            distances[:, : near.shape[1]] = np.take_along_axis(apart, near, 1)
        return Hits(ids, distances)

    def _payload(self, ids: Any) -> list[dict[str, Any]]:
        return [self.rows[i][1] for i in ids.tolist()]

    def _count(self) -> int:
        return len(self.rows)

    def _delete(self, ids: Any) -> None:
        raise NotImplementedError

    def _fetch(self, ids: Any) -> Any:
        raise NotImplementedError

    def _scroll(self, batch_size: int) -> Iterator[Batch]:
        raise NotImplementedError


def _copied(payload: Mapping[str, Any]) -> dict[str, Any]:
    import copy

    return copy.deepcopy(dict(payload))


class TestSmall(BackendContract):
    plugin = Small
