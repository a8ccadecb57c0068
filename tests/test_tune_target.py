"""Targets: what can be said, and the one line that is said of what cannot."""

from __future__ import annotations

import pytest

from cbir_faiss.errors import ConfigError
from cbir_faiss.tuning.target import Target, parse_targets


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("knn_recall@10 >= 0.95", Target("knn_recall", 10, 0.95)),
        (" map@5>=raw-.01 ", Target("map", 5, -0.01, of_raw=True)),
        ("map@5 >= raw", Target("map", 5, 0.0, of_raw=True)),
        ("hit@1 >= raw + 0.02", Target("hit", 1, 0.02, of_raw=True)),
        ("recall@50 >= 1", Target("recall", 50, 1.0)),
    ],
)
def test_a_target_is_read_and_written(text: str, target: Target) -> None:
    assert parse_targets([text]) == (target,)
    assert parse_targets([str(target)]) == (target,)


def test_several_targets_and_the_same_one_twice() -> None:
    found = parse_targets(["knn_recall@10 >= 0.95", "map@5 >= raw - 0.01", "knn_recall@10 >= .95"])
    assert [target.name for target in found] == ["knn_recall@10", "map@5"]
    assert [target.key for target in found] == ["knn_recall@10", "map@5 - raw"]
    assert [target.by_labels for target in found] == [False, True]


def test_a_bound_and_one_against_raw_are_two_targets() -> None:
    found = parse_targets(["map@5 >= 0.8", "map@5 >= raw - 0.01"])
    assert [target.key for target in found] == ["map@5", "map@5 - raw"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there is no target"),
        ([""], "cannot be read"),
        (["knn_recall >= 0.9"], "cannot be read"),
        (["knn_recall@10 > 0.9"], "cannot be read"),
        (["knn_recall@10 >= much"], "cannot be read"),
        (["knn_recall@10 >= -0.5"], "cannot be read"),
        (["knn_recal@10 >= 0.9"], "did you mean 'knn_recall'"),
        (["speed@10 >= 0.9"], "no measure 'speed'"),
        (["knn_recall@0 >= 0.9"], "k must be at least 1"),
        (["knn_recall@10 >= 1.2"], "no measure is above 1"),
        (["knn_recall@10 >= raw + 0.1"], "raw floats have all of it"),
        (["map@5 >= raw - 0.1", "map@5 >= raw"], "contradict each other"),
        (["map@5 >= 0.9", "map@5 >= 0.8"], "contradict each other"),
    ],
)
def test_what_cannot_be_meant_is_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        parse_targets(texts)
    assert "\n" not in str(told.value)
