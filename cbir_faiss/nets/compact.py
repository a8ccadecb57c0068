"""The small general network that ships with the package."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from cbir_faiss.nets.contract import Network


class Compact(Network):
    """Convolutions 3 x 3 of four resolutions; features from the pooled maps of three of them.

    What is pooled early (colours and textures, by mean and deviation) and late (parts of things, by mean and maximum)
    is normalised, put side by side and mixed by one linear map.
    """

    name: ClassVar[str] = "compact"
    preset: ClassVar[dict[str, Any]] = {"resize": 146, "crop": 128}

    class Options(Network.Options):
        """width: channels of the first convolution; each halving of the resolution doubles it. features: their number.
        blocks: residual convolutions at each of the two lowest resolutions."""

        width: int = Field(default=24, ge=1, le=256)
        features: int = Field(default=256, ge=1, le=65_536)
        blocks: int = Field(default=2, ge=0, le=16)

    options: Options

    def _build(self, pretrained: bool) -> tuple[Any, dict[str, Any]]:
        return _Compact(self.options.width, self.options.features, self.options.blocks), {}


class _Compact(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, features: int, blocks: int) -> None:
        super().__init__()
        w = width
        self.early = nn.Sequential(_convolution(3, w, 2), _convolution(w, 2 * w, 2))
        self.middle = nn.Sequential(_convolution(2 * w, 4 * w, 2), *(_Residual(4 * w) for _ in range(blocks)))
        self.late = nn.Sequential(_convolution(4 * w, 8 * w, 2), *(_Residual(8 * w) for _ in range(blocks)))
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
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = _convolution(channels, channels, 1)

    def forward(self, x: Any) -> Any:
        return x + self.change(x)
