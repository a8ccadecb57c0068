"""What the README says is done as it says: its files are written, its commands run, its Python executed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cbir_faiss.config import parse_choices

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/cat and photos/dog, and a cache of its own."""
    place = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for name, low in (("cat", 0), ("dog", 120)):
        (place / "photos" / name).mkdir(parents=True)
        for i in range(45):
            pixels = rng.integers(low, low + 120, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).resize((64, 64)).save(place / "photos" / name / f"{i}.jpg")
    return place


def test_the_readme_works_from_top_to_bottom(place: Path) -> None:
    environment = {
        **os.environ,
        "CBIR_CACHE": str(place / "cache"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ran = 0
    for language, text in BLOCKS:
        if language == "yaml":
            name = text.split()[1].rstrip(",")
            (place / name).write_text(text, encoding="utf-8")
        commands = []
        if language == "sh":
            commands = [["bash", "-ec", line] for line in text.splitlines() if line.startswith("cbir ")]
        if language == "python":
            commands = [[sys.executable, "-c", text]]
        for command in commands:
            done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
            ran += 1
    assert ran >= 8
    assert (place / "runs" / "photos" / "report.html").exists()


def test_the_make_targets_it_names_exist() -> None:
    targets = [
        line.split()[1]
        for language, text in BLOCKS
        if language == "sh"
        for line in text.splitlines()
        if line.startswith("make ")
    ]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_part_of_a_config_it_shows_is_right() -> None:
    (part,) = [text for language, text in BLOCKS if language == "yaml" and "extractors.yaml" in text]
    (choice,) = parse_choices("extractors", yaml.safe_load(part)["extractors"], "extractors")
    assert choice.options["model"] == "mobilenet_v2"


def test_every_file_it_links_to_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
