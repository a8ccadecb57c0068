"""Fixtures that several areas share: a folder of small pictures, and an embedding cache of the test's own."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Threads that wait for work must not spin: beside another process of tests that takes ten times as long. Read by the
# OpenMP of torch and FAISS when they are loaded, which is later, and by the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED = Path(__file__).parents[1].parent / "shared"
SLOW = Path(__file__).with_name("slow.txt")
SLOW_SECONDS = 0.3
_spent: Counter[str] = Counter()


def _fsync(descriptor: int) -> None:
    """As ``os.fsync``, for what is open: a killed process loses nothing without it, and a test cuts no power."""
    os.fstat(descriptor)


os.fsync = _fsync


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--find-slow", action="store_true", help="write tests/slow.txt anew, from what this run takes")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--find-slow") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--find-slow counts what one process does: leave -n out")
    _time_few_queries()


def _time_few_queries() -> None:
    """No test is about how long a search takes, so that a comparison need not ask many queries to tell."""
    from cbir_faiss.comparison import timing

    timing.QUERIES, timing.BATCH = 20, 50


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported now stays: nobody need look through millions of objects, now or later, for what to free."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is listed in slow.txt is slow, as what is marked so."""
    slow = set(SLOW.read_text(encoding="utf-8").split())
    for item in items:
        if _name(item) in slow:
            item.add_marker("slow")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Processor time is counted, because it depends least on what else the machine does."""
    before = sum(os.times()[:4])
    yield
    _spent[_name(item)] += sum(os.times()[:4]) - before


def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.unfreeze()
    if session.config.getoption("--find-slow"):
        slow = sorted(name for name, seconds in _spent.items() if seconds >= SLOW_SECONDS)
        SLOW.write_text("".join(f"{name}\n" for name in slow), encoding="utf-8")


def _name(item: pytest.Item) -> str:
    """``test_file.py::test_function``, whatever the parameters."""
    return item.nodeid.partition("[")[0].rpartition("/")[2]


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command that is run in this process says how it logs; the next test begins as if it had not."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests' caches are: what pytest numbers costs more, a link to the newest or a look at all the others."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def own_cache(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing a test computes is found by another, or left with the user."""
    folder = Path(tempfile.mkdtemp(dir=caches))
    monkeypatch.setenv("CBIR_CACHE", str(folder))
    return folder


@pytest.fixture
def only_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons draw no charts, and start no process that says what an index takes in memory: for tests to which
    neither matters."""
    monkeypatch.setattr("cbir_faiss.comparison.resident.ResidentMeter.measure", lambda *_: None)
    monkeypatch.setattr("cbir_faiss.report.charts._svg", lambda draw: "<svg></svg>")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of 12 pictures each: stripes, checks and blobs in random colours, told apart by their edges."""
    root = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48]
    patterns = {
        "stripes": (x // 6) % 2,
        "checks": (x // 6 + y // 6) % 2,
        "blob": ((x - 24) ** 2 + (y - 24) ** 2 < 260) * 1,
    }
    for name, pattern in patterns.items():
        (root / name).mkdir(parents=True)
        for i in range(12):
            shifted = np.roll(pattern, tuple(rng.integers(0, 6, 2)), axis=(0, 1))
            noise = rng.normal(0, 8, (48, 48, 1))
            pixels = 60 + 140 * shifted[..., None] + noise + rng.integers(-20, 20, 3)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root
