"""A first config: it is written once, says what it does, and what it describes is built, searched and compared."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cbir_faiss.cli import main, starting
from cbir_faiss.config import load_config


@pytest.fixture
def home(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that has ``pictures`` in it, and is where the commands are run."""
    monkeypatch.chdir(pictures.parent)
    return pictures.parent


def cbir(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_three_commands_from_a_folder_of_pictures_to_an_answer(home: Path) -> None:
    made = cbir("init", "pictures/")
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines() == ["pictures.yaml: 36 pictures. Next:", "cbir build pictures.yaml"]
    built = cbir("build", "pictures.yaml")
    assert built.exit_code == 0, built.output
    found = cbir("search", "pictures.cbir", home / "pictures" / "blob" / "03.png")
    assert "blob/03.png" in found.stdout


def test_the_comparison_has_raw_floats_and_codes(home: Path) -> None:
    assert cbir("init", "pictures", "--compare").exit_code == 0
    config = load_config(home / "pictures-compare.yaml")
    assert {choice.name for choice in config.codecs} == {"raw", "lsh", "itq"}
    done = cbir("compare", "pictures-compare.yaml", "--out", "run")
    assert done.exit_code == 0, done.output
    assert (home / "run" / "report.html").exists()


def test_many_pictures_are_kept_as_codes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "FEW", 36)
    assert cbir("init", "pictures", "--out", "many.yaml").exit_code == 0
    assert load_config("many.yaml").single().codecs[0].name == "itq"


def test_a_config_that_is_there_stays(home: Path) -> None:
    (home / "pictures.yaml").write_text("mine")
    result = cbir("init", "pictures")
    assert (result.exit_code, (home / "pictures.yaml").read_text()) == (1, "mine")
    assert "pictures.yaml: exists" in result.stderr


@pytest.mark.parametrize("name", ["a b", "ünï: c", "{x}", "#1"])
def test_folders_of_any_name_and_place(home: Path, name: str) -> None:
    (home / name).mkdir()
    Image.new("RGB", (40, 40), "red").save(home / name / "0.png")
    (home / "elsewhere").mkdir()
    for out in (f"{name}.yaml", "elsewhere/y.yaml"):
        made = cbir("init", name, *([] if out == f"{name}.yaml" else ["--out", out]))
        assert made.exit_code == 0, made.output
        assert Path(load_config(out).source.options["root"]).resolve() == home / name
        assert shlex.split(made.stdout.splitlines()[-1]) == ["cbir", "build", out]
        said = [shlex.split(line[1:]) for line in Path(out).read_text(encoding="utf-8").splitlines()[:3]]
        assert said[1][:3] == ["cbir", "build", out]
        assert said[2][:3] == ["cbir", "search", f"{out.removesuffix('.yaml')}.cbir"]


def test_what_cannot_be_a_start_is_one_line(home: Path) -> None:
    (home / "empty").mkdir()
    result = cbir("init", "empty")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "no image file" in result.stderr
    assert not (home / "empty.yaml").exists()
    assert cbir("init", "nowhere").exit_code == 2
    for name in (os.fsdecode(b"fo\xff"), "two\nlines"):
        (home / name).mkdir()
        Image.new("RGB", (40, 40), "red").save(home / name / "0.png")
        refused = cbir("init", name)
        assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
        assert not (home / f"{name}.yaml").exists()
    assert cbir("init", "two\nlines", "--out", "two.yaml").exit_code == 0
    assert Path(load_config("two.yaml").source.options["root"]).resolve() == home / "two\nlines"
    missing = cbir("init", "pictures", "--out", "no/such/folder.yaml")
    assert (missing.exit_code, len(missing.stderr.splitlines())) == (1, 1)


def test_without_a_command_the_three_are_shown() -> None:
    shown = cbir().output
    for command in ("cbir init photos/", "cbir build photos.yaml", "cbir search photos.cbir query.jpg"):
        assert command in shown
