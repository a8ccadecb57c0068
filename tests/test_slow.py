"""Which tests are slow is measured, and written down in slow.txt."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from _readme import PLAIN

HERE = Path(__file__).parent
TESTS = """
import time

def test_quick(): pass

def test_slow():
    began = time.process_time()
    while time.process_time() - began < 0.6: pass
"""


def test_what_is_listed_is_there() -> None:
    listed = (HERE / "slow.txt").read_text(encoding="utf-8").split()
    assert listed == sorted(set(listed))
    for name in listed:
        file, *inside, function = name.split("::")
        text = (HERE / file).read_text(encoding="utf-8")
        # What a class takes over from the contract kit does not stand in the file.
        there = rf"^(?:class )?{inside[0]}\b" if inside else rf"^def {function}\("
        assert re.search(there, text, re.MULTILINE), f"tests/slow.txt: no {name} any more; remove the line"


def run(place: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pytest.ini", *arguments]
    done = subprocess.run(command, cwd=place, env=PLAIN, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_slow_tests_are_found_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: slow\naddopts = --strict-markers\n")
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "slow.txt").write_text("test_gone.py::test_gone\n")
    assert "2 passed" in run(tmp_path, "--find-slow")
    assert (tmp_path / "slow.txt").read_text() == "test_some.py::test_slow\n"
    assert "1 passed, 1 deselected" in run(tmp_path, "-m", "not slow")
    assert "leave -n out" in run(tmp_path, "-p", "xdist", "--find-slow", "-n", "2")
    assert (tmp_path / "slow.txt").read_text() == "test_some.py::test_slow\n"
