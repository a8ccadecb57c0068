"""The convolutional block attention module (CBAM): what to look at, then where."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class CBAM(nn.Module):  # type: ignore[misc]
    """Maps ``(n, c, h, w)`` weighted by channel, then by place.

    Channels: σ(MLP(average over places) + MLP(maximum over places)); places: σ(convolution 7 x 7 of the mean and the
    maximum over channels). From: Woo, Park, Lee and Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018; put
    after the last convolution by Luo, Li, Ma and Zhang, Information 13(10), 2022.
    """

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.place = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Any) -> Any:
        channels = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * channels[:, :, None, None]
        places = torch.sigmoid(self.place(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))
        return x * places
