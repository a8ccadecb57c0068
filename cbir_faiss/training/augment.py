"""Pictures altered at random, a whole batch at a time, on the device that trains."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field

from cbir_faiss.base.options import Options

Share = Annotated[float, Field(ge=0, le=1)]


class Augment(Options):
    """What is drawn for each picture of each step, evenly from a range. All off where nothing is given.

    scale: the shorter of two sides of what is seen, as a share of the picture: 0.7 is a crop of 0.7 to 1 of its sides;
    above 1, [0.8, 1.2] for instance, it is seen from farther away. shift: how far a crop may lie from the middle, as a
    share of the picture, beside the room that scale leaves. rotate: degrees to either side. flip: left to right, half
    of the time. brightness, contrast: 0.2 multiplies by 0.8 to 1.2. noise: deviation of what is added, of pixels from 0
    to 1. What lies beyond the picture is its reflection.
    """

    scale: tuple[Annotated[float, Field(gt=0, le=4)], Annotated[float, Field(gt=0, le=4)]] = (1.0, 1.0)
    shift: Share = 0.0
    rotate: float = Field(default=0.0, ge=0, le=180)
    flip: bool = False
    brightness: Share = 0.0
    contrast: Share = 0.0
    noise: Share = 0.0

    @property
    def moves(self) -> bool:
        """Whether pixels change their place by more than a flip."""
        return self.scale != (1.0, 1.0) or self.shift > 0 or self.rotate > 0


def augment(x: Any, how: Augment, generator: torch.Generator) -> Any:
    """Pictures ``(n, 3, h, w)`` of pixels from 0 to 1, altered; ``generator`` is on the CPU, so that every device draws
    the same."""

    def even(low: float, high: float) -> Any:
        return (torch.rand(len(x), generator=generator) * (high - low) + low).to(x.device)

    if how.moves:
        x = _moved(x, how, even)
    if how.flip:
        flipped = even(0, 1) < 0.5
        x = torch.where(flipped[:, None, None, None], x.flip(3), x)
    if how.contrast:
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (x - mean) * even(1 - how.contrast, 1 + how.contrast)[:, None, None, None]
    if how.brightness:
        x = x * even(1 - how.brightness, 1 + how.brightness)[:, None, None, None]
    if how.noise:
        x = x + how.noise * torch.randn(x.shape, generator=generator).to(x.device)
    return x.clamp(0, 1)


def _moved(x: Any, how: Augment, even: Any) -> Any:
    """Scaled, rotated and shifted in one resampling."""
    scale, angle = even(*how.scale), even(-how.rotate, how.rotate) * (math.pi / 180)
    # Coordinates run from -1 to 1: a crop of half the sides can be moved by half in both directions.
    room = (1 - scale).clamp(min=0) + 2 * how.shift
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    aspect = x.shape[2] / x.shape[3]  # a unit of height is not one of width, and rotation is of pixels
    rows = [
        torch.stack([cosine, -sine * aspect, even(-1, 1) * room], 1),
        torch.stack([sine / aspect, cosine, even(-1, 1) * room], 1),
    ]
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
