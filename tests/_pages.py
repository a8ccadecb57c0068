"""A page is done as it stands there, from top to bottom: files are written, commands run, Python executed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
from click.testing import CliRunner

from cbir_faiss.cli import main
from cbir_faiss.cli._group import Later

ROOT = Path(__file__).parents[1]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return re.findall(r"^ *```(\w+)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def lines(text: str) -> Iterator[list[str]]:
    """The words of each line of shell, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_page(page: Path, changes: Mapping[str, str] | None = None) -> list[str]:
    """The commands that were run, in the current folder; ``changes`` are made to the text first: ports, a smaller task.

    A block of YAML or Python that begins with ``# name.yaml`` or ``# name.py`` is written to that file.
    """
    ran = []
    for language, text in blocks(page):
        for old, new in (changes or {}).items():
            text = text.replace(old, new)
        named = re.match(r"# ([\w-]+\.\w+)", text)
        if language in ("yaml", "python") and named:
            Path(named[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, page.name, "exec"), {"__name__": "__main__"})
        elif language == "sh":
            ran += [run_line(words) for words in lines(text)]
    return ran


def run_line(words: list[str]) -> str:
    """Run a line: a command of ours, or a target that the Makefile has to have."""
    line = shlex.join(words)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), line
        return line
    assert words[0] == "cbir", f"no test can run this, so it is no block of sh: {line}"
    done = CliRunner().invoke(main, words[1:], catch_exceptions=False)
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return line


def check_line(words: list[str]) -> None:
    """That there is such a command with such options."""
    listed = main.commands[words[1]]
    command = listed.command() if isinstance(listed, Later) else listed
    with click.Context(command, info_name=words[1]) as context:
        command.make_parser(context).parse_args(list(words[2:]))
