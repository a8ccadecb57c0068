"""The convolutional block attention module (CBAM): what to look at, then where."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class CBAM(nn.Module):  # type: ignore[misc]
    """Maps ``(n, c, h, w)`` weighted by channel, then by place.

    Channels: 2σ(MLP(average over places) + MLP(maximum over places)); places: 2σ(normalised convolution 7 x 7 of the
    mean and the maximum over channels). From: Woo, Park, Lee and Kweon, "CBAM: Convolutional Block Attention Module",
    ECCV 2018; put after the last convolution by Luo, Li, Ma and Zhang, Information 13(10), 2022.

    Pretrained maps may reach hundreds, where a sigmoid is 0 or 1 and learns nothing: gates look at maps divided by
    their root mean square, and the convolution's batch normalisation keeps places from being opened or shut all
    together. Last layers begin as zeros and gates as 2σ(0) = 1, so that what was learned before is passed on as it is
    until attention has learned better.
    """

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.place = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1)
        for last in (self.mlp[2].weight, self.mlp[2].bias, self.norm.weight):
            nn.init.zeros_(last)

    def forward(self, x: Any) -> Any:
        x = x * self.channel_gates(x)[:, :, None, None]
        return x * self.place_gates(x)

    def channel_gates(self, x: Any) -> Any:
        """Of each channel, 0 to 2, ``(n, c)``."""
        x = _scaled(x)
        return 2 * torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))

    def place_gates(self, x: Any) -> Any:
        """Of each place, 0 to 2, ``(n, 1, h, w)``."""
        x = _scaled(x)
        return 2 * torch.sigmoid(
            self.norm(self.place(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))
        )


def _scaled(x: Any) -> Any:
    """Maps with a root mean square of 1 over all that an image has; those of zeros as they are."""
    return x / (x.float().square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-6).to(x.dtype)
