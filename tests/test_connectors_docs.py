"""docs/scaling.md and the compose file: the arithmetic is redone, and the configurations are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from cbir_connectors.qdrant import Qdrant

from cbir_faiss.base.options import parse_options

ROOT = Path(__file__).parents[1]
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
GRAPH = round(4 * (2 * 16 + 16 / 15))


def test_memory_by_code_length() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", SCALING, re.MULTILINE)
    assert len(rows) == 6
    for bits, flat, row, stored, quantized, graph in ([int(cell) for cell in row] for row in rows):
        assert [flat, row, stored, quantized, graph] == [bits // 8, bits // 8 + 82, bits, bits // 8, GRAPH]


def test_memory_of_a_node() -> None:
    items, bits, replicas, nodes = 100e6, 256, 2, 3
    assert f"{items * (bits / 8 + GRAPH) * replicas / nodes / 1e9:.1f} GB a node" in SCALING
    disk = items * bits * replicas / nodes / 1e9
    assert disk == pytest.approx(17.07, abs=0.01)
    assert f"{2 * disk:.0f} GB of disk" in SCALING
    assert f"{items * bits / 8 / 30e9 * 1000:.0f} ms" in SCALING


def test_the_sharded_configuration_is_valid() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", SCALING, re.DOTALL)
    (section,) = yaml.safe_load(text)["backends"]
    search = section.pop("search")
    assert section.pop("name") == Qdrant.name
    assert parse_options(Qdrant.Options, section).shard_number == 6
    assert parse_options(Qdrant.SearchOptions, search).exact is False


def test_compose_file() -> None:
    services = yaml.safe_load((ROOT / "connectors" / "docker-compose.yaml").read_text(encoding="utf-8"))["services"]
    cluster = [name for name, service in services.items() if service.get("profiles") == ["cluster"]]
    assert set(services) == {"qdrant", "postgres", *cluster}
    assert len(cluster) == 3
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
