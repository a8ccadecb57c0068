"""Pictures that look like an album and are drawn here: scenes of six kinds, no two alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
_BLUE, _DUSK, _NIGHT = ((92, 156, 214), (214, 232, 244)), ((88, 72, 132), (246, 172, 112)), ((8, 12, 36), (40, 52, 96))


def draw(kind: str, rng: np.random.Generator, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """One scene of a kind out of ``KINDS``, drawn twice as large and made smaller."""
    width, height = size[0] * 2, size[1] * 2
    image = _sky(width, height, *_shifted(KINDS[kind][0], rng))
    KINDS[kind][1](ImageDraw.Draw(image), width, height, rng)
    return image.resize(size, Image.Resampling.LANCZOS)


def album(folder: Path, each: int, size: tuple[int, int] = (320, 240), seed: int = 0) -> Path:
    """``each`` scenes of every kind, in one sub-folder a kind."""
    rng = np.random.default_rng(seed)
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        for number in range(each):
            draw(kind, rng, size).save(folder / kind / f"{number:03}.jpg", quality=88)
    return folder


def _hills(pen: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    _disc(pen, rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.35) * height, 0.06 * width, (255, 244, 200))
    green = rng.integers(-18, 18, 3)
    for layer in range(4):
        colour = (130 - 28 * layer, 160 - 26 * layer, 132 - 30 * layer)
        _ridge(pen, width, height, 0.42 + 0.13 * layer, 0.09, _near(colour, green), rng)


def _sea(pen: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    line = int(rng.uniform(0.45, 0.6) * height)
    _disc(pen, rng.uniform(0.2, 0.8) * width, line - rng.uniform(0, 0.1) * height, 0.09 * width, (255, 214, 140))
    for y in range(line, height, 3):
        depth = (y - line) / (height - line)
        pen.rectangle((0, y, width, y + 3), fill=(int(60 - 30 * depth), int(110 - 40 * depth), int(150 - 50 * depth)))
    for _ in range(60):
        x, y = rng.uniform(0, width), rng.uniform(line, height)
        pen.line((x, y, x + rng.uniform(10, 60), y), fill=(150, 180, 200), width=2)
    for _ in range(int(rng.integers(1, 4))):
        _boat(pen, rng.uniform(0.1, 0.9) * width, line + rng.uniform(0.05, 0.3) * height, rng.uniform(20, 55))


def _boat(pen: ImageDraw.ImageDraw, x: float, y: float, side: float) -> None:
    pen.polygon([(x, y), (x, y - 2 * side), (x + side, y - 0.2 * side)], fill=(250, 248, 240))
    pen.polygon([(x - 5, y), (x - 5, y - 1.6 * side), (x - 0.7 * side, y - 0.2 * side)], fill=(232, 226, 214))
    pen.polygon(
        [(x - side, y), (x + side, y), (x + 0.7 * side, y + 0.3 * side), (x - 0.7 * side, y + 0.3 * side)],
        fill=(120, 60, 50),
    )


def _city(pen: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    x = 0.0
    while x < width:
        wide, tall = rng.uniform(0.07, 0.16) * width, rng.uniform(0.3, 0.75) * height
        tone = int(rng.uniform(45, 110))
        pen.rectangle((x, height - tall, x + wide - 4, height), fill=(tone, tone + 4, tone + 16))
        for top in np.arange(height - tall + 14, height - 10, 26):
            for left in np.arange(x + 10, x + wide - 18, 22):
                lit = rng.random() < 0.5
                pen.rectangle(
                    (left, top, left + 9, top + 13), fill=(250, 222, 140) if lit else (tone - 20, tone - 16, tone)
                )
        x += wide


def _night(pen: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    for x, y, side in rng.uniform((0, 0, 1), (width, 0.8 * height, 4), (160, 3)):
        _disc(pen, x, y, side / 2, (240, 240, 255))
    _disc(pen, rng.uniform(0.15, 0.85) * width, rng.uniform(0.15, 0.4) * height, 0.05 * width, (246, 242, 220))
    for layer in range(2):
        _ridge(pen, width, height, 0.68 + 0.14 * layer, 0.07, (22 - 10 * layer, 26 - 12 * layer, 44 - 18 * layer), rng)


def _meadow(pen: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    _ridge(pen, width, height, 0.34, 0.03, (96, 150, 72), rng)
    bright = [(226, 74, 84), (246, 200, 70), (250, 246, 240), (168, 104, 200)][int(rng.integers(4))]
    for y in np.sort(rng.uniform(0.4, 1.02, 90)) * height:
        x, side = rng.uniform(0, width), 6 + 26 * (y / height - 0.35)
        pen.line((x, y, x, y + 2.5 * side), fill=(58, 112, 50), width=3)
        for petal in range(6):
            angle = petal * math.pi / 3
            _disc(pen, x + side * math.cos(angle), y + side * math.sin(angle), 0.62 * side, bright)
        _disc(pen, x, y, 0.5 * side, (244, 190, 60))


def _balloons(pen: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(3, 9))):
        x, y, side = rng.uniform(0.1, 0.9) * width, rng.uniform(0.15, 0.75) * height, rng.uniform(0.05, 0.13) * width
        colours = [tuple(int(c) for c in rng.integers(60, 250, 3)) for _ in range(2)]
        for stripe in range(5):
            half = side * (1 - stripe / 5)
            pen.ellipse((x - half, y - 1.15 * side, x + half, y + 1.15 * side), fill=colours[stripe % 2])
        pen.rectangle((x - 0.16 * side, y + 1.35 * side, x + 0.16 * side, y + 1.6 * side), fill=(110, 76, 48))
    _ridge(pen, width, height, 0.9, 0.03, (120, 150, 96), rng)


Draw = Callable[[ImageDraw.ImageDraw, int, int, np.random.Generator], None]
KINDS: dict[str, tuple[tuple[Colour, Colour], Draw]] = {
    "balloons": (_BLUE, _balloons),
    "city": (_DUSK, _city),
    "hills": (_BLUE, _hills),
    "meadow": (_BLUE, _meadow),
    "night": (_NIGHT, _night),
    "sea": (_DUSK, _sea),
}


def _sky(width: int, height: int, top: Colour, bottom: Colour) -> Image.Image:
    share = np.linspace(0, 1, height)[:, None, None]
    rows = np.array(top) * (1 - share) + np.array(bottom) * share
    return Image.fromarray(np.broadcast_to(rows, (height, width, 3)).astype(np.uint8))


def _shifted(colours: tuple[Colour, Colour], rng: np.random.Generator) -> tuple[Colour, Colour]:
    shift = rng.integers(-20, 20, 3)
    return _near(colours[0], shift), _near(colours[1], shift)


def _near(colour: Colour, shift: np.ndarray) -> Colour:
    red, green, blue = np.clip(np.array(colour) + shift, 0, 255).tolist()
    return red, green, blue


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _ridge(
    pen: ImageDraw.ImageDraw, width: int, height: int, at: float, rough: float, colour: Colour, rng: np.random.Generator
) -> None:
    """A line of hills, at a share of the height, filled down to the ground."""
    x = np.linspace(0, width, 80)
    waves = sum(np.sin(x / width * math.tau * f + rng.uniform(0, math.tau)) / f for f in (1.0, 2.3, 5.1))
    y = (at + rough * waves) * height
    pen.polygon([(0, height), *zip(x.tolist(), y.tolist(), strict=True), (width, height)], fill=colour)
