"""Configs: sweeps, defaults, relative paths, and every mistake reported with file and line."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from cbir_faiss.config import load_config, parse_choices, parse_config
from cbir_faiss.errors import ConfigError

GOOD = """\
source: {name: digits}
codecs:
  - {name: raw}
  - {name: lsh, bits: [16, 32], seed: [1, 2]}
backends:
  - {name: faiss-flat, metric: [l2, cosine]}
  - name: faiss-binary-flat
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "bad.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_a_list_where_the_option_is_a_scalar_is_a_sweep(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert [(c.name, c.options) for c in config.codecs] == [
        ("raw", {}),
        ("lsh", {"bits": 16, "seed": 1}),
        ("lsh", {"bits": 16, "seed": 2}),
        ("lsh", {"bits": 32, "seed": 1}),
        ("lsh", {"bits": 32, "seed": 2}),
    ]
    assert [c.options for c in config.backends] == [{"metric": "l2"}, {"metric": "cosine"}, {}]


def test_a_list_where_the_option_is_a_list_is_one_value() -> None:
    (choice,) = parse_choices("extractors", [{"name": "histogram", "bins": [8, 4, 4]}], "extractors")
    assert choice.options == {"bins": [8, 4, 4]}


def test_what_may_be_left_out(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.every == 5
    assert config.metrics.k == (1, 5, 10, 50)
    assert config.metrics.truth.metric is None
    assert [c.name for c in config.rescore] == ["none"]
    assert len(config.extractors) == 1


def test_vectors_get_the_extractor_that_reads_vectors() -> None:
    config = parse_config(
        {
            "source": {"name": "vectors", "file": "x.npy"},
            "codecs": [{"name": "raw"}],
            "backends": [{"name": "faiss-flat"}],
        }
    )
    assert config.extractors[0].name == "vectors"


def test_paths_are_relative_to_the_config(tmp_path: Path) -> None:
    text = GOOD.replace("{name: digits}", "{name: folder, root: photos/}")
    assert load_config(write(tmp_path, text)).source.options["root"] == str(tmp_path / "photos")


def test_queries_may_have_their_own_source(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD + "queries: {source: {name: digits}}\n"))
    assert config.query_source is not None
    assert config.query_source.name == "digits"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (GOOD.replace("[16, 32]", "[16, 30]"), 4, "codecs.1.bits.1: must be a multiple of 8"),
        (GOOD.replace("bits: [16, 32]", "bits: 30"), 4, "codecs.1.bits: must be a multiple of 8"),
        (GOOD.replace("bits: [16, 32]", "bit: 16"), 4, "did you mean 'bits'?"),
        (GOOD.replace("seed: [1, 2]", "seed: x"), 4, "codecs.1.seed: must be a valid integer"),
        (GOOD.replace("[16, 32]", "[]"), 4, "an empty list sweeps over nothing"),
        (GOOD.replace("{name: raw}", "{name: rwa}"), 3, "codecs.0.name: no codec named 'rwa'; did you mean 'raw'?"),
        (GOOD.replace("{name: raw}", "{bits: 8}"), 3, "codecs.0.name: is required"),
        (GOOD.replace("{name: raw}", "raw"), 3, "codecs.0: must"),
        (GOOD + "sauce: {}\n", 8, "sauce: unknown key; did you mean 'source'?"),
        (GOOD + "codecs: []\n", 8, "duplicate key 'codecs'"),
        (GOOD + "metrics: {k: [0]}\n", 8, "metrics.k.0: must be greater than or equal to 1"),
        (GOOD + "metrics: {k: []}\n", 8, "metrics.k"),
        (GOOD + "queries: {every: 1}\n", 8, "queries.every: must be greater than or equal to 2"),
        (GOOD + "queries: {every: 5, source: {name: digits}}\n", 8, "queries: takes either"),
        (GOOD + "threads: no\n", 8, "threads: must"),
        (GOOD.replace("{name: digits}", "{name: digits, size: [1]}"), 1, "source.size: unknown key"),
        (
            GOOD.replace("faiss-binary-flat", "faiss-binary-flat\n    search: 3"),
            8,
            "backends.1.search: must be a mapping",
        ),
        ("source: {name: digits}\ncodecs: [{name: raw}]\n", 1, "backends: is required"),
        ("source: [\n", 2, "not YAML"),
        ("just text\n", 1, "a config is a mapping"),
        ("", 1, "a config is a mapping"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a UTF-8 text"):
        load_config(tmp_path / "x.yaml")


def test_a_build_has_one_of_each(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"codecs: a build needs exactly one, this gives 5"):
        load_config(write(tmp_path, GOOD)).single()
