"""python .ci/contents.py WHEEL: says what a wheel lacks, and what it should not have."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"cbir_faiss": "cbir_faiss/", "connectors/cbir_connectors": "cbir_connectors/"}


def wrong(wheel: Path) -> list[str]:
    """One line for each difference between the wheel and what is committed."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (about,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        entry_points = file.read(f"{about}/entry_points.txt").decode()
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {name.removeprefix("connectors/") for name in listed.stdout.split()}
    found = {name for name in names if not name.startswith(about)}
    said = [f"missing: {name}" for name in sorted(expected - found)]
    said += [f"not committed: {name}" for name in sorted(found - expected)]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    points = re.findall(r'^([\w-]+) = "(cbir_[\w.]+:\w+)"$', project, re.MULTILINE)
    said += [f"no entry point: {name}" for name, value in points if f"{name} = {value}" not in entry_points]
    version = re.search(r'^version = "(.*)"', project, re.MULTILINE)
    if version is None or about != f"cbir_faiss-{version[1]}.dist-info":
        said.append(f"of another version: {about}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        said.append("missing: LICENSE")
    return said


if __name__ == "__main__":
    found = wrong(Path(sys.argv[1]))
    print(*found or [f"{sys.argv[1]}: what is committed, and nothing else"], sep="\n")
    sys.exit(bool(found))
