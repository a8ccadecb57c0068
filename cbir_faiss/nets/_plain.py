"""The module of ``plain``."""

from __future__ import annotations

from typing import Any

from torch import nn


def plain(width: int, features: int) -> Any:
    """Normalised images ``(n, 3, h, w)`` to ``(n, features)``."""
    return nn.Sequential(
        *_convolution(3, width, nn.MaxPool2d(3, 2, ceil_mode=True)),
        *_convolution(width, width, nn.AvgPool2d(3, 2, ceil_mode=True)),
        *_convolution(width, 2 * width, nn.AvgPool2d(3, 2, ceil_mode=True)),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(2 * width * 16, features),
        nn.ReLU(),
    )


def _convolution(before: int, after: int, pool: Any) -> list[Any]:
    return [nn.Conv2d(before, after, 5, padding=2), pool, nn.ReLU(inplace=True)]
