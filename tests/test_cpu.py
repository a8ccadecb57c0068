"""What the processor can do, and that the copy of OpenBLAS in FAISS knows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cbir_faiss._lib import cpu

INTEL = frozenset({"GenuineIntel", "avx2", "fma"})
AVX512 = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}
LOADED = """
import os, threadpoolctl
from cbir_faiss.base.registry import make
make("backends", "faiss-flat")
found = [one for one in threadpoolctl.threadpool_info() if "faiss" in one["filepath"] and "architecture" in one]
print(found[0]["architecture"] if found else "", "OPENBLAS_CORETYPE" in os.environ)
"""


@pytest.mark.parametrize(
    ("there", "core"),
    [
        (frozenset(), None),
        (frozenset({"GenuineIntel", "sse4_2"}), None),
        (frozenset({"GenuineIntel", "avx2"}), None),  # FMA comes with the kernels for Haswell
        (INTEL, "Haswell"),
        (INTEL | {"avx512f"}, "Haswell"),
        (INTEL | AVX512, "SkylakeX"),
        (INTEL | AVX512 | {"amx_int8"}, "SkylakeX"),
        (frozenset({"AuthenticAMD", "avx2", "fma"}) | AVX512, "Zen"),
        (frozenset({"HygonGenuine", "avx2", "fma"}), None),
    ],
)
def test_the_core_that_openblas_is_told(
    there: frozenset[str], core: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "instructions", lambda: there)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    with cpu.known_to_openblas():
        assert os.environ.get("OPENBLAS_CORETYPE") == core
    assert "OPENBLAS_CORETYPE" not in os.environ


def test_a_core_that_was_chosen_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "instructions", lambda: INTEL)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    with cpu.known_to_openblas():
        assert os.environ["OPENBLAS_CORETYPE"] == "Nehalem"
    assert os.environ["OPENBLAS_CORETYPE"] == "Nehalem"


def test_it_is_forgotten_where_the_import_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "instructions", lambda: INTEL)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    with pytest.raises(ModuleNotFoundError), cpu.known_to_openblas():
        raise ModuleNotFoundError("faiss")
    assert "OPENBLAS_CORETYPE" not in os.environ


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx2 fma\n\nvendor_id\t: GenuineIntel\nflags\t\t: avx2\n",
         {"GenuineIntel", "avx2", "fma"}),
        ("Features\t: asimd\n", set()),
        ("", set()),
        (None, set()),
    ],
)  # fmt: skip
def test_what_linux_says_of_the_first_core(
    text: str | None, there: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "cpuinfo"
    if text is not None:
        told.write_text(text)
    monkeypatch.setattr(cpu, "Path", lambda name: told)
    cpu.instructions.cache_clear()
    try:
        assert cpu.instructions() == there
    finally:
        cpu.instructions.cache_clear()


def test_faiss_multiplies_with_what_the_processor_can_do() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    told = subprocess.run([sys.executable, "-c", LOADED], env=environment, capture_output=True, check=True, text=True)
    core, stays = told.stdout.split(" ")
    if not core or cpu._core(cpu.instructions()) is None:
        pytest.skip("FAISS has no OpenBLAS here, or its kernels for this processor are not known")
    assert core not in ("Prescott", "Core2", "Nehalem")
    assert stays.strip() == "False"
