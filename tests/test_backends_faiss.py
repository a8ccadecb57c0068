"""What is particular to the FAISS backends: existing indexes, devices, small samples, search options, id look-ups."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cbir_faiss as cf
from cbir_faiss.backends.faiss._payloads import Payloads
from cbir_faiss.backends.faiss._rows import Rows
from cbir_faiss.base import registry
from cbir_faiss.base.filters import parse_where
from cbir_faiss.base.state import read_state, write_state
from cbir_faiss.errors import ConfigError, CorruptCollection, InputError, MissingDependency, UnknownId, Unsupported

N, DIM = 300, 16


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On data this small FAISS's threads would only wait for each other."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).standard_normal((N, DIM), dtype=np.float32)


@pytest.fixture
def codes() -> Any:
    return np.random.default_rng(0).integers(0, 256, (N, 8), dtype=np.uint8)


def test_every_faiss_backend_is_under_contract() -> None:
    import test_backends

    covered = {c.plugin.name for n, c in vars(test_backends).items() if n.startswith("Test")}
    assert {name for name in registry.names("backends") if name.startswith("faiss")} <= covered


# ------------------------------------------------------------------------------------------------------------- wrapping


@pytest.mark.parametrize("factory", ["Flat", "IDMap,Flat", "IDMap2,HNSW8", "IVF4,Flat", "RR16,IVF4,Flat"])
def test_wrap_keeps_the_ids_of_the_index(factory: str, x: Any) -> None:
    index = faiss.index_factory(DIM, factory)
    index.train(x)
    ids = np.arange(N) if factory == "Flat" else np.random.default_rng(1).permutation(N) * 1000 + 7
    index.add(x) if factory == "Flat" else index.add_with_ids(x, ids)
    backend = cf.wrap(index)
    assert (backend.dim, backend.kind, backend.metric, backend.count()) == (DIM, "float", "l2", N)
    hits = backend.search(x[:20], 1)
    assert hits.ids[:, 0].tolist() == ids[:20].tolist()
    np.testing.assert_allclose(backend.fetch(ids[:20]), x[:20], atol=1e-5)
    assert sorted(i for b in backend.scroll(70) for i in b.ids.tolist()) == sorted(ids.tolist())

    backend.delete(ids[:1])
    backend.upsert(np.array([10**6, int(ids[1])]), x[:2] + 100, [{"new": True}, {}])
    assert backend.count() == N
    assert int(backend.search(x[:1], 1).ids[0, 0]) != ids[0]
    assert backend.search(x[:2] + 100, 1).ids[:, 0].tolist() == [10**6, int(ids[1])]
    assert backend.search(x[:1] + 100, 3, {"new": True}).ids.tolist() == [[10**6, -1, -1]]
    np.testing.assert_allclose(backend.fetch(np.array([10**6])), x[:1] + 100, atol=1e-4)


@pytest.mark.parametrize("factory", ["BFlat", "IDMap2,BFlat", "BIVF4", "BHNSW8"])
def test_wrap_binary(factory: str, codes: Any) -> None:
    index = faiss.index_binary_factory(64, factory)
    index.train(codes)
    index.add_with_ids(codes, np.arange(N) + 50) if "IDMap" in factory or "IVF" in factory else index.add(codes)
    first = 50 if "IDMap" in factory or "IVF" in factory else 0
    backend = cf.wrap(index)
    assert (backend.dim, backend.kind, backend.metric) == (64, "binary", "hamming")
    assert backend.search(codes[:9], 1).ids[:, 0].tolist() == list(range(first, first + 9))
    assert backend.exact == ("BFlat" in factory)
    np.testing.assert_array_equal(backend.fetch(np.arange(9) + first), codes[:9])


def test_wrap_copies_nothing_and_an_id_map_stays_in_step(x: Any) -> None:
    index = faiss.index_factory(DIM, "IDMap2,Flat")
    index.add_with_ids(x, np.arange(N) + 10)
    backend = cf.wrap(index)
    backend.upsert(np.array([9999]), x[:1] * 2)
    assert index.ntotal == N + 1
    assert index.search(x[:1] * 2, 1)[1].tolist() == [[9999]]


def test_wrap_keeps_the_later_of_two_equal_ids(x: Any) -> None:
    index = faiss.index_factory(DIM, "IDMap,Flat")
    index.add_with_ids(x[:2], np.array([7, 7]))
    backend = cf.wrap(index)
    assert backend.count() == 1
    assert backend.search(x[:1], 2).ids.tolist() == [[7, -1]]
    np.testing.assert_array_equal(backend.fetch(np.array([7])), x[1:2])


def test_wrap_takes_the_metric_of_the_index(x: Any) -> None:
    index = faiss.IndexFlatIP(DIM)
    index.add(x / np.linalg.norm(x, axis=1, keepdims=True))
    assert cf.wrap(index).metric == "ip"
    assert cf.wrap(index, "cosine").search(3 * x[:1], 1).distances[0, 0] == pytest.approx(0, abs=1e-5)
    with pytest.raises(Unsupported, match="not l2"):
        cf.wrap(index, "l2")
    with pytest.raises(Unsupported, match="not supported"):
        cf.wrap(faiss.IndexFlat(DIM, faiss.METRIC_L1))
    lsh = faiss.IndexLSH(DIM, 32)
    lsh.add(x)
    assert cf.wrap(lsh).metric == "hamming"
    assert cf.wrap(lsh).code_bits == 32


def test_wrap_refuses_what_it_cannot_serve(x: Any) -> None:
    with pytest.raises(InputError, match="takes a FAISS index, not ndarray"):
        cf.wrap(x)
    negative = faiss.index_factory(DIM, "IDMap,Flat")
    negative.add_with_ids(x[:2], np.array([-5, 3]))
    with pytest.raises(InputError, match="holds -5"):
        cf.wrap(negative)
    twice = faiss.index_factory(DIM, "IVF1,Flat")
    twice.train(x)
    twice.add_with_ids(x[:2], np.array([3, 3]))
    with pytest.raises(InputError, match="holds an id twice"):
        cf.wrap(twice)


def test_a_wrapped_index_is_saved_with_its_ids(tmp_path: Path, x: Any) -> None:
    index = faiss.index_factory(DIM, "IVF4,Flat")
    index.train(x)
    index.add_with_ids(x, np.arange(N) * 3 + 1)
    backend = cf.wrap(index)
    backend.save(tmp_path / "saved")
    again = cf.wrap(faiss.IndexFlat(DIM))
    again.restore(tmp_path / "saved")
    assert again.search(x[:5], 1).ids[:, 0].tolist() == [1, 4, 7, 10, 13]


def test_an_existing_file_is_opened(tmp_path: Path, x: Any, codes: Any) -> None:
    index = faiss.index_factory(DIM, "IDMap,SQ8")
    index.train(x)
    index.add_with_ids(x, np.arange(N) + 5)
    faiss.write_index(index, str(tmp_path / "a.index"))
    backend = cf.load_backend("faiss", file=str(tmp_path / "a.index"))
    assert backend.search(x[:3], 1).ids[:, 0].tolist() == [5, 6, 7]
    assert backend.code_bits == 8 * DIM
    with pytest.raises(InputError, match="has its width already"):
        backend.create(DIM, "float")

    binary = faiss.IndexBinaryFlat(64)
    binary.add(codes)
    faiss.write_index_binary(binary, str(tmp_path / "b.index"))
    mapped = cf.load_backend("faiss", file=str(tmp_path / "b.index"), mmap=True)
    assert mapped.search(codes[:3], 1).ids[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(Unsupported, match="read-only"):
        mapped.upsert(np.array([1]), codes[:1])
    mapped.delete(np.array([1]))
    assert mapped.search(codes[1:2], 1).ids[0, 0] != 1


def test_a_file_that_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "c.index").write_text("no index at all")
    for name in ("c.index", "nowhere.index"):
        with pytest.raises(InputError, match="FAISS cannot read an index from it"):
            cf.load_backend("faiss", file=str(tmp_path / name))


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("faiss", {}, "factory string or a file"),
        ("faiss", {"factory": "Flat", "file": "x"}, "factory string or a file"),
        ("faiss", {"factory": "IDMap,Flat"}, "leave IDMap out"),
        ("faiss", {"factory": "Flat", "mmap": True}, "mmap goes with a file"),
        ("faiss-lsh", {}, "bits: is required"),
        ("faiss-lsh", {"bits": 12}, "multiple of 8"),
        ("faiss-flat", {"metric": "hamming"}, "metric"),
        ("faiss-flat", {"device": "gpu"}, "device"),
        ("faiss-rabitq", {"nb_bits": 10}, "nb_bits"),
        ("faiss-ivf", {"nlist": 0}, "nlist"),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cf.load_backend(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("faiss", {"factory": "Nonsense9"}, "cannot make 'Nonsense9'"),
        ("faiss", {"factory": "PQ5"}, "cannot make 'PQ5' for width 16"),
        ("faiss-lsh", {"bits": 64, "rotate": False}, "at most 16 bits come of 16 dimensions"),
        ("faiss-pq", {"bits": 24}, "6 slices of 4 bits do not divide 16"),
    ],
)
def test_options_that_do_not_fit_the_vectors(name: str, options: dict[str, Any], message: str, x: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        cf.load_backend(name, **options).train(x) or cf.load_backend(name, **options).upsert(np.arange(N), x)


def test_more_tables_than_bits(codes: Any) -> None:
    with pytest.raises(ConfigError, match="4 tables with keys of 32 bits need more than 64 bits"):
        cf.load_backend("faiss-binary-multihash", tables=4, key_bits=32).upsert(np.arange(N), codes)


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPU support")
@pytest.mark.parametrize("name", ["faiss-flat", "faiss-binary-flat"])
def test_cuda_without_the_gpu_wheel(name: str) -> None:
    with pytest.raises(MissingDependency, match=r"pip install 'cbir-faiss\[gpu\]'"):
        cf.load_backend(name, device="cuda").create(64, "binary" if "binary" in name else "float")


@pytest.mark.skipif(not hasattr(faiss, "StandardGpuResources"), reason="needs the gpu extra")
@pytest.mark.parametrize("name", ["faiss-flat", "faiss-binary-flat"])
def test_cuda_gives_what_the_cpu_gives(name: str, x: Any, codes: Any, tmp_path: Path) -> None:
    if not faiss.get_num_gpus():
        pytest.skip("no GPU is visible")
    data = codes if "binary" in name else x
    cpu, gpu = cf.load_backend(name), cf.load_backend(name, device="cuda")
    for backend in (cpu, gpu):
        backend.upsert(np.arange(N) * 2, data, [{"even": n % 2 == 0} for n in range(N)])
        backend.delete(np.arange(20))
    for where in (None, {"even": True}):
        expected, got = cpu.search(data[:7], 20, where), gpu.search(data[:7], 20, where)
        np.testing.assert_allclose(got.distances, expected.distances, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(gpu.fetch(np.array([100, 40])), data[[50, 20]])
    gpu.save(tmp_path / "saved")
    again = cf.load_backend(name, device="cuda")
    again.restore(tmp_path / "saved")
    assert again.count() == N - 10


@pytest.mark.parametrize("name", ["faiss-ivf", "faiss-binary-ivf", "faiss-rabitq"])
@pytest.mark.parametrize("n", [1, 5, 200])
def test_small_samples_get_few_lists(name: str, n: int, x: Any, codes: Any) -> None:
    data = codes if "binary" in name else x
    backend = cf.load_backend(name)
    backend.train(data[:n])
    backend.upsert(np.arange(n), data[:n])
    assert backend.count() == n
    assert (backend.search(data[:1], n, options={"nprobe": 1000}).ids >= 0).all()


def test_samples_that_are_too_small(x: Any) -> None:
    with pytest.raises(InputError, match="nlist 64 needs at least as many training vectors, got 10"):
        cf.load_backend("faiss-ivf", nlist=64).train(x[:10])
    with pytest.raises(InputError, match="cannot learn from 5 vectors"):
        cf.load_backend("faiss-pq", bits=32).train(x[:5])
    with pytest.raises(InputError, match="cannot learn from 10 vectors"):
        cf.load_backend("faiss", factory="IVF64,Flat").train(x[:10])


def test_what_learns_is_trained_first_and_once(x: Any) -> None:
    backend = cf.load_backend("faiss-ivf")
    with pytest.raises(InputError, match=r"call train\(sample\) first"):
        backend.upsert(np.arange(N), x)
    backend.train(x)
    backend.upsert(np.arange(N), x)
    with pytest.raises(InputError, match="train it before the first upsert"):
        backend.train(x)


def test_search_options_sweep_without_rebuilding(x: Any) -> None:
    queries = np.random.default_rng(1).standard_normal((50, DIM), dtype=np.float32)
    truth = _filled("faiss-flat", x).search(queries, 10).ids

    def recall(backend: Any, options: dict[str, Any]) -> float:
        found = backend.search(queries, 10, options=options).ids
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth.tolist(), found.tolist(), strict=True)]))

    ivf = _filled("faiss-ivf", x, nlist=16)
    recalls = [recall(ivf, {"nprobe": nprobe}) for nprobe in (1, 4, 16, 1)]
    assert recalls[0] < recalls[1] < recalls[2] == 1
    assert recalls[3] == recalls[0]
    hnsw = _filled("faiss-hnsw", x, m=2, ef_construction=4)
    assert recall(hnsw, {"ef": 1}) < recall(hnsw, {"ef": 300})
    rabitq = _filled("faiss-rabitq", x, nb_bits=4)
    assert recall(rabitq, {"qb": 1}) < recall(rabitq, {"qb": 8})
    factory = _filled("faiss", x, factory="IVF16,Flat")
    assert recall(factory, {}) < recall(factory, {"nprobe": 16}) == 1
    with pytest.raises(ConfigError, match="ef: IndexIVFFlat has no such search option"):
        factory.search(queries, 3, options={"ef": 3})


def test_multihash_gives_the_buckets_and_nothing_else(codes: Any) -> None:
    backend = _filled("faiss-binary-multihash", codes, tables=2, key_bits=4)
    bits = np.unpackbits(codes, axis=1, bitorder="little")
    for nflip in (0, 1):
        near = sum((bits[:, t : t + 4] != bits[:1, t : t + 4]).sum(axis=1) <= nflip for t in (0, 4))
        for k in (200, 2000):
            found = backend.search(codes[:1], k, options={"nflip": nflip})
            assert set(found.ids[0].tolist()) - {-1} == set(np.flatnonzero(near).tolist())
    hamming = (np.unpackbits(codes, axis=1) != np.unpackbits(codes[:1], axis=1)).sum(axis=1)
    far = backend.search(codes[:1], 2000)
    assert far.distances[0][far.ids[0] >= 0].tolist() == hamming[far.ids[0][far.ids[0] >= 0]].tolist()


def test_code_bits(x: Any) -> None:
    expected = {"Flat": None, "PQ4": 32, "SQ8": 128, "IVF4,PQ8": 64, "LSH64r": 64, "HNSW8_SQ8": 128, "IVF4,Flat": None}
    for factory, bits in expected.items():
        backend = cf.load_backend("faiss", factory=factory)
        backend.train(x)
        backend.upsert(np.arange(N), x)
        assert backend.code_bits == bits, factory
    assert _filled("faiss-lsh", x, bits=48).code_bits == 48
    assert _filled("faiss-flat", x).code_bits is None
    assert _filled("faiss-pq", x, bits=32).code_bits == 32


def test_lsh_codes_are_those_that_rank(x: Any) -> None:
    backend = _filled("faiss-lsh", x, bits=64)
    codes = backend.hamming_codes(x)
    hits = backend.search(x[:5], N)
    apart = np.unpackbits(np.bitwise_xor(codes[:5, None], codes[None]), axis=2).sum(axis=2)
    np.testing.assert_array_equal(np.take_along_axis(apart, hits.ids, 1), hits.distances)
    near = backend.range_search(x[:5], 20)
    assert [set(near.ids[a:b].tolist()) for a, b in zip(near.limits, near.limits[1:], strict=False)] == [
        set(np.flatnonzero(row <= 20).tolist()) for row in apart
    ]


def test_nothing_is_left_half_written_over_a_mapped_file(tmp_path: Path, codes: Any) -> None:
    _filled("faiss-binary-flat", codes).save(tmp_path / "saved")
    mapped = cf.load_backend("faiss-binary-flat")
    mapped.restore(tmp_path / "saved", mmap=True)
    _filled("faiss-binary-flat", codes[::-1].copy()).save(tmp_path / "saved")
    assert mapped.search(codes[:3], 1).ids[:, 0].tolist() == [0, 1, 2]
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["index.faiss", "payload.jsonl", "rows.npz"]


def test_files_of_another_plugin_options_or_format(tmp_path: Path, x: Any) -> None:
    _filled("faiss-flat", x).save(tmp_path / "saved")
    for other in (cf.load_backend("faiss-flat", metric="ip"), cf.load_backend("faiss-hnsw")):
        with pytest.raises(CorruptCollection, match="faiss-flat"):
            other.restore(tmp_path / "saved")
    meta, arrays = read_state(tmp_path / "saved" / "rows.npz")
    write_state(tmp_path / "saved" / "rows.npz", meta | {"format": 99}, arrays)
    with pytest.raises(CorruptCollection, match="format 99, this version reads 1"):
        cf.load_backend("faiss-flat").restore(tmp_path / "saved")


@pytest.mark.parametrize("mmap", [False, True])
def test_a_cut_file_is_refused_mapped_or_not(tmp_path: Path, x: Any, mmap: bool) -> None:
    _filled("faiss-flat", x).save(tmp_path / "saved")
    file = tmp_path / "saved" / "index.faiss"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptCollection, match=r"index\.faiss"):
        cf.load_backend("faiss-flat").restore(tmp_path / "saved", mmap=mmap)


def test_saved_files_hold_no_ids_in_the_common_case(tmp_path: Path, codes: Any) -> None:
    _filled("faiss-binary-flat", codes).save(tmp_path / "saved")
    assert read_state(tmp_path / "saved" / "rows.npz")[1] == {}
    assert (tmp_path / "saved" / "payload.jsonl").stat().st_size == 0


def test_a_mapped_index_survives_in_its_own_process(tmp_path: Path, codes: Any) -> None:
    """FAISS aborts the process when a mapped index is changed; whoever tries must live on. A deletion only hides."""
    _filled("faiss-binary-hnsw", codes).save(tmp_path / "saved")
    code = (
        "import sys, numpy as np, cbir_faiss as cf\n"
        "b = cf.load_backend('faiss-binary-hnsw'); b.restore(__import__('pathlib').Path(sys.argv[1]), mmap=True)\n"
        "try: b.upsert(np.array([1]), np.zeros((1, 8), np.uint8))\n"
        "except cf.CbirError as e: print('refused')\n"
        "b.delete(np.array([1])); print(b.count())\n"
        "print(b.search(np.zeros((1, 8), np.uint8), 2).ids.shape)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "saved")], capture_output=True, text=True)
    assert (run.returncode, run.stdout.split("\n")) == (0, ["refused", "299", "(1, 2)", ""]), run.stderr


def test_payload_of_a_collection_that_is_gone_from_disk(tmp_path: Path, codes: Any) -> None:
    backend = cf.load_backend("faiss-binary-flat")
    backend.upsert(np.arange(N), codes, [{"n": n} for n in range(N)])
    backend.save(tmp_path / "saved")
    mapped = cf.load_backend("faiss-binary-flat")
    mapped.restore(tmp_path / "saved", mmap=True)
    shutil.rmtree(tmp_path / "saved")
    assert mapped.payload(np.array([7, 200])) == [{"n": 7}, {"n": 200}]
    assert mapped.search(codes[:1], 5, {"n": {"lt": 3}}).ids[0].tolist()[3:] == [-1, -1]


def _filled(name: str, data: Any, **options: Any) -> Any:
    backend = cf.load_backend(name, **options)
    backend.train(data)
    backend.upsert(np.arange(len(data)), data)
    backend.flush()
    return backend


# ---------------------------------------------------------------------------------------------------- rows and payloads

_IDS = st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True)
_STEPS = st.lists(st.tuples(st.sampled_from(["upsert", "delete", "save"]), _IDS), max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(_STEPS, st.booleans())
def test_rows_behave_like_a_dict(steps: list[tuple[str, list[int]]], in_order: bool) -> None:
    rows, model, n = Rows(), dict[int, int](), 0
    for action, chosen in steps:
        ids = np.array(sorted(chosen) if in_order else chosen, np.int64)
        if action == "upsert":
            rows.append(ids, [{"row": n + i} for i in range(len(ids))])
            model.update(zip(ids.tolist(), range(n, n + len(ids)), strict=True))
            n += len(ids)
        elif action == "delete":
            rows.delete(ids)
            model = {i: row for i, row in model.items() if i not in chosen}
        else:
            rows = Rows.from_arrays(rows.n, rows.arrays(), rows.payloads)
        assert rows.n - rows.dead == len(model)
        everything = np.arange(42)
        assert rows.find(everything).tolist() == [model.get(i, -1) for i in range(42)]
        assert rows.in_order_of_ids().tolist() == [model[i] for i in sorted(model)]
        assert np.flatnonzero(rows.select(None)).tolist() == sorted(model.values())
        known = np.array(sorted(model), np.int64)
        assert rows.ids_of(rows.require(known)).tolist() == known.tolist()
        assert [rows.payloads[row]["row"] for row in model.values()] == list(model.values())


def test_rows_in_the_common_case_keep_no_arrays() -> None:
    rows = Rows()
    rows.append(np.arange(100), None)
    rows.append(np.arange(100, 250), None)
    assert rows.arrays() == {}
    with pytest.raises(UnknownId, match="id 250 is not stored"):
        rows.require(np.array([3, 250]))


def test_many_ids_out_of_order() -> None:
    rows, ids = Rows(), np.random.default_rng(0).permutation(20_000)
    for part in np.array_split(ids, 40):
        rows.append(part, None)
    assert np.array_equal(rows.find(ids), np.arange(20_000))


def test_filters_look_only_at_new_rows() -> None:
    payloads, where = Payloads(), parse_where({"a": 1})
    payloads.append(0, [{"a": 1}, {"a": 2}])
    first = payloads.matching(where, 2)
    payloads.append(2, [{"a": 1}])
    assert payloads.matching(where, 4).tolist() == [True, False, True, False]
    assert first.tolist() == [True, False]
    for value in range(40):
        payloads.matching(parse_where({"a": value}), 4)
    assert payloads.matching(where, 2).tolist() == [True, False]
