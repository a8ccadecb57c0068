"""Write docs/reference/ from the code: every command, every option of every plugin, the Python interface.

python docs/reference.py            write the pages
python docs/reference.py --check    say which are not those of this code
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import cbir_faiss
from cbir_faiss import base, errors, testing, types
from cbir_faiss.base.registry import GROUPS, load, names
from cbir_faiss.cli import main
from cbir_faiss.cli._group import Later

PLACE = Path(__file__).parent / "reference"
OURS = ("cbir_faiss.", "cbir_connectors.")


def pages() -> dict[str, str]:
    """Each page by its file name."""
    made = {"commands.md": commands(), "plugins.md": plugins(), "python.md": python()}
    return {name: "\n".join(lines).rstrip() + "\n" for name, lines in made.items()}


def commands() -> Iterator[str]:
    """What every command takes."""
    yield from [
        "# Commands",
        "",
        "`cbir COMMAND --help` says the same. Exit status: 0 done, 1 the work failed, 2 bad usage.",
    ]
    for name, listed in sorted(main.commands.items()):
        command = listed.command() if isinstance(listed, Later) else listed
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        words = [
            f"{p.metavar or str(p.name).upper()}{'…' if p.nargs == -1 and not p.metavar else ''}" for p in arguments
        ]
        yield from ["", f"## cbir {name}", "", f"`{' '.join(['cbir', name, *words])}`"]
        for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
            if paragraph.startswith("\b"):
                yield from ["", "```text", *paragraph.splitlines()[1:], "```"]
            else:
                yield from ["", text(paragraph)]
        options = [p for p in command.params if isinstance(p, click.Option)]
        if options:
            yield from ["", "| option | | default |", "| --- | --- | --- |"]
        for option in options:
            default = option.default if option.show_default else None
            flags = ", ".join(f"`{flag}`" for flag in option.opts) + (" (needed)" if option.required else "")
            yield row(flags, option.help, "" if default is None else f"`{default}`")


def plugins() -> Iterator[str]:
    """What every plugin of ours can be told."""
    yield from ["# Plugins", "", "Every plugin that comes with the package, and its options as they stand in a config."]
    for group in GROUPS:
        yield from ["", f"## {group.capitalize()}"]
        for name in names(group):
            plugin: Any = load(group, name)
            if not plugin.__module__.startswith(OURS):
                continue
            yield from ["", f"### {name}", "", *paragraphs(plugin.__doc__)]
            yield from options(plugin.Options, "option")
            if searching := getattr(plugin, "SearchOptions", None):
                yield from options(searching, "option under `search`")


def options(model: Any, head: str) -> Iterator[str]:
    """A table of a model's fields, and what its docstring says of them."""
    if not model.model_fields:
        return
    schema = model.model_json_schema()
    said = inspect.cleandoc(model.__doc__ or "") if "__doc__" in vars(model) else ""
    told = dict(re.findall(r"(?<![^\s.])(\w+): (.*?)(?=\s\w+: |\Z)", said, re.DOTALL)) if said else {}
    if told and not set(told) <= set(model.model_fields):
        told = {}
    if said and not told and model.__doc__ != base.Options.__doc__:
        yield from ["", text(said)]
    yield from ["", f"| {head} | | default | |", "| --- | --- | --- | --- |"]
    for key, field in model.model_fields.items():
        default = "needed" if field.is_required() else f"`{plain(field.get_default(call_default_factory=True))}`"
        about = field.description or told.get(key, "")
        yield row(f"`{key}`", kind(schema["properties"][key], schema.get("$defs", {})), default, about)


def kind(schema: Any, defined: Any) -> str:
    """What a value may be, in the words of a config."""
    if "$ref" in schema:
        return kind(defined[schema["$ref"].rpartition("/")[2]], defined)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(kind(one, defined) for one in schema[several]))
    if "enum" in schema:
        # Sorted, because equal choices are one object for Python, in the order of whichever was imported first.
        return ", ".join(sorted(f"`{plain(value)}`" for value in schema["enum"]))
    if "const" in schema:
        return f"`{plain(schema['const'])}`"
    called = {"string": "text", "integer": "integer", "number": "number", "boolean": "`true`, `false`", "null": "null"}
    word = {"array": "list", "object": "mapping"}.get(schema.get("type", ""), "") or called.get(
        schema.get("type", ""), ""
    )
    if schema.get("format") == "path":
        word = "path"
    if schema.get("type") == "array" and "type" in schema.get("items", {}):
        word = f"list of {kind(schema['items'], defined)}"
    limits = {
        "minimum": "≥ ",
        "exclusiveMinimum": "> ",
        "maximum": "≤ ",
        "exclusiveMaximum": "< ",
        "multipleOf": "multiple of ",
    }
    return ", ".join([word or "anything", *(f"{sign}{schema[key]:g}" for key, sign in limits.items() if key in schema)])


