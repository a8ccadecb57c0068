"""Fixtures that several areas share: a folder of small pictures, and an embedding cache of the test's own."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

# Threads that wait for work must not spin: beside another process of tests that takes ten times as long. Read by the
# OpenMP of torch and FAISS when they are loaded, which is later, and by the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED = Path(__file__).parents[1].parent / "shared"
SPENT = Path(__file__).with_name("spent.txt")
LEAST = {"medium": 0.05, "slow": 1.0}
"""Seconds from which a test, with all its parameters, is of a kind."""
_spent: Counter[str] = Counter()
_aside = np.zeros(2)


def _fsync(descriptor: int) -> None:
    """As ``os.fsync``, for what is open: a killed process loses nothing without it, and a test cuts no power."""
    os.fstat(descriptor)


os.fsync = _fsync


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-spent", action="store_true", help="write tests/spent.txt anew, from what this run takes")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-spent") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--write-spent counts what one process does: leave -n out")
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
    """What spent.txt says, beside what is marked in the tests themselves."""
    lines = (line.split() for line in SPENT.read_text(encoding="utf-8").splitlines())
    spent = {name: float(seconds) for name, seconds in lines}
    for item in items:
        for kind, least in LEAST.items():
            if spent.get(_name(item), 0.0) >= least:
                item.add_marker(kind)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before = _now()
    _aside[:] = 0
    yield
    _spent[_name(item)] += float((_now() - before - _aside).max())


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
    """What several tests use is not of the one that happens to be the first."""
    before = _now()
    yield
    if fixturedef.scope != "function":
        _aside[:] += _now() - before


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Nor is its end of the last one."""
    before = _now()
    yield
    _aside[:] += _now() - before


def _now() -> NDArray[np.float64]:
    """Processor time depends least on what else the machine does; what waits holds up a process, if not a core."""
    return np.array([sum(os.times()[:4]), time.monotonic() / 2])


def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.unfreeze()
    if session.config.getoption("--write-spent"):
        lines = [f"{name} {spent:.2f}\n" for name, spent in sorted(_spent.items()) if spent >= LEAST["medium"]]
        SPENT.write_text("".join(lines), encoding="utf-8")


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
