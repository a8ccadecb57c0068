"""The module of ``compact``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class CompactModule(nn.Module):  # type: ignore[misc]
    """Normalised images ``(n, 3, h, w)`` to ``(n, features)``."""

    def __init__(self, width: int, features: int, blocks: int, squeeze: int | None = None) -> None:
        super().__init__()
        w = width
        self.early = nn.Sequential(_convolution(3, w, 2), _convolution(w, 2 * w, 2))
        self.middle = nn.Sequential(_convolution(2 * w, 4 * w, 2), *(_Residual(4 * w, squeeze) for _ in range(blocks)))
        self.late = nn.Sequential(_convolution(4 * w, 8 * w, 2), *(_Residual(8 * w, squeeze) for _ in range(blocks)))
        pooled = 2 * 2 * w + 4 * w + 2 * 8 * w
        self.mix = nn.Sequential(nn.BatchNorm1d(pooled), nn.Linear(pooled, features))

    def forward(self, x: Any) -> Any:
        early = self.early(x)
        middle = self.middle(early)
        late = self.late(middle)
        mean = early.mean((2, 3))
        # Of maps that are constant the deviation is 0, where the square root has no finite slope.
        deviation = ((early - mean[:, :, None, None]).square().mean((2, 3)) + 1e-5).sqrt()
        pooled = [mean, deviation, middle.mean((2, 3)), late.mean((2, 3)), late.amax((2, 3))]
        return self.mix(torch.cat(pooled, 1))


def _convolution(before: int, after: int, stride: int) -> Any:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):  # type: ignore[misc]
    def __init__(self, channels: int, squeeze: int | None) -> None:
        super().__init__()
        self.change = _convolution(channels, channels, 1)
        self.gates = _Gates(channels, squeeze) if squeeze else nn.Identity()

    def forward(self, x: Any) -> Any:
        return x + self.gates(self.change(x))


class _Gates(nn.Module):  # type: ignore[misc]
    """Channels weighted by what all places have of them: Hu, Shen and Sun, "Squeeze-and-Excitation Networks", 2018."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        hidden = max(1, channels // squeeze)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Any) -> Any:
        return x * torch.sigmoid(self.mlp(x.mean((2, 3))))[:, :, None, None]
