"""The network that ships with the package: small, general, without torch, and as good as the docs say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cbir_faiss as cf
from cbir_faiss.base.registry import make
from cbir_faiss.config import parse_config
from cbir_faiss.extractors.compact import FILE, Compact
from cbir_faiss.pipeline.extraction import extract
from cbir_faiss.testing import ExtractorContract

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "datasets"
# The targets for 256 bits: half way from the classical descriptors to a network trained on ImageNet.
TARGETS = {"corel1k": 0.85, "caltech101": 0.52}


class TestCompactContract(ExtractorContract):
    plugin = Compact


def test_it_is_the_default_for_pictures() -> None:
    document = {"source": {"name": "digits"}, "codecs": [{"name": "raw"}], "backends": [{"name": "faiss-flat"}]}
    assert [choice.name for choice in parse_config(document).extractors] == ["compact"]


def test_it_is_small_and_of_length_one() -> None:
    assert FILE.stat().st_size <= 8_000_000
    columns = Compact()([Image.new("RGB", (50, 30), colour) for colour in ("red", "black", "white")])
    assert columns["embedding"].shape == (3, 256)
    np.testing.assert_allclose(np.linalg.norm(columns["embedding"], axis=1), 1, rtol=1e-5)


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from PIL import Image; from cbir_faiss.base.registry import make\n"
        "make('extractors', 'compact')([Image.new('RGB', (9, 9))]); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_nothing_of_the_machine_it_was_made_on_is_in_it() -> None:
    assert not re.search(rb"/(root|home|tmp|work)/|site-packages", FILE.read_bytes())


def test_its_log_is_beside_its_config() -> None:
    history = json.loads((ROOT / "configs" / "train" / "compact.history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == list(range(1, len(history) + 1))
    assert history[-1]["score"] > history[0]["score"]


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.usefixtures("only_measured")
def test_it_reaches_its_targets(name: str, tmp_path: Path) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {name} in ../shared/datasets")
    source = make("sources", "folder", root=str(SHARED / name))
    found = extract(source, Compact(), cache=tmp_path)
    labels = [source.items()[row].labels[0] for row in found.rows]
    query = np.arange(len(labels)) % 5 == 0
    x = found.columns["embedding"]
    rows = cf.compare(
        vectors=x[~query],
        queries=x[query],
        labels=[label for label, q in zip(labels, query, strict=True) if not q],
        query_labels=[label for label, q in zip(labels, query, strict=True) if q],
        codecs=[{"name": "itq", "bits": 256}],
        backends=["faiss-binary-flat"],
        k=[5],
    )
    assert rows[0]["metrics"]["map@5"] >= TARGETS[name]
