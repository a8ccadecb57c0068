"""The command line: results on stdout, one line on stderr for a user's mistake, and the documented exit status."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cbir_faiss.cli import main

COMPARE = """\
source: {name: folder, root: pictures}
queries: {every: 4}
extractors: [{name: hog, size: 32}]
codecs: [{name: raw}, {name: lsh, bits: [16, 64]}]
backends: [{name: faiss-flat}, {name: faiss-binary-flat}]
"""


@pytest.fixture
def config(pictures: Path) -> Path:
    path = pictures.parent / "c.yaml"
    path.write_text(COMPARE)
    return path


def cbir(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_compare_prints_a_table_and_where_the_report_is(config: Path, tmp_path: Path) -> None:
    result = cbir("compare", config, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["extractor", "combination", "map@5"]
    assert lines[1].startswith("hog")
    assert lines[-1] == str(tmp_path / "out" / "report.html")
    assert any(line.startswith(("Use ", "Keep ")) for line in lines)
    assert result.stderr == ""
    again = cbir("report", tmp_path / "out")
    assert again.stdout.strip() == str(tmp_path / "out" / "report.html")


def test_failures_go_to_stderr_with_reasons(config: Path, pictures: Path, tmp_path: Path) -> None:
    for i in range(7):
        (pictures / "blob" / f"bad{i}.png").write_bytes(b"")
    result = cbir("compare", config, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0].startswith("left out: blob/bad0.png: ")
    assert result.stderr.splitlines()[-1] == "left out: 2 more, listed in the results"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (COMPARE.replace("64]", "63]"), ":4: codecs.1.bits.1: must be a multiple of 8"),
        (COMPARE.replace("root", "rot"), ":1: source.rot: unknown key; did you mean 'root'?"),
        (COMPARE.replace("hog,", "hgo,"), ":3: extractors.0.name: no extractor named 'hgo'; did you mean 'hog'?"),
    ],
)
def test_a_wrong_config_is_one_line_and_status_2(pictures: Path, text: str, message: str) -> None:
    path = pictures.parent / "bad.yaml"
    path.write_text(text)
    result = cbir("compare", path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert result.stdout == ""


def test_work_that_fails_is_one_line_and_status_1(config: Path, tmp_path: Path) -> None:
    config.write_text(COMPARE.replace("pictures}", "nothing-here}"))
    result = cbir("compare", config, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "nothing-here" in result.stderr


def test_bad_usage_is_status_2(tmp_path: Path) -> None:
    assert cbir("compare", tmp_path / "none.yaml").exit_code == 2
    assert cbir("search", tmp_path).exit_code == 2
    assert cbir("nonsense").exit_code == 2


def test_build_search_info_verify(config: Path, pictures: Path, tmp_path: Path) -> None:
    config.write_text(
        COMPARE.replace("[16, 64]", "64").replace("{name: raw}, ", "").replace("{name: faiss-flat}, ", "")
    )
    out = tmp_path / "x.cbir"
    built = cbir("build", config, "--out", out, "--json")
    assert built.exit_code == 0, built.output
    report = json.loads(built.stdout)
    assert report["items"] == 36
    assert set(report) == {"items", "failed", "resumed_items", "images_per_second", "seconds", "peak_rss_bytes"}
    assert {"load", "extract", "fit", "encode", "store", "total"} <= set(report["seconds"])
    picture = pictures / "blob" / "03.png"
    found = json.loads(cbir("search", out, picture, "-k", 3, "--json").stdout)
    assert [set(hit) for hit in found[0]] == [{"id", "path", "label", "distance"}] * 3
    assert found[0][0]["path"] == "blob/03.png"
    assert found[0][0]["distance"] == 0
    only = json.loads(cbir("search", out, picture, "--where", 'label = "checks"', "--json").stdout)
    assert {hit["label"] for hit in only[0]} == {"checks"}
    assert "blob/03.png" in cbir("search", out, picture).stdout
    assert json.loads(cbir("info", out, "--json").stdout)["items"] == 36
    assert "36" in cbir("info", out).stdout
    assert cbir("verify", out).exit_code == 0
    codes = out / "segments" / "1" / "codes.npy"
    codes.write_bytes(codes.read_bytes()[:-1] + b"\x00")
    damaged = cbir("verify", out)
    assert damaged.exit_code == 1
    assert "codes.npy" in damaged.stdout


def test_a_query_that_is_no_picture_is_one_line(config: Path, tmp_path: Path) -> None:
    config.write_text(
        COMPARE.replace("[16, 64]", "64").replace("{name: raw}, ", "").replace("{name: faiss-flat}, ", "")
    )
    cbir("build", config, "--out", tmp_path / "x.cbir")
    result = cbir("search", tmp_path / "x.cbir", config)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr
    assert cbir("search", tmp_path / "x.cbir", tmp_path / "none.png").exit_code == 1
    assert cbir("search", tmp_path / "x.cbir", "--where", "label ==", "--id", 1).exit_code == 1
    assert cbir("search", tmp_path / "x.cbir", "--id", 999).exit_code == 1


def test_a_build_that_cannot_be_is_refused_and_leaves_nothing(config: Path, tmp_path: Path) -> None:
    result = cbir("build", config, "--out", tmp_path / "x.cbir")
    assert result.exit_code == 2
    assert "a build needs exactly one" in result.stderr
    assert not (tmp_path / "x.cbir").exists()


def test_plugins_lists_every_group() -> None:
    output = cbir("plugins").stdout
    for name in ("folder", "torchvision", "raw", "lsh", "faiss-flat", "float"):
        assert f"  {name} " in output


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    text = cbir(name, "--help").stdout
    assert len(text.splitlines()) > 4
    if name != "plugins":
        assert f"cbir {name} " in text.split("Options:")[0].split("\n", 1)[1]


def test_the_overview_is_short() -> None:
    context = click.Context(main)
    assert len(main.get_help(context).splitlines()) < 40
