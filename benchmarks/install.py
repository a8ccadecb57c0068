"""From nothing to the first answer: the wheel into a fresh environment, then a folder of photos on the page.

    python benchmarks/install.py             3 rounds, 100 photos of 640 x 480; needs a package index
    python benchmarks/install.py --quick     1 round, 10 photos; stores nothing

The wheel is built and an empty environment made before the clock runs. Then a user's two commands:

    install    seconds of `pip install 'cbir_faiss….whl[cpu,serve]'`, without pip's cache, bytecode compiled
    serve      seconds of `cbir serve photos/` up to the answer to a first search: extracted, indexed, served, asked

How long packages take to arrive is the network's share; wheels are not built from source. Raw figures go to
benchmarks/results/install.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from _report import camera_jpeg, show, store

TOKEN = "benchmark"
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 round, 10 photos, nothing stored")
    chosen = parser.parse_args()
    rounds, photos = (1, 10) if chosen.quick else (3, 100)
    with tempfile.TemporaryDirectory(prefix="install-") as folder:
        wheel = _wheel(Path(folder))
        runs = [_round(Path(folder) / str(number), wheel, photos) for number in range(rounds)]
    figures = {f"{name} s": statistics.median(run[name] for run in runs) for name in runs[0]}
    show(f"{photos} photos", [{"what": key, "": value} for key, value in figures.items()], ("what", ""))
    if not chosen.quick:
        print(store("install", {"photos": {"photos": photos, "runs": runs, **figures}}))


def _wheel(folder: Path) -> Path:
    command = [str(Path(sys.executable).with_name("uv")), "build", "--quiet", "--wheel", "--out-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _round(place: Path, wheel: Path, photos: int) -> dict[str, float]:
    venv.create(place / "venv", with_pip=True)
    (place / "photos").mkdir()
    for number in range(photos):
        (place / "photos" / f"{number:03}.jpg").write_bytes(camera_jpeg(number))
    unwanted = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "CBIR_CACHE")
    env = {key: value for key, value in os.environ.items() if key not in unwanted}
    began = time.perf_counter()
    pip = f"{place}/venv/bin/python -m pip install --quiet --no-cache-dir --only-binary :all:".split()
    subprocess.run([*pip, f"{wheel}[cpu,serve]"], env=env, check=True)
    installed = time.perf_counter()
    _serve(place, {**env, "XDG_CACHE_HOME": str(place / "cache"), "XDG_DATA_HOME": str(place / "data")})
    answered = time.perf_counter()
    return {"install": installed - began, "serve": answered - installed, "both": answered - began}


def _serve(place: Path, env: dict[str, str]) -> None:
    command = [str(place / "venv/bin/cbir"), "serve", "photos", "--port", "0", "--token", TOKEN]
    process = subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        link = next(line for line in process.stdout if "/?" in line)
        answer = _ask(int(link.split("/?")[0].rpartition(":")[2]))
        assert len(answer["results"][0]) == 5, answer
    finally:
        process.terminate()
        process.wait()


def _ask(port: int) -> Any:
    """The first answer; until there is one, the server is not ready."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", "/api/v1/collections/photos/search", json.dumps({"ids": [0], "k": 5}), headers)
            answer = connection.getresponse()
            if answer.status == 200:
                return json.loads(answer.read())
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.02)


if __name__ == "__main__":
    main()
