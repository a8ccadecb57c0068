"""The module of ``speedrun``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_SIDE = 2
_CHANNELS = 3 * _SIDE * _SIDE


class SpeedrunModule(nn.Module):  # type: ignore[misc]
    """Normalised images ``(n, 3, h, w)`` to ``(n, widths[-1])``."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.whiten = _Whitened()
        before = [2 * _CHANNELS, *widths]
        self.pairs = nn.Sequential(*(_pair(a, b) for a, b in zip(before, widths, strict=False)))

    def begin(self, pictures: Any) -> None:
        """Learn the first layer from normalised ``pictures`` ``(n, 3, h, w)``."""
        self.whiten.begin(pictures)

    def forward(self, x: Any) -> Any:
        return self.pairs(self.whiten(x)).amax((2, 3))


class _Whitened(nn.Module):  # type: ignore[misc]
    """A convolution whose filters, of random axes until ``begin``, are not trained; their biases are."""

    def __init__(self) -> None:
        super().__init__()
        axes = torch.linalg.qr(torch.randn(_CHANNELS, _CHANNELS))[0]
        self.register_buffer("weight", _filters(axes))
        self.bias = nn.Parameter(torch.zeros(2 * _CHANNELS))

    def begin(self, pictures: Any) -> None:
        patches = nn.functional.unfold(pictures.float(), _SIDE).transpose(1, 2).reshape(-1, _CHANNELS)
        variances, axes = torch.linalg.eigh(patches.T @ patches / len(patches))
        # What hardly varies, as in pictures of one colour, is not blown up.
        scaled = axes / (variances + 1e-2 * variances.mean() + 1e-6).sqrt()
        self.weight.copy_(_filters(scaled.T.contiguous()))

    def forward(self, x: Any) -> Any:
        return nn.functional.gelu(nn.functional.conv2d(x, self.weight, self.bias))


def _filters(axes: Any) -> Any:
    """Filters ``(24, 3, 2, 2)`` of axes that are rows, and of their opposites."""
    return torch.cat([axes, -axes]).view(2 * _CHANNELS, 3, _SIDE, _SIDE)


def _pair(before: int, after: int) -> Any:
    return nn.Sequential(*_convolution(before, after, nn.MaxPool2d(2)), *_convolution(after, after, nn.Identity()))


def _convolution(before: int, after: int, pool: Any) -> list[Any]:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    # It begins by passing its input on, beside random filters where there are more channels than that.
    nn.init.dirac_(convolution.weight[:before])
    return [convolution, pool, nn.BatchNorm2d(after), nn.GELU()]
