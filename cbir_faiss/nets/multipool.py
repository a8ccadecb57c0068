"""The bilinear network of Zeng, Hu and Xiao: max and average pooling of every stream, in every layer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from cbir_faiss.nets.contract import Network

Pooling = Literal["avg", "max"]
LAYERS = 3


class Multipool(Network):
    """Every layer gives each stream a convolution followed by one pooling and a convolution followed by the other.

    Streams double: 2, 4, 8 after three layers. They are concatenated, two more convolutions follow, then the global
    average and a full connection. From: Zeng, Hu and Xiao, "Deep hash for latent image retrieval", Multimedia Tools and
    Applications 2019. The paper gives 32 channels for the first layer; the later widths cannot be read in our text, we
    take twice as many in each.
    """

    name: ClassVar[str] = "multipool"
    preset: ClassVar[dict[str, Any]] = {"resize": (32, 32), "crop": None}

    class Options(Network.Options):
        """pooling: of the branches that each stream divides into; one pooling makes a single stream, the same one twice
        two streams of the same kind (the paper's ablations). width: channels of a stream after the first layer.
        joint: channels of the two convolutions over all streams. features: width of the full connection."""

        pooling: tuple[Pooling, ...] = Field(default=("avg", "max"), min_length=1, max_length=2)
        width: int = Field(default=32, ge=1, le=512)
        joint: int = Field(default=512, ge=1, le=4096)
        features: int = Field(default=1000, ge=1, le=65_536)

    options: Options

    def _build(self, pretrained: bool) -> tuple[Any, dict[str, Any]]:
        o = self.options
        widths = [o.width * 2**layer for layer in range(LAYERS)]
        layers: list[Any] = [
            _Layer(3 if layer == 0 else widths[layer - 1], widths[layer], len(o.pooling) ** layer, o.pooling)
            for layer in range(LAYERS)
        ]
        streams = len(o.pooling) ** LAYERS
        last = [*_joint(streams * widths[-1], o.joint), *_joint(o.joint, o.joint)]
        return nn.Sequential(
            *layers, *last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(o.joint, o.features), nn.ReLU()
        ), {}


def _joint(before: int, after: int) -> list[Any]:
    return [nn.BatchNorm2d(before), nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]


class _Layer(nn.Module):  # type: ignore[misc]
    """``streams`` maps of ``before`` channels side by side, to ``streams * len(pooling)`` of ``after`` channels."""

    def __init__(self, before: int, after: int, streams: int, pooling: tuple[Pooling, ...]) -> None:
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
