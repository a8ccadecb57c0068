"""The connector that connectors/README.md shows, and its test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "connectors" / "README.md"
PLAIN = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""For a pytest that loads no plugins, which takes longer than such tests."""


def blocks() -> dict[str, str]:
    """Python blocks by the file name in their first line."""
    found = re.findall(r"```python\n# (\S+)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return dict(found)


def run_pytest(place: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What pytest with ``arguments`` says of the tests in ``place``, where the README's files are put."""
    for name, text in blocks().items():
        (place / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(command, cwd=place, env=PLAIN, capture_output=True, text=True, check=False)
