"""What a test takes is measured, and written down in spent.txt."""

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

def busy(seconds):
    began = time.process_time()
    while time.process_time() - began < seconds: pass

def test_medium(): busy(0.15)

def test_slow(): busy(2.1)
"""


def test_what_is_listed_is_there() -> None:
    lines = (HERE / "spent.txt").read_text(encoding="utf-8").splitlines()
    listed = [line.rpartition(" ")[0] for line in lines]
    assert listed == sorted(set(listed))
    for name in listed:
        file, *inside, function = name.split("::")
        text = (HERE / file).read_text(encoding="utf-8")
        # What a class takes over from the contract kit does not stand in the file.
        there = rf"^(?:class )?{inside[0]}\b" if inside else rf"^def {function}\("
        assert re.search(there, text, re.MULTILINE), f"tests/spent.txt: no {name} any more; remove the line"


def run(place: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pytest.ini", *arguments]
    done = subprocess.run(command, cwd=place, env=PLAIN, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_what_takes_long_is_found_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n slow: slow\n medium: medium\naddopts = --strict-markers\n"
    )
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    spent = tmp_path / "spent.txt"
    spent.write_text("test_gone.py::test_gone 3.0\n")
    assert "3 passed" in run(tmp_path, "--write-spent")
    written = spent.read_text()
    assert [line.split()[0] for line in written.splitlines()] == [
        "test_some.py::test_medium",
        "test_some.py::test_slow",
    ]
    assert "2 passed, 1 deselected" in run(tmp_path, "-m", "not slow")
    assert "1 passed, 2 deselected" in run(tmp_path, "-m", "not slow and not medium")
    assert "leave -n out" in run(tmp_path, "-p", "xdist", "--write-spent", "-n", "2")
    assert spent.read_text() == written
