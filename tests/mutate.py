"""How many small mistakes do the tests notice? Makes mutants of the package at random and runs each file's own tests.

    python tests/mutate.py [--count 200] [--seed 0] [--files 'cbir_faiss/measures/*.py' …] [--jobs 1] [--least 0.9]
    python tests/mutate.py --again SURVIVORS        those that an earlier run printed

A mutant differs in one comparison, operator, number or truth value; never in what only says or checks something:
annotations, messages, asserts, ``__all__``. It lives in a copy of the tree that is imported in place of the installed
package, and is killed where a test fails, or hangs: a quick one or, as the whole suite has both, a slow one. One that
nobody can tell from the original is named in ``mutants_equivalent.txt``, with the reason, and not drawn. Survivors are
printed as that file would name them.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.txt")
FILES = [f"cbir_faiss/{room}/*.py" for room in ("measures", "comparison", "codecs", "rescorers", "storage")]
FILES += ["cbir_faiss/collection/duplicates.py", "cbir_faiss/base/checks.py"]
MARKS = ("not slow", "slow")
Limits = dict[tuple[str, ...], float | None]
"""What tests may take, by their modules and mark; asked of the tree without mutants when it is needed first."""
NO_TESTS = 5  # pytest's exit status where it found none
# The tests of a room (the folder of a file), where they do not have its name; those named as the file come too.
TESTS = {
    "_lib": ["threads", "storage", "build"],
    "base": ["base", "options", "registry", "filters", "*_contract"],
    "collection": ["collection*", "build", "survivors"],
    "comparison": ["comparison*", "report_export"],
    "measures": ["metrics*"],
    "pipeline": ["pipeline", "extraction"],
    "report": ["report", "row", "recommend"],
    "storage": ["storage", "collection*", "survivors", "duplicates"],
    "cbir_connectors": ["connectors*"],
}
# What an operator is, and what it may become.
SWAPS = {
    ast.Lt: "<, <=, >", ast.LtE: "<=, <, >", ast.Gt: ">, >=, <", ast.GtE: ">=, >, <", ast.Eq: "==, !=",
    ast.NotEq: "!=, ==", ast.Is: "is, is not", ast.IsNot: "is not, is", ast.In: "in, not in", ast.NotIn: "not in, in",
    ast.And: "and, or", ast.Or: "or, and", ast.Add: "+, -", ast.Sub: "-, +", ast.Mult: "*, +, /", ast.Div: "/, *",
    ast.FloorDiv: "//, *", ast.Mod: "%, *", ast.Pow: "**, *", ast.LShift: "<<, >>", ast.RShift: ">>, <<",
    ast.BitAnd: "&, |", ast.BitOr: "|, &", ast.BitXor: "^, &",
}  # fmt: skip


class Mutant(NamedTuple):
    """``source`` is the whole file, changed; before and after are the line in which it is."""

    file: str
    line: int
    before: str
    after: str
    source: bytes

    def __str__(self) -> str:
        return f"{self.file}:{self.line}\n- {self.before}\n+ {self.after}"


def mutants(file: str, source: bytes) -> Iterator[Mutant]:
    """Every mutant of a file."""
    lines = source.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]
    for node in _acting(ast.parse(source)):
        for start, stop, new in _changes(node, source, starts):
            changed = source[:start] + new.encode() + source[stop:]
            pairs = zip(lines, changed.splitlines(keepends=True), strict=True)
            number, (old, now) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
            yield Mutant(file, number, old.decode().strip(), now.decode().strip(), changed)


def _acting(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and what is below it, without what only says or checks something."""
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns") and not _silent(child, node):
                yield from _acting(child)


def _silent(node: ast.AST, parent: ast.AST) -> bool:
    match parent, node:
        # NumPy takes any negative size for the one that is left out.
        case ast.Call(func=ast.Attribute(attr="reshape")), ast.UnaryOp(op=ast.USub()):
            return True
    match node:
        case ast.Raise() | ast.Assert() | ast.JoinedStr() | ast.keyword(arg="strict"):
            return True
        case ast.Call(func=ast.Name(id="dataclass") | ast.Attribute(value=ast.Name(id="_log" | "warnings"))):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return True
    return False


