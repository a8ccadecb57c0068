"""Names to plugins: what is in pyproject.toml is found, and what is not found says so well."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import pytest

from cbir_faiss.base import Backend, Codec, Extractor, Plugin, Rescorer, Source, registry
from cbir_faiss.base.loss import Loss
from cbir_faiss.base.options import Options, parse_options
from cbir_faiss.errors import CbirError, ConfigError, MissingDependency, UnknownPlugin
from cbir_faiss.nets.contract import Network

BASES = {
    "sources": Source,
    "extractors": Extractor,
    "codecs": Codec,
    "backends": Backend,
    "rescorers": Rescorer,
    "networks": Network,
    "losses": Loss,
}
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def _declared() -> list[tuple[str, str]]:
    """(group, name) of every entry point in pyproject.toml; read line by line, for Python 3.10 has no tomllib."""
    group, found = "", []
    for line in PYPROJECT.read_text().splitlines():
        if line.startswith("["):
            group = line.partition('"cbir_faiss.')[2].rstrip('"]')
        elif group and "=" in line:
            found.append((group, line.partition("=")[0].strip()))
    return found


def test_every_declared_plugin_is_installed() -> None:
    """Strangers' plugins may be there too. If this fails, install again: entry points are read then."""
    for group in registry.GROUPS:
        assert {name for g, name in _declared() if g == group} <= set(registry.names(group))


def test_entry_points_are_sorted() -> None:
    for group in registry.GROUPS:
        names = [name for g, name in _declared() if g == group]
        assert names == sorted(names)


@pytest.mark.parametrize(("group", "name"), _declared())
def test_every_plugin_is_what_its_group_says(group: registry.Group, name: str) -> None:
    plugin = registry.load(group, name)
    assert issubclass(plugin, BASES[group])
    assert plugin.name == name
    assert plugin.__doc__
    with pytest.raises(ConfigError, match="no_such_option"):
        plugin(no_such_option=1)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownPlugin, match=r"no codec named 'rw'; did you mean 'raw'\? there are: .*raw"):
        registry.load("codecs", "rw")
    with pytest.raises(UnknownPlugin, match="no backend named 'zzzz'; there are: "):
        registry.load("backends", "zzzz")


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch):
    """Register ``value`` under the name 'odd' for the length of a test."""

    def register(value: str) -> None:
        found = {"odd": EntryPoint("odd", value, "cbir_faiss.codecs")}
        monkeypatch.setattr(registry, "_entries", lambda group: found)

    return register


def test_a_plugin_whose_library_is_missing(entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_plugin.py").write_text("import a_library_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry("odd_plugin:Odd")
    with pytest.raises(MissingDependency, match="codec 'odd' needs the Python package 'a_library_nobody_has'"):
        registry.load("codecs", "odd")


@pytest.mark.parametrize(
    "value", ["cbir_faiss.no_such_module:X", "cbir_faiss.codecs.raw:NoSuchClass", "json:dumps", "cbir_faiss.types:Hits"]
)
def test_a_broken_entry_point(entry, value: str) -> None:
    entry(value)
    with pytest.raises(CbirError, match="codec 'odd': its entry point is broken: "):
        registry.load("codecs", "odd")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:\n", "SyntaxError: "),
        ("raise RuntimeError('no\\nluck')\n", "RuntimeError: no"),
        ("raise RuntimeError\n", "RuntimeError: RuntimeError"),
        ("raise OSError('libodd.so.1: cannot open shared object file')\n", "OSError: libodd.so.1: cannot open"),
        ("import json.nothing_there\n", "needs the Python package 'json.nothing_there'"),
        ("from json import nothing_there\n", "ImportError: cannot import name"),
        ("import sys\nsys.exit('bye')\n", "SystemExit: bye"),
        ("from cbir_faiss.errors import MissingDependency\nraise MissingDependency('install odd')\n", "install odd"),
    ],
)
def test_a_plugin_that_cannot_be_imported_says_why_on_one_line(
    entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    (tmp_path / "odd_plugin.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_plugin", raising=False)
    entry("odd_plugin:Odd")
    with pytest.raises(CbirError) as caught:
        registry.load("codecs", "odd")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_make_checks_options() -> None:
    assert repr(registry.make("codecs", "raw")) == "Raw()"
    with pytest.raises(ConfigError):
        registry.make("codecs", "raw", bits=8)


def test_a_plugin_is_shown_with_what_was_chosen() -> None:
    codec: Plugin = registry.make("codecs", "lsh", bits=64, seed=3)
    assert repr(codec) == "LSH(seed=3, bits=64)"


def test_naming_plugins_imports_none_of_their_libraries() -> None:
    code = (
        "import sys, cbir_faiss, cbir_faiss.base.registry as r\n"
        "[r.names(g) for g in r.GROUPS]\n"
        "[r.load('backends', n) for n in r.names('backends') if n.startswith('faiss')]\n"
        "print([m for m in ('torch', 'faiss', 'onnxruntime', 'sklearn') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


class Nested(Options):
    of: Annotated[dict[str, Any], registry.section("sources")]
    several: tuple[Annotated[dict[str, Any], registry.section("extractors")], ...] = ()


def test_a_section_is_an_option_of_another_plugin() -> None:
    options = parse_options(
        Nested,
        {"of": {"name": "folder", "root": "a/../b"}, "several": [{"name": "hog"}, {"name": "hog", "size": 32}]},
        folder="/there",
    )
    assert options.of == {"name": "folder", "root": "/there/b"}
    assert [registry.make_section("extractors", one).options.size for one in options.several] == [64, 32]
    assert registry.make_section("sources", options.of).root == Path("/there/b")
    assert parse_options(Nested, options.model_dump(mode="json")) == options


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [
        ({}, "of", "is required"),
        ({"of": "folder"}, "of", "valid|object|dictionary"),
        ({"of": {}}, "of.name", "is required: which plugin"),
        ({"of": {"name": 3}}, "of.name", "must be text, not 3"),
        ({"of": {"name": "foldr"}}, "of.name", "did you mean 'folder'"),
        ({"of": {"name": "folder"}}, "of.root", "is required"),
        ({"of": {"name": "folder", "rot": "{x}"}}, "of.rot", "unknown key; did you mean 'root'"),
        ({"of": {"name": "folder", "root": "x"}, "several": [{"name": "hog", "size": "1"}]}, "several.0.size", "int"),
        ({"of": {"name": "altered", "of": {"name": "folder", "rot": 1}}}, "of.of.rot", "did you mean 'root'"),
    ],
)
def test_what_is_wrong_in_a_section_has_its_path(values: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_options(Nested, values)
    assert caught.value.path == path