def plain(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value, default=lambda other: sorted(other) if isinstance(other, set | frozenset) else str(other))


def python() -> Iterator[str]:
    """The names that stay, with what their docstrings say."""
    yield from [
        "# Python",
        "",
        "`import cbir_faiss as cf` gives the first of these; the others are imported from their modules.",
    ]
    for module in (cbir_faiss, types, errors, base, testing):
        listed = getattr(module, "__all__", None) or [n for n, v in vars(module).items() if of(v, module)]
        yield from ["", f"## {module.__name__}"]
        for name in listed:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield from described(value, f"{name}", "###")


def of(value: Any, module: Any) -> bool:
    return (
        (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and value.__name__[0] != "_"
    )


def described(value: Any, name: str, level: str) -> Iterator[str]:
    """A class with its public methods, or a function."""
    is_error = inspect.isclass(value) and issubclass(value, BaseException)
    yield from ["", f"{level} {name}", ""]
    if not is_error:
        yield from [f"`{name}{signature(value)}`", ""]
    yield from paragraphs(value.__doc__ if isinstance(value.__doc__, str) else "")
    if not inspect.isclass(value) or is_error or name.endswith("Contract"):
        return
    for key, member in vars(value).items():
        function = getattr(member, "__func__", member)
        if key[0] != "_" and inspect.isfunction(function) and function.__doc__:
            yield from ["", f"`{name}.{key}{signature(function)}`", "", *paragraphs(function.__doc__)]


def signature(value: Any) -> str:
    """Parameters with their types, as they are written in the code."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parts: list[str] = []
    for parameter in found.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        written = f": {parameter.annotation}" if isinstance(parameter.annotation, str) else ""
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parts.append(f"{stars}{parameter.name}{written}{default}")
    returned = found.return_annotation
    return f"({', '.join(parts)})" + (f" -> {returned}" if isinstance(returned, str) else "")


def paragraphs(docstring: str | None) -> Iterator[str]:
    """A docstring as Markdown: sections with their entries as lists, examples as code."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring or "")):
        head, _, rest = block.partition("\n")
        if head in ("Args:", "Raises:", "Returns:"):
            yield from [f"{head}", ""]
            for entry in re.split(r"\n(?=\S)", textwrap.dedent(rest)):
                key, colon, about = entry.partition(": ")
                yield f"- `{key}`: {text(about)}" if colon and " " not in key else f"- {text(entry)}"
        elif block.startswith("    "):
            code = textwrap.dedent(block)
            yield from [f"```{'python' if is_python(code) else 'text'}", *code.splitlines(), "```"]
        else:
            yield text(block)
        yield ""


def is_python(code: str) -> bool:
    """Whether it can be coloured as such."""
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def text(words: str) -> str:
    """One paragraph on one line, code in Markdown's quotes."""
    return re.sub(r"\s+", " ", words.replace("``", "`")).strip()


def row(*cells: str | None) -> str:
    """A row of a table."""
    return "| " + " | ".join(text(cell or "").replace("|", "\\|") for cell in cells) + " |"


def check(say: Callable[[str], None]) -> int:
    """How many pages are not those of this code."""
    stale = [n for n, made in pages().items() if not (PLACE / n).exists() or (PLACE / n).read_text("utf-8") != made]
    for name in stale:
        say(f"docs/reference/{name} is not that of this code: python docs/reference.py")
    return len(stale)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(min(1, check(lambda line: print(line, file=sys.stderr))))
    PLACE.mkdir(exist_ok=True)
    for file, content in pages().items():
        (PLACE / file).write_text(content, encoding="utf-8")
