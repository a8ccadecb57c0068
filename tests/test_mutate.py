"""The tool that makes mutants, on a package of six lines of which one is not tested."""

from __future__ import annotations

from pathlib import Path

import mutate
import pytest

TINY = '''\
__all__ = ["capped"]
LIMIT: "Literal[5]" = 3


def capped(a: int, b: int = 0 - 0) -> int:
    """At most 3."""
    assert b > 7 or not b
    if a < 0:
        raise ValueError(f"{a - 0} is below 0", 0)
    return min(a, LIMIT)
'''
TESTS = """\
import pytest
from tiny.cap import capped

def test_capped():
    assert (capped(1), capped(5)) == (1, 3)
    with pytest.raises(ValueError):
        capped(-1)
"""
HANGS = """\
def test_hangs():
    while True:
        pass
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    for name, text in {"tiny/cap.py": TINY, "tests/test_tiny.py": TESTS, "tests/test_other.py": HANGS}.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    return tmp_path / "root"


def test_what_acts_is_changed_and_what_only_says_or_checks_is_not() -> None:
    found = [(one.line, one.after) for one in mutate.mutants("cap.py", TINY.encode())]
    assert sorted(found) == [
        (2, 'LIMIT: "Literal[5]" = 2'),
        (2, 'LIMIT: "Literal[5]" = 4'),
        *((5, f"def capped(a: int, b: int = {b}) -> int:") for b in ("-1 - 0", "0 + 0", "0 - -1", "0 - 1", "1 - 0")),
        *((8, f"if a {rest}:") for rest in ("< -1", "< 1", "<= 0", "> 0")),
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = not (a and b)", {"x =  (a and b)", "x = not (a or b)"}),
        ("x = a not in (b) is not c", {"x = a in (b) is not c", "x = a not in (b) is c"}),
        ("x = (a) // (b)", {"x = (a) * (b)"}),
        ("x <<= 1", {"x >>= 1", "x <<= 2", "x <<= 0"}),
        ("x = True", {"x = False"}),
        ("x = -0.5", {"x = 0.5", "x = -1.5", "x = -1.0"}),
        ("x = 'é' < y", {"x = 'é' <= y", "x = 'é' > y"}),
        ("x = zip(a, b, strict=True)", set()),
    ],
)
def test_operators_and_constants(code: str, expected: set[str]) -> None:
    assert {one.after for one in mutate.mutants("x.py", code.encode())} == expected


def test_what_the_tests_do_not_notice_survives(tiny: Path) -> None:
    chosen = [one for one in mutate.mutants("tiny/cap.py", (tiny / "tiny/cap.py").read_bytes()) if one.line in (2, 8)]
    alive = [one for one, killed in mutate.tried(tiny, chosen, jobs=2) if not killed]
    assert {one.after for one in alive} == {"if a < 1:", "if a <= 0:"}
    assert str(alive[0]).startswith("tiny/cap.py:8\n- if a < 0:\n+ if a <")
    assert (tiny / "tiny/cap.py").read_text() == TINY


def test_a_hang_is_noticed(tiny: Path, tmp_path: Path) -> None:
    (mutant, *_) = mutate.mutants("tiny/cap.py", TINY.encode())
    limits: mutate.Limits = {("tests/test_other.py", "not slow"): 2}
    assert mutate.Copy(tiny, tmp_path / "copy", limits).kills(mutant, ["tests/test_other.py"])


def test_slow_tests_have_a_say_where_the_quick_ones_pass(tiny: Path) -> None:
    (tiny / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["slow"]\n')
    (tiny / "tests/test_cap_slow.py").write_text(
        "import pytest\nfrom tiny.cap import capped\n\n@pytest.mark.slow\ndef test_none():\n    assert capped(0) == 0\n"
    )
    chosen = [one for one in mutate.mutants("tiny/cap.py", TINY.encode()) if one.line == 8]
    assert [one.after for one, killed in mutate.tried(tiny, chosen) if not killed] == []


def test_tests_that_fail_anyhow_or_test_something_else_say_nothing(tiny: Path, tmp_path: Path) -> None:
    chosen = list(mutate.mutants("tiny/cap.py", TINY.encode()))[:1]
    (tiny / "tests/test_tiny.py").write_text("def test_wrong():\n    assert False")
    with pytest.raises(SystemExit, match=r"fails without any mutant.* tests/test_tiny\.py"):
        list(mutate.tried(tiny, chosen))
    with pytest.raises(SystemExit, match="other files"):
        mutate.Copy(tiny, tmp_path / "copy").check_imported(["json/tool.py"])


def test_equivalent_mutants_are_of_lines_that_are_there() -> None:
    for file, line, after in mutate.listed(mutate.EQUIVALENT.read_text(encoding="utf-8")):
        source = (mutate.ROOT / file).read_bytes()
        found = {one.after for one in mutate.mutants(file, source) if one.before == line}
        assert found, f"{file} has no mutant of: {line}"
        assert after == {"*"} or after <= found, f"{file}: no mutants {after - found} of: {line}"


@pytest.mark.parametrize(
    ("file", "first"),
    [
        ("cbir_faiss/measures/ties.py", "tests/test_metrics_ties.py"),
        ("cbir_faiss/collection/duplicates.py", "tests/test_duplicates.py"),
        ("cbir_faiss/codecs/_itq.py", "tests/test_codecs.py"),
        ("connectors/cbir_connectors/usearch.py", "tests/test_connectors.py"),
    ],
)
def test_a_file_has_its_own_tests(file: str, first: str) -> None:
    assert mutate.own_tests(file, mutate.ROOT / "tests")[0] == first
