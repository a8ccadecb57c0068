"""Pictures of three colours, and the small network that learns to tell them apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
NETWORK = {
    "name": "multipool",
    "width": 2,
    "joint": 8,
    "features": 16,
    "preprocess": {"resize": [16, 16], "crop": None},
}


def write_colours(root: Path, each: int, side: int) -> Path:
    """``each`` pictures a class, of ``side`` x ``side`` pixels of noise about its colour; a folder for each class."""
    rng = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.normal(colour, 60, (side, side, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root
