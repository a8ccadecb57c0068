"""The command line: results on stdout, one line on stderr for a user's mistake, and the documented exit status."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from cbir_faiss import cli
from cbir_faiss.base import registry
from cbir_faiss.cli import main
from cbir_faiss.cli._group import Later

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


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does meanwhile is no matter of these tests."""
    monkeypatch.setattr("cbir_faiss.comparison.timing.BUSY_CORES", float("inf"))


@pytest.mark.usefixtures("only_measured")
def test_a_busy_machine_is_told(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbir_faiss.comparison.timing.BUSY_CORES", -1.0)
    result = cbir("compare", config, "--out", tmp_path / "out")
    assert "measured beside other work" in result.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["environment"]["busy"] is True


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


def test_margin_and_time_decide_what_is_recommended(config: Path, tmp_path: Path) -> None:
    result = cbir("compare", config, "--out", tmp_path / "out", "--margin", "0.9", "--max-ms", "10000")
    assert any(line.startswith("Use ") for line in result.stdout.splitlines()), "with so wide a margin codes will do"
    assert json.loads((tmp_path / "out" / "results.json").read_text())["recommendation"]["margin"] == 0.9
    for wrong in (("--margin", "2"), ("--max-ms", "0")):
        assert cbir("compare", config, *wrong).exit_code == 2


@pytest.mark.usefixtures("only_measured")
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


def test_options_of_an_engine_that_are_not_yaml_are_status_2(tmp_path: Path) -> None:
    for words in (["pull", "sqlite-vec", "path=@x", "--out", tmp_path / "x.cbir"], ["recall", "sqlite-vec", "path={a"]):
        result = cbir(*words)
        assert result.exit_code == 2
        assert "is no value in YAML" in result.stderr


def test_several_arrays_are_not_vectors(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", a=np.eye(3, dtype=np.float32))
    result = cbir("doctor", "--vectors", tmp_path / "v.npz")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "several arrays" in result.stderr


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


def test_plugins_goes_on_after_one_that_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "odd_plugin.py").write_text("raise RuntimeError('no\\nluck')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {name: EntryPoint(name, "odd_plugin:Odd", "cbir_faiss.codecs") for name in ("first", "last")}
    monkeypatch.setattr(registry, "_entries", lambda group: found if group == "codecs" else {})
    result = cbir("plugins")
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if line.startswith("  ")]
    reason = "its entry point is broken: RuntimeError: no"
    assert [line.split(maxsplit=1) for line in lines] == [
        [name, f"(codec '{name}': {reason})"] for name in ("first", "last")
    ]


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    text = cbir(name, "--help").stdout
    assert len(text.splitlines()) > 4
    if name != "plugins":
        assert f"cbir {name} " in text.split("Options:")[0].split("\n", 1)[1]


@pytest.mark.parametrize("name", sorted(main.commands))
def test_the_overview_says_of_a_command_what_the_command_says(name: str) -> None:
    listed = main.commands[name]
    assert isinstance(listed, Later)
    command = listed.command()
    assert command.name == name
    assert listed.get_short_help_str(120) == command.get_short_help_str(120)


def test_every_command_is_in_the_overview() -> None:
    found = set()
    for path in Path(cli.__file__).parent.glob("[a-z]*.py"):
        module = importlib.import_module(f"cbir_faiss.cli.{path.stem}")
        found |= {value.name for value in vars(module).values() if isinstance(value, click.Command)}
    assert found == set(main.commands)
    assert all(f"\n  {name} " in main.get_help(click.Context(main)) for name in found)


def test_the_overview_is_short() -> None:
    context = click.Context(main)
    assert len(main.get_help(context).splitlines()) < 40


def test_add_and_delete(config: Path, pictures: Path, tmp_path: Path) -> None:
    config.write_text(
        COMPARE.replace("[16, 64]", "64").replace("{name: raw}, ", "").replace("{name: faiss-flat}, ", "")
    )
    out, other = tmp_path / "x.cbir", tmp_path / "other"
    cbir("build", config, "--out", out)
    other.mkdir()
    (other / "a.png").write_bytes((pictures / "blob" / "00.png").read_bytes())
    (other / "b.png").write_bytes(b"")
    added = cbir("add", out, other)
    assert added.exit_code == 0, added.output
    assert added.stdout.startswith(f"{out}: 1 added (0 in place of older ones), 0 were there; 37 items")
    assert "the file is empty" in added.stderr
    again = json.loads(cbir("add", out, other, "--json").stdout)
    assert (again["added"], again["unchanged"], again["items"]) == (0, 1, 37)
    assert cbir("delete", out, "--id", 36).stdout == f"{out}: 1 deleted, 36 items left\n"
    assert cbir("delete", out, "--where", 'label = "blob"').stdout == f"{out}: 12 deleted, 24 items left\n"
    for wrong, status in ((("--id", 36), 1), ((), 2), (("--id", 1, "--where", "a = 1"), 2)):
        result = cbir("delete", out, *wrong)
        assert result.exit_code == status
    assert cbir("add", out, tmp_path / "none").exit_code == 1


def test_a_build_logs_json_on_request(config: Path, pictures: Path, tmp_path: Path) -> None:
    config.write_text(
        COMPARE.replace("[16, 64]", "64").replace("{name: raw}, ", "").replace("{name: faiss-flat}, ", "")
    )
    (pictures / "blob" / "bad.png").write_bytes(b"")
    result = subprocess.run(
        [sys.executable, "-m", "cbir_faiss.cli", "build", config, "--out", tmp_path / "x.cbir", "--log-json"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in result.stderr.splitlines() if not line.startswith("left out")]
    logged = [json.loads(line) for line in lines]
    assert {"extracting"} < {line["message"].split()[0] for line in logged}
    assert logged[-1]["items"] == 36
    assert {"time", "level", "logger", "message"} <= set(logged[0])
    assert [line for line in logged if line["message"] == "extracting"][-1]["done"] == 37
    assert "1 left out: the file is empty" in result.stdout
