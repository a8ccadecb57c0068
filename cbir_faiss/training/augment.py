"""Pictures altered at random, a whole batch at a time, on the device that trains."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from cbir_faiss.base.options import Options

Share = Annotated[float, Field(ge=0, le=1)]


class Augment(Options):
    """What is drawn for each picture of each step, evenly from a range. All off where nothing is given.

    scale: the shorter of two sides of what is seen, as a share of the picture: 0.7 is a crop of 0.7 to 1 of its sides;
    above 1, [0.8, 1.2] for instance, it is seen from farther away. shift: how far a crop may lie from the middle, as a
    share of the picture, beside the room that scale leaves. rotate: degrees to either side. flip: left to right, half
    of the time. brightness, contrast: 0.2 multiplies by 0.8 to 1.2. noise: deviation of what is added, of pixels from 0
    to 1. pad: pixels added at each side, before a part of the old size is cut out. cutout: side of a
    square that is made the picture's mean colour, as a share of the shorter side. mixup: the parameter of the Beta
    distribution of the share by which pictures of a step, and their losses, are mixed with others of it; 0 does not.
    beyond: what lies beyond the picture, its reflection or black.
    """

    scale: tuple[Annotated[float, Field(gt=0, le=4)], Annotated[float, Field(gt=0, le=4)]] = (1.0, 1.0)
    shift: Share = 0.0
    rotate: float = Field(default=0.0, ge=0, le=180)
    flip: bool = False
    brightness: Share = 0.0
    contrast: Share = 0.0
    noise: Share = 0.0
    pad: int = Field(default=0, ge=0, le=256)
    cutout: Share = 0.0
    mixup: float = Field(default=0.0, ge=0, le=10)
    beyond: Literal["reflection", "black"] = "reflection"

    @model_validator(mode="after")
    def _goes_together(self) -> Augment:
        if "beyond" in self.model_fields_set and not (self.moves or self.pad):
            raise ValueError("nothing beyond a picture is seen without scale, shift, rotate or pad: leave out beyond")
        return self

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
    if how.pad:
        x = _shifted(x, how.pad, how.beyond, even)
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
    if how.cutout:
        x = _cut_out(x, how.cutout, even)
    return x.clamp(0, 1)


def mixing(n: int, how: Augment, generator: torch.Generator) -> tuple[Any, float]:
    """With which other one each of ``n`` pictures is mixed, int64 ``(n,)``, and the share that it keeps."""
    share = torch._sample_dirichlet(torch.full((2,), how.mixup), generator=generator)[0].item()
    return torch.randperm(n, generator=generator), share


def _shifted(x: Any, pixels: int, beyond: str, even: Any) -> Any:
    """Whole pixels up or down, and left or right: nothing is resampled."""
    n, _, h, w = x.shape
    pixels = min(pixels, h - 1, w - 1)
    padded = torch.nn.functional.pad(x, [pixels] * 4, mode="constant" if beyond == "black" else "reflect")
    top, left = (even(0, 2 * pixels + 1).long()[:, None] for _ in range(2))
    rows, columns = top + torch.arange(h, device=x.device), left + torch.arange(w, device=x.device)
    pictures = torch.arange(n, device=x.device)[:, None, None]
    # Indices on both sides of the channels' slice: these come last.
    return padded[pictures, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(x: Any, side: float, even: Any) -> Any:
    """A square, wherever its middle lies in the picture."""
    h, w = x.shape[2:]
    half = side * min(h, w) / 2
    rows, columns = (
        (torch.arange(size, device=x.device) + 0.5 - even(0, size)[:, None]).abs() < half for size in (h, w)
    )
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, x.mean((2, 3), keepdim=True), x)


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
    padding = "zeros" if how.beyond == "black" else how.beyond
    return torch.nn.functional.grid_sample(x, grid, padding_mode=padding, align_corners=False)
