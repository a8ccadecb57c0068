"""connectors/README.md shows a connector and its test: they run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "connectors" / "README.md"


def blocks() -> dict[str, str]:
    """Python blocks by the file name in their first line."""
    found = re.findall(r"```python\n# (\S+)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return dict(found)


def test_the_connector_in_the_readme_passes_the_contract(tmp_path: Path) -> None:
    for name, text in blocks().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d\d passed", run.stdout)


def test_the_example_is_short() -> None:
    code = {name: len(re.sub(r"\n\s*(?=\n)", "", text).splitlines()) for name, text in blocks().items()}
    assert code["my_sqlite.py"] <= 80
    assert code["test_my_sqlite.py"] <= 7
