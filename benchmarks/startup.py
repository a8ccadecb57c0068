"""Start-up: what a command costs before it does anything, beside a Python that does nothing.

    python benchmarks/startup.py             9 rounds, a collection of 100,000 items
    python benchmarks/startup.py --quick     2 rounds, 2,000 items, to see that it runs; stores nothing

`cbir --help`, `cbir plugins` and `cbir search DIR --vector Q.npy` as whole processes, in turn with `python -c pass`,
after a round that does not count; medians. The collection holds random vectors of 128 dimensions as codes of 64 bits
(itq) in faiss-binary-flat, rescored by float; every search is the first of its process. Times depend on what is
installed: read them with everything there is, pip install 'cbir-faiss[all]'.

Python keeps bytecode in a folder of the benchmark's own, as it does after the first run of any installation. Where it
may not (PYTHONDONTWRITEBYTECODE), every run compiles what it imports, and takes two to three times as long.
Raw figures go to benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _report import ratio, show, store

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config

BASELINE = "python -c pass"
# Seconds that each may take.
BUDGETS = {"cbir --help": 0.2, "cbir plugins": 1.0, "cbir search": 0.8}
COLUMNS = ("command", "median_s", "times_baseline", "budget_s", "of_budget")
DIM = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small collection, two rounds, nothing stored")
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    items, rounds = (2_000, 2) if chosen.quick else (100_000, chosen.rounds)
    with tempfile.TemporaryDirectory() as place:
        commands = _commands(Path(place), items)
        seconds = _measure(commands, Path(place, "bytecode"), rounds)
    rows = [_row(name, seconds[BASELINE], times) for name, times in seconds.items()]
    show(f"{items:,} items, {rounds} rounds", rows, COLUMNS)
    if not chosen.quick:
        print(store("startup", {"commands": {"items": items, "baseline": BASELINE, "rows": rows}}))


def _commands(place: Path, items: int) -> dict[str, list[str]]:
    """The command lines by what they are called; makes the collection that is searched."""
    vectors = np.random.default_rng(0).standard_normal((items, DIM), dtype=np.float32)
    np.save(place / "vectors.npy", vectors)
    np.save(place / "query.npy", vectors[0])
    config = parse_config(
        {
            "source": {"name": "vectors", "file": str(place / "vectors.npy")},
            "extractors": [{"name": "vectors"}],
            "codecs": [{"name": "itq", "bits": 64}],
            "backends": [{"name": "faiss-binary-flat"}],
            "rescore": [{"name": "float"}],
        }
    )
    Collection.build(config, place / "x.cbir", cache=place / "cache").close()
    # What the installed command `cbir` does, without having to find it.
    cbir = [sys.executable, "-c", "from cbir_faiss.cli import main; main()"]
    return {
        BASELINE: [sys.executable, "-c", "pass"],
        "cbir --help": [*cbir, "--help"],
        "cbir plugins": [*cbir, "plugins"],
        "cbir search": [*cbir, "search", str(place / "x.cbir"), "--vector", str(place / "query.npy")],
    }


def _measure(commands: dict[str, list[str]], bytecode: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each command, round by round."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            taken = _seconds(command, environment)
            if number > 0:
                seconds[name].append(taken)
    return seconds


def _seconds(command: Sequence[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, capture_output=True, check=True)
    return time.perf_counter() - began


def _row(name: str, baseline: Sequence[float], times: Sequence[float]) -> dict[str, Any]:
    median = statistics.median(times)
    row: dict[str, Any] = {"command": name, "median_s": median, "times_baseline": ratio(times, baseline)}
    if name in BUDGETS:
        row |= {"budget_s": BUDGETS[name], "of_budget": median / BUDGETS[name]}
    return row | {"seconds": list(times)}


if __name__ == "__main__":
    main()
