"""Index a folder of pictures, and show for one of them what is most like it in each sub-folder.

python examples/album.py photos/ photos/cat/0.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import cbir_faiss as cf
from cbir_faiss.config import parse_config


def main(folder: str, picture: str) -> None:
    """Build the collection beside the folder, or bring it up to date, and ask it."""
    config = parse_config(
        {
            "source": {"name": "folder", "root": folder},
            "codecs": [{"name": "lsh", "bits": 256}],
            "backends": [{"name": "faiss-binary-flat"}],
            "rescore": [{"name": "float", "candidates": 100}],
        }
    )
    with cf.Collection.build(config, Path(folder).with_suffix(".cbir")) as collection:
        for label in sorted(path.name for path in Path(folder).iterdir() if path.is_dir()):
            for match in collection.search([picture], k=2, where={"label": label})[0]:
                print(f"{label:<20} {match.distance:.3f}  {match.path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
