"""The folder tree is the architecture: a room imports only from rooms above it, and core loads no heavy library."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cbir_faiss.cli import main

PACKAGE = Path(__file__).parents[1] / "cbir_faiss"
CONNECTORS = Path(__file__).parents[1] / "connectors" / "cbir_connectors"
# Top to bottom; rooms of one line know nothing of each other.
ROOMS = [
    {"types", "errors", "_lib"},
    {"base"},
    {"images", "config", "measures"},
    {"pipeline"},
    {"storage", "nets"},
    {"sources", "extractors", "codecs", "backends", "rescorers", "datasets", "testing"},
    {"collection", "report"},
    {"comparison", "training"},
    {"tuning", "serve"},
    {"cli"},
]
# What plugins and commands need, each when it does its work; naming them, their options and their help needs none.
HEAVY = {
    *("torch", "torchvision", "onnxruntime", "onnx", "sklearn", "scipy", "cv2", "imagehash", "matplotlib", "jinja2"),
    *("timm", "open_clip", "transformers", "tokenizers", "sqlite_vec", "rabitqlib"),
    *("faiss", "lancedb", "pyarrow", "qdrant_client", "qdrant_edge", "psycopg", "usearch", "ray", "h5py", "tqdm"),
    *("pymilvus", "milvus_lite", "grpc", "pandas"),
    *("starlette", "uvicorn", "python_multipart", "multipart", "httptools", "h11"),
}
LESS_HEAVY = {"numpy", "pydantic", "yaml", "PIL", "threadpoolctl", "sqlite3", "importlib.metadata"}


def level(room: str) -> int:
    return next(i for i, rooms in enumerate(ROOMS) if room in rooms)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in ("__init__", "__main__"):
            yield room, path


def rooms_imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # "from cbir_faiss import threads" names the room in the alias
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "cbir_faiss" else [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "cbir_faiss" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize(("room", "path"), list(modules()), ids=lambda v: str(v.name) if isinstance(v, Path) else v)
def test_a_room_imports_only_from_rooms_above_it(room: str, path: Path) -> None:
    for other in rooms_imported(path):
        assert other == room or level(other) < level(room), f"{path.name} ({room}) imports {other}"


def test_every_room_has_its_place() -> None:
    assert {room for room, _ in modules()} == set().union(*ROOMS)


@pytest.mark.parametrize("path", sorted(CONNECTORS.rglob("*.py")), ids=lambda p: p.name)
def test_a_connector_knows_only_the_contract(path: Path) -> None:
    allowed = set().union(*ROOMS[: level("base") + 1], {"backends"})
    assert set(rooms_imported(path)) <= allowed
    text = path.read_text(encoding="utf-8")
    assert text.count("cbir_faiss.backends") == text.count("cbir_faiss.backends.database"), "only its public base class"


def loaded_by(code: str) -> set[str]:
    """The modules that a new Python has loaded after ``code``."""
    code = f"import sys\n{code}\nprint()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_no_heavy_library() -> None:
    assert not HEAVY & loaded_by("import cbir_faiss, cbir_faiss.cli, cbir_faiss.config")


@pytest.mark.parametrize("command", ["", *sorted(main.commands)])
def test_help_loads_nothing_but_the_command_line(command: str) -> None:
    words = [*filter(None, [command]), "--help"]
    code = f"from cbir_faiss.cli import main\nmain({words}, standalone_mode=False)"
    loaded = loaded_by(code)
    assert not (HEAVY | LESS_HEAVY) & loaded
    # The list of commands imports none of them.
    assert command or {name for name in loaded if name.startswith("cbir_faiss.cli.")} == {"cbir_faiss.cli._group"}


def test_listing_plugins_loads_none_of_their_libraries() -> None:
    loaded = loaded_by("from cbir_faiss.cli import main\nmain(['plugins'], standalone_mode=False)")
    assert {"cbir_faiss.backends.faiss.flat", "cbir_faiss.nets.backbone", "cbir_faiss.extractors.sift"} <= loaded
    assert not (HEAVY | {"PIL", "yaml"}) & loaded


def test_what_a_search_by_vector_imports_loads_no_heavy_library() -> None:
    loaded = loaded_by("import cbir_faiss.cli.reading, cbir_faiss.rescorers.float\nfrom cbir_faiss import Collection")
    assert "cbir_faiss.collection.collection" in loaded
    assert not HEAVY & loaded
    assert not {name for name in loaded if name.startswith(("cbir_faiss.training", "cbir_faiss.report"))}


def test_a_search_by_vector_loads_what_it_needs(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.ones((1, 256), np.float32))
    collection = Path(__file__).parent / "fixtures" / "pictures-0.1"
    shutil.copytree(collection, tmp_path / "x.cbir")
    code = (
        "from cbir_faiss import Collection\nimport numpy as np\n"
        f"with Collection.open({str(tmp_path / 'x.cbir')!r}) as c:\n"
        f"    assert len(c.search(np.load({str(tmp_path / 'q.npy')!r}), 3)[0]) == 3"
    )
    loaded = loaded_by(code)
    assert "faiss" in loaded
    needless = {"yaml", "PIL", "jinja2", "torch", "tqdm", "cbir_faiss.config", "cbir_faiss.pipeline.extraction"}
    assert not needless & loaded


def test_only_one_module_of_the_command_line_prints() -> None:
    for path in (PACKAGE / "cli").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "printing.py" or not re.search(r"click\.(echo|secho)|\bprint\(|std(out|err)\.write", text)


def test_public_names_are_there() -> None:
    import cbir_faiss

    for name in cbir_faiss.__all__:
        assert getattr(cbir_faiss, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cbir_faiss.nothing
