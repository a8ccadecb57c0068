"""The module of ``backbone``: a model cut at a layer, and what stands after the cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from cbir_faiss.errors import ConfigError, one_line
from cbir_faiss.nets.cbam import CBAM
from cbir_faiss.nets.layers import pooled
from cbir_faiss.nets.zoo import check_layers, default_layer


def cut(model: Any, layer: str | None) -> Any:
    """``model`` up to ``layer`` (where it is None, what the classifier is fed), whose output is called ``maps``."""
    layer = layer or default_layer(model)
    check_layers(model, (layer,))
    return create_feature_extractor(model, {layer: "maps"}, suppress_diff_warning=True)


def shape_of(maps: Any, height: int, width: int) -> tuple[int, ...]:
    """Channels, height and width of the maps for images of ``height`` and ``width``."""
    maps.eval()
    try:
        with torch.no_grad():
            return tuple(maps(torch.zeros(1, 3, height, width))["maps"].shape[1:])
    except Exception as error:  # models assert, or their layers fail, each in its own way
        what = f"it does not take images of {height} x {width}: {one_line(error)}"
        raise ConfigError(what, path="model") from error


class Cut(nn.Module):  # type: ignore[misc]
    """Maps of ``shape`` (channels, height, width): weighted by attention, pooled, fully connected, as ``o`` has it."""

    def __init__(self, maps: Any, o: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        if o.attention == "cbam" and len(shape) != 3:
            raise ConfigError(f"attention needs maps, and layer '{o.layer}' gives vectors", path="attention")
        self.maps, self.pool = maps, o.pool
        self.attention = CBAM(shape[0], o.ratio) if o.attention == "cbam" else nn.Identity()
        width = pooled(torch.zeros(1, *shape), o.pool).shape[1]
        self.full = nn.Sequential(nn.Dropout(o.dropout), nn.Linear(width, o.full)) if o.full else nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.full(pooled(self.attention(self.maps(x)["maps"]), self.pool))
