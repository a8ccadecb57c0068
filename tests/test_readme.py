"""What the README names is there; what it tells to do is done by test_docs_pages.py."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from cbir_faiss.config import parse_choices

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


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
