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
from cbir_faiss.base import Item
from cbir_faiss.base.registry import make
from cbir_faiss.config import load_config, parse_config
from cbir_faiss.extractors._onnx import Model
from cbir_faiss.extractors.compact import FILE, Compact
from cbir_faiss.pipeline.extraction import extract
from cbir_faiss.testing import ExtractorContract

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "datasets"
# For 256 bits: what docs/papers.md says, less what another machine's rounding may change.
TARGETS = {"corel1k": 0.88, "caltech101": 0.67}


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


def test_what_it_learns_from_are_no_queries(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "papers"))
    from pictures import EVERY, write_pictures

    root = tmp_path / "data"
    root.mkdir()
    (root / "caltech101").symlink_to(pictures)
    (root / "imagenet1k-samples").mkdir()
    Image.new("RGB", (8, 8)).save(root / "imagenet1k-samples" / "cup.png")
    assert load_config(ROOT / "configs" / "caltech101.yaml").every == EVERY
    queries = {item.path for item in make("sources", "folder", root=str(pictures)).items()[::EVERY]}
    count = write_pictures(root, tmp_path / "list.csv")
    items = make("sources", "list", file=str(tmp_path / "list.csv"), root=str(root)).items()
    assert count == len(items)
    assert items[-1] == Item("imagenet1k-samples/cup.png", ("imagenet1k-samples",))
    seen = {item.path.removeprefix("caltech101/") for item in items[:-1]}
    assert seen
    assert seen.isdisjoint(queries)
    assert len(seen | queries) == len(make("sources", "folder", root=str(pictures)).items())


def test_weights_are_stored_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", exc_type=ImportError)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from ship import halve

    from cbir_faiss.extractors._torch import Network, export
    from cbir_faiss.nets.model import new_card

    card, model = new_card(make("networks", "compact", width=4, features=64, blocks=1, squeeze=2), None, None)
    whole, half = tmp_path / "whole.onnx", tmp_path / "half.onnx"
    export(Network(model, ("features",), card.preprocess), whole)
    half.write_bytes(whole.read_bytes())
    halve(half)
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, *card.preprocess.size, 3), dtype=np.uint8)
    (exact,), (rounded,) = (Model(file, device="cpu").run(pixels, 2) for file in (whole, half))
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=2e-3 * np.abs(exact).max())


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
