"""What is released is what is committed, under one version, and is tried by the same script everywhere."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VERSION = re.findall(r'^version = "(.*)"', PROJECT, re.MULTILINE)[0]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# -- one version


def test_the_version_is_the_same_everywhere() -> None:
    heading, day = re.findall(r"^## (\S+)(?: - (\S+))?$", read("CHANGELOG.md"), re.MULTILINE)[0]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == VERSION
    assert f"cbir_faiss-{VERSION}-py3-none-any.whl" in read("README.md")
    if heading != "Unreleased":
        assert heading == VERSION
        assert citation["date-released"] == date.fromisoformat(day)


# -- the wheel


@pytest.fixture(scope="module")
def contents() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contents", ROOT / ".ci" / "contents.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, *, without: str = "", besides: str = "", version: str = VERSION) -> Path:
    """A wheel of what is committed, as hatchling would lay it out."""
    listed = subprocess.run(
        ["git", "ls-files", "cbir_faiss", "connectors/cbir_connectors"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    points = "\n".join(re.findall(r'^[\w-]+ = "cbir_[\w.]+:\w+"$', PROJECT, re.MULTILINE)).replace('"', "")
    files = {name.removeprefix("connectors/"): "" for name in listed.stdout.split()}
    about = f"cbir_faiss-{version}.dist-info"
    files |= {
        f"{about}/entry_points.txt": points,
        f"{about}/licenses/LICENSE": "",
        **({besides: ""} if besides else {}),
    }
    path = folder / "some.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in files.items():
            if name != without:
                file.writestr(name, text)
    return path


def test_a_whole_wheel_is_right(contents: Any, tmp_path: Path) -> None:
    assert contents.wrong(wheel(tmp_path)) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"without": "cbir_faiss/extractors/compact.onnx"}, "missing: cbir_faiss/extractors/compact.onnx"),
        ({"without": "cbir_faiss/py.typed"}, "missing: cbir_faiss/py.typed"),
        ({"besides": "tests/test_cli.py"}, "not committed: tests/test_cli.py"),
        ({"version": "0.0.9"}, "of another version: cbir_faiss-0.0.9.dist-info"),
        ({"without": f"cbir_faiss-{VERSION}.dist-info/licenses/LICENSE"}, "missing: LICENSE"),
    ],
)
def test_what_is_wrong_with_a_wheel_is_said(contents: Any, tmp_path: Path, options: dict[str, str], said: str) -> None:
    assert contents.wrong(wheel(tmp_path, **options)) == [said]


def release(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [place / ".ci" / "release", *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def git(place: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=place, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of what ``.ci/release`` reads; building the wheel is left out."""
    place = tmp_path / "checkout"
    (place / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "release", place / ".ci" / "release")
    (place / ".ci" / "wheel").write_text('#!/bin/sh\nmkdir "$1" && touch "$1/some.whl"\n')
    (place / ".ci" / "wheel").chmod(0o755)
    (place / ".gitignore").write_text("dist/\n")
    (place / "pyproject.toml").write_text('version = "1.2.3"\n')
    (place / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 - 2026-01-31\n")
    git(place, "init", "--quiet")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message", "all")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b.c")
    return place


def test_a_release_is_tagged_on_request_only(checkout: Path) -> None:
    done = release(checkout)
    assert done.returncode == 0, done.stderr
    assert (checkout / "dist" / "some.whl").exists()
    assert git(checkout, "tag") == ""
    assert release(checkout, "yes").returncode == 0
    assert git(checkout, "tag") == "v1.2.3\n"


@pytest.mark.parametrize(
    ("file", "text", "commit", "said"),
    [
        ("new.py", "", False, "commit what is changed first"),
        ("CHANGELOG.md", "## 1.2.3\n", True, "no heading '## 1.2.3 - YYYY-MM-DD'"),
        ("CHANGELOG.md", "## Unreleased\n\n## 1.2.3 - 2026-01-31\n", True, "still has a heading 'Unreleased'"),
        ("pyproject.toml", 'version = "1.2.4"\n', True, "no heading '## 1.2.4"),
    ],
)
def test_what_is_not_ready_is_not_released(checkout: Path, file: str, text: str, commit: bool, said: str) -> None:
    (checkout / file).write_text(text)
    if commit:
        git(checkout, "commit", "--quiet", "--all", "--message", "more")
    done = release(checkout, "yes")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert said in done.stderr
    assert git(checkout, "tag") == ""
    assert not (checkout / "dist").exists()