def _changes(node: ast.AST, source: bytes, starts: Sequence[int]) -> Iterator[tuple[int, int, str]]:
    """What may stand from one byte to another instead of what is there."""

    def span(one: ast.expr) -> tuple[int, int]:
        assert one.end_lineno is not None
        assert one.end_col_offset is not None
        return starts[one.lineno - 1] + one.col_offset, starts[one.end_lineno - 1] + one.end_col_offset

    for left, right, op in _operators(node):
        start, stop = span(left)[1], span(right)[0]
        symbol, *others = SWAPS.get(type(op), "").split(", ")
        for other in others:
            yield start, stop, source[start:stop].decode().replace(symbol, other, 1)
    match node:
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            start = span(node)[0]
            yield start, start + len("not" if isinstance(node.op, ast.Not) else "-"), ""
        case ast.Constant(value=bool(value)):
            yield *span(node), repr(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield *span(node), repr(value + 1)
            yield *span(node), repr(value - 1 if isinstance(value, int) else value * 2 or -1.0)


def _operators(node: ast.AST) -> list[tuple[ast.expr, ast.expr, ast.AST]]:
    """What is left and right of each operator that has two sides, and the operator."""
    match node:
        case ast.Compare():
            return list(zip([node.left, *node.comparators], node.comparators, node.ops, strict=False))
        case ast.BinOp():
            return [(node.left, node.right, node.op)]
        case ast.AugAssign():
            return [(node.target, node.value, node.op)]
        case ast.BoolOp():
            return [(left, right, node.op) for left, right in itertools.pairwise(node.values)]
    return []


Listed = list[tuple[str, str, set[str]]]
"""(file, line, what may stand instead, "*" for anything)."""


def listed(text: str) -> Listed:
    """Blocks of ``file: why`` or ``file:number``, ``- line`` and ``+ line`` …"""
    blocks = [block.splitlines() for block in text.split("\n\n") if "\n- " in block and not block.startswith("#")]
    return [(b[0].split(":")[0], b[1][2:].strip(), {line[2:].strip() for line in b[2:]}) for b in blocks]


def named(mutant: Mutant, among: Listed) -> bool:
    """Whether a mutant stands in such a list."""
    own = (after for file, line, after in among if (file, line) == (mutant.file, mutant.before))
    return any(after & {"*", mutant.after} for after in own)


def own_tests(file: str, folder: Path) -> list[str]:
    """The test modules of a file, those with its name first."""
    path = Path(file)
    stem, room = path.stem, path.parent.name
    patterns = [stem, f"{stem}_*", *TESTS.get(room, [f"{room}*"])]
    found = {f"tests/{test.name}" for pattern in patterns for test in folder.glob(f"test_{pattern}.py")}
    return sorted(found, key=lambda test: (stem.strip("_") not in test, test))


class Copy:
    """A copy of the tree in which one mutant at a time is tested."""

    def __init__(self, root: Path, folder: Path, limits: Limits | None = None) -> None:
        self._limits: Limits = {} if limits is None else limits
        self.tree, self._scratch = folder / "tree", folder / "scratch"
        self._scratch.mkdir(parents=True)
        left_out = shutil.ignore_patterns(".*", "__pycache__", "runs", "dist", "build", "*.cbir")
        shutil.copytree(root, self.tree, ignore=left_out)
        self._env = {**os.environ, "PYTHONPATH": f"{self.tree}{os.pathsep}{self.tree / 'connectors'}"}
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)
        self._env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # loading them takes longer than most mutants

    def check_imported(self, files: Sequence[str]) -> None:
        """SystemExit where another file than the one of this tree would be imported."""
        names = [".".join(Path(file).with_suffix("").parts).removeprefix("connectors.") for file in files]
        code = "import importlib.util, sys\nfor name in sys.argv[1:]: print(importlib.util.find_spec(name).origin)"
        command = [sys.executable, "-c", code, *(name.removesuffix(".__init__") for name in names)]
        done = subprocess.run(command, cwd=self.tree, env=self._env, capture_output=True, text=True, check=True)
        if done.stdout.split() != [str(self.tree / file) for file in files]:
            sys.exit(f"other files than those of {self.tree} are imported:\n{done.stdout}")

    def limit(self, tests: Sequence[str], which: str) -> float | None:
        """Seconds after which those tests hang; None where there are none. Without any mutant, they must not fail."""
        key = (*sorted(tests), which)
        if key not in self._limits:
            began = time.monotonic()
            code = self.run(tests, which)
            if code not in (0, NO_TESTS):
                sys.exit(f"fails without any mutant: {' '.join(tests)}")
            self._limits[key] = None if code == NO_TESTS else 20 + 4 * (time.monotonic() - began)
        return self._limits[key]

    def run(self, tests: Sequence[str], which: str, timeout: float | None = None) -> int:
        """Pytest's exit status; that of a killed process after ``timeout`` seconds."""
        # What killed the last mutant is tried first on the next one, which is often of the same file.
        options = ["-x", "-q", "-m", which, "--ff", "-o", f"cache_dir={self._scratch / 'cache'}"]
        command = [sys.executable, "-m", "pytest", *options, f"--basetemp={self._scratch / 'tmp'}", *tests]
        with subprocess.Popen(
            command, cwd=self.tree, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as running:  # fmt: skip
            try:
                return running.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                return -signal.SIGKILL

    def kills(self, mutant: Mutant, tests: Sequence[str]) -> bool:
        """By the quick ones, or else by the slow ones."""
        file = self.tree / mutant.file
        original = file.read_bytes()
        for which in MARKS:
            limit = self.limit(tests, which)
            try:
                self._write(file, mutant.source)
                if limit is not None and self.run(tests, which, limit) != 0:
                    return True
            finally:
                self._write(file, original)
        if all(self.limit(tests, which) is None for which in MARKS):
            sys.exit(f"has no tests: {mutant.file}")
        return False

    @staticmethod
    def _write(file: Path, source: bytes) -> None:
        """Python knows compiled code by size and whole seconds: of another content in the same second it must not."""
        file.write_bytes(source)
        Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)


