"""Every rescorer that is installed, through the contract."""

from __future__ import annotations

from typing import Any

import pytest

from cbir_faiss.base import Rescorer, registry
from cbir_faiss.errors import InputError
from cbir_faiss.testing import RescorerContract

# What is worth trying beside the defaults.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "float": [{}, {"metric": "l2"}, {"store": "int8"}, {"candidates": "all", "center": False}],
    "phash": [{}, {"formula": "printed", "candidates": "all"}],
    "relevance": [{}, {"t": 0.0}, {"t": 1.0}, {"priors": "estimated", "candidates": "all"}],
}
CASES = [
    pytest.param(registry.load("rescorers", name), options, id="-".join([name, *map(str, options.values())]))
    for name in registry.names("rescorers")
    for options in OPTIONS.get(name, [{}])
]


@pytest.mark.parametrize(("plugin", "options"), CASES, scope="class")
class TestEveryRescorer(RescorerContract):
    @pytest.fixture(autouse=True)
    def chosen(self, plugin: type[Rescorer], options: dict[str, Any]) -> None:
        self.plugin, self.options = plugin, options  # type: ignore[misc]

    def test_a_missing_column_is_named(self, database: dict[str, Any]) -> None:
        rescorer = self.make()
        for column in self.plugin.needs_items:
            if column == "code":
                continue
            some = {name: values for name, values in database.items() if name != column}
            for method in (rescorer.fit, rescorer.pack):
                with pytest.raises(InputError, match=f"needs '{column}' of the items, the extractor gives "):
                    method(some)