def test_a_version_is_released_once(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.3")
    assert "is tagged already" in release(checkout, "yes").stderr


# -- what calls what


def test_hosted_checks_only_call_the_script() -> None:
    (job,) = yaml.safe_load(read(".github/workflows/ci.yaml"))["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    matrix = job["strategy"]["matrix"]
    least = re.findall(r'^requires-python = ">=(.*)"', PROJECT, re.MULTILINE)
    assert matrix["python"][0] == least[0] == matrix["include"][0]["python"]
    assert matrix["include"][0]["dependencies"] == "lowest-direct"


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yaml")), ids=lambda p: p.name)
def test_a_template_asks_for_something(path: Path) -> None:
    template = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(template)
    identities = [part["id"] for part in template["body"]]
    assert len(set(identities)) == len(identities) > 1


def test_hooks_are_the_tools_of_make_lint() -> None:
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    tools = {entry.split()[0].rpartition("/")[2] for entry in entries}
    assert repository["repo"] == "local"  # nothing is downloaded
    assert {"ruff", "mypy"} <= tools
    lint = re.findall(r"^lint:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)[0]
    assert all(f"$(BIN)/{tool}" in lint for tool in ("ruff", "mypy"))


def test_every_target_of_make_says_what_it_does_and_how_long_it_takes() -> None:
    makefile = read("Makefile")
    targets = re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE)
    assert set(targets) == set(re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[0].split())
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in targets:
        (line,) = re.findall(rf"^{target} .*", shown, re.MULTILINE)
        assert target == "help" or re.search(r"\d+ (s|min)\)|\(.*\d+ (s|min)", line), line


def test_the_container_is_built_of_files_that_are_there_and_is_not_root() -> None:
    """What can be said of a container file without building it."""
    lines = [line for line in re.sub(r"\\\n\s*", " ", read("Containerfile")).splitlines() if line and line[0] != "#"]
    words = [line.split() for line in lines]
    for _, image, *_ in (line for line in words if line[0] == "FROM"):
        assert re.search(r":\d", image), "a version, not what is newest"
    copied = [name for line in words if line[0] == "COPY" and "--from" not in line[1] for name in line[1:-1]]
    ignored = [line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(ignored)
    assert all((ROOT / name).exists() for name in copied)
    orders = [line[0] for line in words]
    assert orders.index("USER") > max(i for i, order in enumerate(orders) if order == "RUN")
    extras = re.findall(r"\[([\w,]+)\]", read("Containerfile"))[0].split(",")
    assert all(re.search(rf"^{extra} = \[", PROJECT, re.MULTILINE) for extra in extras)


# -- what is refused


def test_windows_is_refused_in_one_line(tmp_path: Path) -> None:
    """It has no fcntl."""
    code = "import sys; sys.modules['fcntl'] = None; from cbir_faiss.cli import main; main()"
    (tmp_path / "x.cbir").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, "info", "x.cbir"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "cbir_faiss runs on Linux and macOS; on Windows, install it in WSL: Windows has no fcntl\n"


# -- examples


def test_the_example_of_own_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((300, 32)))
    runpy.run_path(str(ROOT / "examples" / "own_vectors.py"))["main"](str(tmp_path / "x.npy"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 3
    assert lines[0].split()[0] == "raw"
    assert lines[0].endswith("recall@10 1.000")


def test_the_example_of_an_album(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "album.py"))["main"]
    with Image.open(pictures / "checks" / "03.png") as image:
        image.save(pictures / "checks" / "copy.png")
    for _ in range(2):  # again: it is brought up to date
        main(str(pictures), str(pictures / "checks" / "03.png"))
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["blob"] * 2 + ["checks"] * 2 + ["stripes"] * 2
        assert {line.split()[2] for line in lines[2:4]} == {"checks/03.png", "checks/copy.png"}
