"""The contract kit finds what is wrong with a connector: eight broken ones, and the test that finds each."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from _readme import run_pytest

FOUND_BY = {
    "CommitsAtClose": "test_what_is_flushed_outlives_a_kill",
    "KeepsAThousandRows": "test_bulk",
    "AnswersAHundred": "test_bulk",
    "CutsText": "test_payload_keeps_every_value",
    "ReadsDotsAsNesting": "test_payload_keeps_every_value",
    "ReadsLargeIntegersAsFloats": "test_payload_keeps_every_value",
    "WipesAtCreate": "test_create_loses_nothing",
    "RaisesTheClientsErrors": "test_fails_in_one_line_when_closed",
}
"""The same tests pass for the connector that is not broken (``test_connectors_readme.py``)."""


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Classes and tests that failed; run once, because starting pytest takes longer than the tests."""
    place = tmp_path_factory.mktemp("broken")
    file = shutil.copy(Path(__file__).with_name("_broken_connectors.py"), place)
    tests = [f"{file}::Test{name}::{test}" for name, test in FOUND_BY.items()]
    run = run_pytest(place, *tests, "--tb=no", "-rf")
    assert "error" not in run.stdout, run.stdout + run.stderr
    return set(re.findall(r"^FAILED \S+::Test(\w+)::(\w+)", run.stdout, re.MULTILINE))


@pytest.mark.parametrize(("connector", "test"), FOUND_BY.items())
def test_a_broken_connector_fails_the_kit(connector: str, test: str, failed: set[tuple[str, str]]) -> None:
    assert (connector, test) in failed