def tried(root: Path, chosen: Sequence[Mutant], jobs: int = 1) -> Iterator[tuple[Mutant, bool]]:
    """Each of ``chosen``, and whether the tests of its file kill it."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        copies: SimpleQueue[Copy] = SimpleQueue()
        limits: Limits = {}
        for job in range(jobs):
            copies.put(first := Copy(root, Path(scratch, str(job)), limits))
        files = sorted({mutant.file for mutant in chosen})
        first.check_imported(files)
        tests = {file: own_tests(file, root / "tests") for file in files}

        def killed(mutant: Mutant) -> bool:
            copy = copies.get()
            try:
                return copy.kills(mutant, tests[mutant.file])
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            yield from zip(chosen, pool.map(killed, chosen), strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="+", default=FILES, help="patterns, relative to the repository")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--again", type=Path, metavar="SURVIVORS", help="try those that an earlier run printed")
    parser.add_argument("--least", type=float, default=0.9, help="the share that must be killed")
    asked = parser.parse_args()
    files = sorted({str(path.relative_to(ROOT)) for pattern in asked.files for path in ROOT.glob(pattern)})
    every = [mutant for file in files for mutant in mutants(file, (ROOT / file).read_bytes())]
    equivalent = listed(EQUIVALENT.read_text("utf-8"))
    every = [one for one in every if not named(one, equivalent)]
    if asked.again:
        survivors = listed(asked.again.read_text("utf-8"))
        chosen = [one for one in every if named(one, survivors)]
    else:
        chosen = sorted(random.Random(asked.seed).sample(every, min(asked.count, len(every))))
    alive = 0
    for number, (mutant, killed) in enumerate(tried(ROOT, chosen, asked.jobs), 1):
        if not killed:
            alive += 1
            print(mutant, end="\n\n", flush=True)
        print(f"{number} of {len(chosen)} tried, {alive} alive", end="\r", file=sys.stderr, flush=True)
    share = 1 - alive / max(1, len(chosen))
    print(f"{len(chosen) - alive} of {len(chosen)} killed ({share:.1%}); {len(every)} in {len(files)} files")
    sys.exit(share < asked.least)


if __name__ == "__main__":
    main()
