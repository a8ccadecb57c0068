"""The description at /openapi.json is what the server does: requests made from it, right and wrong, are answered so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from _serving import TOKEN, Serving, serving
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.serve.api import Api
from cbir_faiss.serve.openapi import BASE, ENDPOINTS, description

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("described")
    (folder / "photos").mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (20, 20), name).save(folder / "photos" / f"{name}.png")
    run = folder / "demo"
    run.mkdir()
    (run / "results.json").write_text('{"rows": []}')
    document = {
        "source": {"name": "folder", "root": str(folder / "photos")},
        "extractors": [{"name": "histogram"}],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat"}],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CBIR_CACHE", str(folder / "cache"))
        Collection.build(parse_config(document), folder / "c.cbir").close()
        with serving(folder / "c.cbir", runs=(run, folder / "gone"), write=True) as server:
            yield server


def test_what_is_served_is_what_is_described(served: Serving) -> None:
    said = served.client.get("/openapi.json").json()
    assert said == description(Api)
    assert len([method for path in said["paths"].values() for method in path]) == len(ENDPOINTS)
    for endpoint in ENDPOINTS:
        assert getattr(Api, endpoint.handler).__doc__, endpoint.handler


MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
# What is rightly asked may be in vain all the same: an unknown id, a filter of nonsense, a vector of another width.
PROMISED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)


def ask(served: Serving, count: int, known: dict[str, Any]) -> int:
    """``count`` requests of each kind for each endpoint, made from the description, all answered as it says; how many.

    known: parts of a path that lead somewhere.
    """
    asked = 0
    described = schemathesis.openapi.from_dict(description(Api))  # with this it knows its checks
    checks = schemathesis.checks.CHECKS.get_by_names(PROMISED)
    for found in described.get_all_operations():
        operation = found.ok()
        path = {name: value for name, value in known.items() if f"{{{name}}}" in operation.path}
        if operation.path.startswith(f"{BASE}/runs"):
            path = dict.fromkeys(path, "demo")
        for mode in MODES:

            @seed(0)
            @settings(
                max_examples=count,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=HealthCheck,
            )
            @given(case=operation.as_strategy(mode, path_parameters=path or None))
            def one(case: Any) -> None:
                nonlocal asked
                asked += 1
                headers = {"Authorization": f"Bearer {TOKEN}"}
                case.call_and_validate(served.url, headers=headers, checks=checks)

            try:
                one()
            except Unsatisfiable:  # there is nothing wrong to be asked of an endpoint without parameters
                assert mode is schemathesis.GenerationMode.NEGATIVE
    return asked


def test_requests_made_from_the_description_are_answered_as_it_says(served: Serving) -> None:
    assert ask(served, 1, {"name": "c", "id": 1}) > 15
    assert served.client.get("/readyz").status_code == 200


@pytest.mark.slow
def test_many_requests_made_from_the_description_are_answered_as_it_says(served: Serving) -> None:
    ask(served, 12, {"name": "c", "id": 1})
    ask(served, 5, {})
    assert served.client.get("/readyz").status_code == 200
