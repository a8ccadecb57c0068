"""Random schedules of adding, deleting, pushing, reading and dying end equal to a plain dict.

``CBIR_SCHEDULES=1000 python -m pytest tests/test_crashes.py`` runs a thousand of them.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _dying
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cbir_faiss.base import Backend
from cbir_faiss.collection import Collection, sync
from cbir_faiss.config import parse_config
from cbir_faiss.storage.manifest import read_manifest

DIM = 16
SCHEDULES = int(os.environ.get("CBIR_SCHEDULES", "50"))
KILLED = max(3, SCHEDULES // 25)  # a process for each change takes its time
BACKENDS: dict[str, dict[str, Any]] = {
    "flat": {"name": "faiss-flat", "metric": "l2"},
    "ivf": {"name": "faiss-ivf", "nlist": 2, "search": {"nprobe": 2}},
    "lancedb": {"name": "lancedb", "metric": "l2"},
}
Content = dict[int, tuple[bytes, str]]
"""By id: the vector's bytes, and its name."""

deaths = st.none() | st.builds(_dying.Death, st.integers(1, 40), st.booleans())
numbers = st.integers(0, 2**32 - 1)


def some_vectors(seed: int, n: int, first: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """No two ids have the same."""
    return np.random.default_rng([seed, first]).standard_normal((n, DIM)).astype(np.float32)


def content_of(stored: Backend | sync.Local) -> Content:
    return {
        int(i): (vector.tobytes(), str(document.get("name", "")))
        for batch in stored.scroll()
        for i, vector, document in zip(batch.ids, batch.vectors, batch.payload, strict=True)
    }


class Schedule(RuleBasedStateMachine):
    """One collection, one engine that it is pushed to, and readers of several generations."""

    def lives(self, death: _dying.Death | None, change: Callable[..., None], *args: Any) -> bool:
        """Make a change, or die over it; whether it died."""
        with _dying.mortal(death) as life:
            change(*args)
        return life.ended

    @initialize(backend=st.sampled_from(sorted(BACKENDS)), seed=numbers)
    def build(self, backend: str, seed: int) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="schedule-"))
        self.folder, self.target = (
            self.home / "x.cbir",
            sync.Target("lancedb", {"path": str(self.home / "target"), "table": "x"}),
        )
        np.save(self.home / "x.npy", some_vectors(seed, 8))
        options = {**BACKENDS[backend], **({"path": str(self.home / "engine")} if backend == "lancedb" else {})}
        sections = {"codecs": [{"name": "raw"}], "backends": [options]}
        config = parse_config({"source": {"name": "vectors", "file": str(self.home / "x.npy")}, **sections})
        Collection.build(config, self.folder, cache=self.home / "cache").close()
        self.model = {i: (vector.tobytes(), "") for i, vector in enumerate(np.load(self.home / "x.npy"))}
        self.pushed: Content = {}
        self.readers: list[tuple[Collection, Content]] = []

    def teardown(self) -> None:
        for reader, _ in getattr(self, "readers", []):
            reader.close()
        if hasattr(self, "home"):
            shutil.rmtree(self.home)

    @rule(seed=numbers, n=st.integers(1, 5), death=deaths)
    def add(self, seed: int, n: int, death: _dying.Death | None) -> None:
        first = read_manifest(self.folder).next_id
        vectors, names = some_vectors(seed, n, first), [f"{seed}-{i}" for i in range(n)]
        after = self.model | {first + i: (v.tobytes(), names[i]) for i, v in enumerate(vectors)}
        self.settle(after, self.lives(death, add, self.folder, vectors, names))

    @precondition(lambda self: len(self.model) > 4)
    @rule(seed=numbers, share=st.floats(0.05, 0.6), death=deaths)
    def delete(self, seed: int, share: float, death: _dying.Death | None) -> None:
        chosen = np.random.default_rng(seed).random(len(self.model)) < share
        gone = [i for i, is_chosen in zip(self.model, chosen, strict=True) if is_chosen]
        after = {i: item for i, item in self.model.items() if i not in gone}
        self.settle(after, self.lives(death, delete, self.folder, gone))

    @rule(death=deaths)
    def push(self, death: _dying.Death | None) -> None:
        ended = self.lives(death, push, self.folder, self.target)
        with self.target.opened() as engine:
            found = content_of(engine)
        if ended:  # a part of the way from what was pushed before
            before, wanted = set(self.pushed.items()), set(self.model.items())
            assert before & wanted <= set(found.items()) <= before | wanted
        else:
            assert found == self.model
        self.pushed = found

    @rule()
    def read(self) -> None:
        self.readers.append((Collection.open(self.folder), dict(self.model)))
        for reader, content in self.readers:
            # An engine has one generation: a reader of an earlier one finds what is there of it.
            there = content.keys() & self.model.keys() if reader._store.engine is not None else content.keys()
            self.holds(reader, {i: item for i, item in content.items() if i in there})

    def settle(self, after: Content, died: bool) -> None:
        """The change was made, or, if it died, perhaps nothing of it."""
        with Collection.open(self.folder) as collection:
            found = content_of(sync.Local(collection._store))
            assert found == after or (died and found == self.model)
            self.model = found
            self.holds(collection, found)
            assert collection.verify() == []

    def holds(self, collection: Collection, content: Content) -> None:
        """Every item is found by its own vector, with its document, and nothing else is found."""
        if not content:
            return
        queries = np.frombuffer(b"".join(vector for vector, _ in content.values()), np.float32).reshape(-1, DIM)
        hits = collection.search_hits(queries, k=len(content) + 1)
        assert hits.ids[:, 0].tolist() == list(content)
        assert {frozenset(row[row >= 0].tolist()) for row in hits.ids} == {frozenset(content)}
        documents = collection.documents(list(content))
        assert [str(document.get("name", "")) for document in documents] == [name for _, name in content.values()]


def add(folder: Path, vectors: Any, names: list[str]) -> None:
    with Collection.open(folder) as collection:
        collection.add_vectors(vectors, [{"name": name} for name in names])


def delete(folder: Path, ids: list[int]) -> None:
    with Collection.open(folder) as collection:
        collection.delete(ids)


def push(folder: Path, target: sync.Target) -> None:
    sync.push(folder, target, remove_most=True)


class KilledSchedule(Schedule):
    """As ``Schedule``, each change in a process of its own, and dying is a SIGKILL."""

    def lives(self, death: _dying.Death | None, change: Callable[..., None], *args: Any) -> bool:
        child = PROCESSES.Process(target=_dying.live, args=(death, change, *args))
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        return child.exitcode != 0


PROCESSES = multiprocessing.get_context("forkserver")
# Imported once, not by every process; of LanceDB what begins no thread, which would not be there after a fork.
PROCESSES.set_forkserver_preload(["test_crashes", "faiss", "pyarrow.dataset", "lance_namespace"])

TestSchedules = Schedule.TestCase
TestSchedules.settings = settings(
    max_examples=SCHEDULES - KILLED,
    stateful_step_count=8,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestKilledSchedules = KilledSchedule.TestCase
TestKilledSchedules.settings = settings(TestSchedules.settings, max_examples=KILLED)
