"""The module of ``multipool``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

LAYERS = 3


def multipool(pooling: Sequence[str], width: int, joint: int, features: int) -> Any:
    """Normalised images ``(n, 3, h, w)`` to ``(n, features)``; the options are those of the plugin."""
    widths = [width * 2**layer for layer in range(LAYERS)]
    layers: list[Any] = [
        _Layer(3 if layer == 0 else widths[layer - 1], widths[layer], len(pooling) ** layer, pooling)
        for layer in range(LAYERS)
    ]
    streams = len(pooling) ** LAYERS
    last = [*_joint(streams * widths[-1], joint), *_joint(joint, joint)]
    return nn.Sequential(*layers, *last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(joint, features), nn.ReLU())


def _joint(before: int, after: int) -> list[Any]:
    return [nn.BatchNorm2d(before), nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]


class _Layer(nn.Module):  # type: ignore[misc]
    """``streams`` maps of ``before`` channels side by side, to ``streams * len(pooling)`` of ``after`` channels."""

    def __init__(self, before: int, after: int, streams: int, pooling: Sequence[str]) -> None:
        super().__init__()
        self.streams, self.pooling = streams, pooling
        self.norm = nn.BatchNorm2d(streams * before)
        # Convolutions that read the same stream are one convolution of more channels; groups keep streams apart.
        self.convolution = nn.Conv2d(streams * before, streams * len(pooling) * after, 3, padding=1, groups=streams)
        pools = {"avg": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), "max": nn.MaxPool2d(3, 2, padding=1)}
        self.pools = nn.ModuleList(pools[how] for how in pooling)

    def forward(self, x: Any) -> Any:
        maps = self.convolution(self.norm(x)).unflatten(1, (self.streams, len(self.pools), -1))
        branches = [pool(maps[:, :, i].flatten(1, 2)) for i, pool in enumerate(self.pools)]
        return torch.relu(torch.cat(branches, 1))
