"""What there is to choose from: data in a file, narrowed by a config."""

from __future__ import annotations

from typing import Any

import pytest

from cbir_faiss.config import Config
from cbir_faiss.errors import ConfigError
from cbir_faiss.tuning.data import parse_naming
from cbir_faiss.tuning.space import Facts, Space, lists_for, space_of
from cbir_faiss.types import Metric

SOURCE = {"source": {"name": "vectors", "file": "x.npy"}}
FLOAT = {"name": "float"}


def space(dim: int = 64, metric: Metric = "cosine", **sections: Any) -> Space:
    naming = parse_naming({**SOURCE, **sections})
    return space_of(Facts(50_000, dim, metric, True), naming.config, naming.sections)


def names(found: Space) -> set[tuple[str, str]]:
    return {(structure.codec.name, structure.backend.name) for structure in found.structures}


@pytest.mark.parametrize("dim", [2, 7, 64, 100, 512, 1280])
def test_the_space_of_the_package_can_be_read_for_any_width(dim: int) -> None:
    found = space(dim)
    assert {("itq", "faiss-binary-flat"), ("raw", "faiss-flat"), ("rotate", "faiss-rabitq")} <= names(found)
    assert len({structure.key for structure in found.structures}) == len(found.structures)
    bits = [s.codec.options["bits"] for s in found.structures if s.codec.name == "itq"]
    assert max(bits) <= max(8, dim)
    filled = [str(value) for s in found.structures for value in s.backend.options.values()]
    assert not any("{" in value or "$" in value for value in filled)


def test_what_has_no_meaning_for_a_metric_is_left_out() -> None:
    assert {codec for codec, _ in names(space(metric="ip"))} == {"raw"}
    for structure in space(metric="l2").structures:
        assert structure.backend.options.get("metric", "l2") == "l2"
        assert not structure.codec.options.get("normalise")


def test_a_config_narrows_the_space() -> None:
    found = space(codecs=[{"name": "itq", "bits": [16, 32]}], backends=[{"name": "faiss-binary-flat"}])
    assert [s.codec.options["bits"] for s in found.structures] == [16, 32]
    assert {choice.name for choice in found.structures[0].rescore} == {"float", "asymmetric", "none"}
    only = space(rescore=[{"name": "none"}])
    assert {choice.name for s in only.structures for choice in s.rescore} == {"none"}
    assert names(only) == names(space())


def test_one_index_is_there_once_whoever_names_it() -> None:
    found = space(codecs=[{"name": "raw"}], backends=[{"name": "faiss-flat", "metric": "cosine"}])
    assert len(found.structures) == 1
    assert {choice.name for choice in found.structures[0].rescore} == {"float", "none"}


def test_what_is_named_and_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="keeps its own storage"):
        space(backends=[{"name": "usearch"}, {"name": "lancedb", "path": "x"}])
    with pytest.raises(ConfigError, match="nothing that is named goes together"):
        space(codecs=[{"name": "raw"}], backends=[{"name": "faiss-binary-flat"}])
    with pytest.raises(ConfigError, match="tuning needs exactly one"):
        parse_naming({**SOURCE, "extractors": [{"name": "vectors"}, {"name": "vectors", "dim": 3}]})


def test_a_config_without_codecs_is_whole() -> None:
    naming = parse_naming(SOURCE)
    assert isinstance(naming.config, Config)
    assert naming.sections == ()
    assert not naming.queries
    assert parse_naming({**SOURCE, "queries": {"every": 3}}).queries


@pytest.mark.parametrize(("items", "lists"), [(1, 1), (38, 1), (100, 2), (3_000, 64), (50_000, 512), (10**7, 1024)])
def test_lists_are_a_power_of_two_that_can_be_learnt(items: int, lists: int) -> None:
    assert lists_for(items) == lists


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_what_is_named_without_a_metric_compares_as_the_data_are_compared(metric: Metric) -> None:
    found = space(metric=metric, codecs=[{"name": "raw"}], backends=[{"name": "faiss-flat"}], rescore=[FLOAT])
    assert found.structures[0].backend.options == {"metric": metric}
    assert found.structures[0].rescore[0].options == {"metric": metric, "center": False}
    bits = space(metric=metric, codecs=[{"name": "itq", "bits": 8}], backends=[{"name": "faiss-binary-flat"}])
    assert bits.structures[0].codec.options == {"bits": 8, "normalise": metric == "cosine"}
    assert bits.structures[0].backend.options == {}


def test_what_a_codec_scales_and_centres_is_compared_by_l2() -> None:
    found = space(codecs=[{"name": "rotate"}], backends=[{"name": "faiss-flat"}], rescore=[{"name": "none"}])
    assert found.structures[0].codec.options == {"normalise": True}
    assert found.structures[0].backend.options == {"metric": "l2"}


def test_what_a_config_says_of_a_metric_stays() -> None:
    codec, backend = {"name": "itq", "bits": 8, "normalise": False}, {"name": "faiss-flat", "metric": "ip"}
    rescore = {"name": "float", "metric": "l2", "center": True}
    found = space(codecs=[codec, {"name": "raw"}], backends=[backend, {"name": "faiss-binary-flat"}], rescore=[rescore])
    assert [s.codec.options for s in found.structures] == [{"bits": 8, "normalise": False}, {}]
    assert found.structures[1].backend.options == {"metric": "ip"}
    assert found.structures[0].rescore[0].options == {"metric": "l2", "center": True}


def test_rabitq_is_tried_with_one_to_nine_bits() -> None:
    found = [s.backend.options["bits"] for s in space().structures if s.codec.name == "rotate"
             and s.backend.name == "rabitq"]  # fmt: skip
    assert sorted(found) == list(range(1, 10))
