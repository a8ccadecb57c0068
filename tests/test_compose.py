"""What starts servers for the contract kit: read here, run where there is Docker."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

CONNECTORS = Path(__file__).parents[1] / "connectors"
SCRIPT = (CONNECTORS / "test-servers.sh").read_text(encoding="utf-8")
SERVICES = yaml.safe_load((CONNECTORS / "docker-compose.yaml").read_text(encoding="utf-8"))["services"]


def test_the_script_is_a_script() -> None:
    subprocess.run(["bash", "-n", CONNECTORS / "test-servers.sh"], check=True)
    assert (CONNECTORS / "test-servers.sh").stat().st_mode & 0o111


def test_the_script_starts_what_the_compose_file_has() -> None:
    (started,) = re.findall(r"^compose up --detach (.*)$", SCRIPT, re.MULTILINE)
    assert set(started.split()) == {name for name, service in SERVICES.items() if "profiles" not in service}
    assert re.findall(r"compose exec -T (\w+)", SCRIPT) == ["postgres"]


def test_the_addresses_are_those_that_are_published() -> None:
    ports = {port.split(":")[1] for service in SERVICES.values() for port in service["ports"]}
    (qdrant,) = re.findall(r"CBIR_QDRANT_URL=http://localhost:(\d+)", SCRIPT)
    assert {qdrant, "5432"} <= ports
    password = SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert f"CBIR_PG_DSN=postgresql://postgres:{password}@localhost/postgres" in SCRIPT
