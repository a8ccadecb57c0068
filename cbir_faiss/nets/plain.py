"""The plain network of deep supervised hashing, that others are compared with."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from cbir_faiss.nets.contract import Network


class Plain(Network):
    """Three convolutions 5 x 5 with pooling, and a full connection.

    From: Liu, Wang, Shan and Chen, "Deep Supervised Hashing for Fast Image Retrieval", CVPR 2016.
    """

    name: ClassVar[str] = "plain"
    preset: ClassVar[dict[str, Any]] = {"resize": (32, 32), "crop": None}

    class Options(Network.Options):
        """width: channels of the first and second convolution, half of the third's. features: of the connection."""

        width: int = Field(default=32, ge=1, le=512)
        features: int = Field(default=500, ge=1, le=65_536)

    options: Options

    def _build(self, pretrained: bool) -> tuple[Any, dict[str, Any]]:
        w = self.options.width
        return nn.Sequential(
            *_convolution(3, w, nn.MaxPool2d(3, 2, ceil_mode=True)),
            *_convolution(w, w, nn.AvgPool2d(3, 2, ceil_mode=True)),
            *_convolution(w, 2 * w, nn.AvgPool2d(3, 2, ceil_mode=True)),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(2 * w * 16, self.options.features),
            nn.ReLU(),
        ), {}


def _convolution(before: int, after: int, pool: Any) -> list[Any]:
    return [nn.Conv2d(before, after, 5, padding=2), pool, nn.ReLU(inplace=True)]
