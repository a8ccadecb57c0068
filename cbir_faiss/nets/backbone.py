"""Any classification model of torchvision without its classifier, to be trained further."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from cbir_faiss.base.options import name_or_path
from cbir_faiss.errors import ConfigError, one_line
from cbir_faiss.nets.cbam import CBAM
from cbir_faiss.nets.contract import Network
from cbir_faiss.nets.layers import pooled
from cbir_faiss.nets.zoo import build_model, check_layers, default_layer


class Backbone(Network):
    """A model cut at a layer, with or without CBAM after it, pooled, and a full connection where one is asked for.

    Fine-tuned with the loss ``classification`` and used without the classes, it is what Tran, Nguyen and Vo (2023) use;
    with ``attention: cbam, pool: flatten, full: 1024`` the network of Luo et al. (2022); with ``model: alexnet, layer:
    classifier.5`` (the second full connection) that of Varga and Szirányi (2016).
    """

    name: ClassVar[str] = "backbone"

    class Options(Network.Options):
        """model, weights, layer, pool: as of the extractor ``torchvision``. attention: after the layer. ratio: by which
        its hidden layer is narrower than the maps. full: width of a full connection after pooling; none if left out.
        dropout: of what the full connection is fed. seed: of weights ``none``."""

        model: str
        weights: Annotated[str, AfterValidator(name_or_path)] = "DEFAULT"
        layer: str | None = None
        attention: Literal["none", "cbam"] = "none"
        ratio: int = Field(default=16, ge=1)
        pool: Literal["avg", "max", "gem", "flatten"] = "avg"
        full: int | None = Field(default=None, ge=1, le=65_536)
        dropout: float = Field(default=0.0, ge=0, lt=1)
        seed: int = Field(default=0, ge=0)

        @model_validator(mode="after")
        def _goes_together(self) -> Backbone.Options:
            if self.dropout and self.full is None:
                raise ValueError("dropout stands before the full connection: give full")
            return self

    options: Options

    def _build(self, pretrained: bool) -> tuple[Any, dict[str, Any]]:
        o = self.options
        model, preset = build_model(o.model, o.weights if pretrained else "none", o.seed)
        layer = o.layer or default_layer(model)
        check_layers(model, (layer,))
        maps = create_feature_extractor(model, {layer: "maps"}, suppress_diff_warning=True)
        return _Cut(maps, o, self._shape(maps, *self._preprocess(preset).size)), preset

    def _shape(self, maps: Any, height: int, width: int) -> tuple[int, ...]:
        """Channels, height and width of the maps for images of ``height`` and ``width``."""
        maps.eval()
        try:
            with torch.no_grad():
                return tuple(maps(torch.zeros(1, 3, height, width))["maps"].shape[1:])
        except Exception as error:  # models assert, or their layers fail, each in its own way
            what = f"it does not take images of {height} x {width}: {one_line(error)}"
            raise ConfigError(what, path="model") from error


class _Cut(nn.Module):  # type: ignore[misc]
    def __init__(self, maps: Any, o: Backbone.Options, shape: tuple[int, ...]) -> None:
        super().__init__()
        if o.attention == "cbam" and len(shape) != 3:
            raise ConfigError(f"attention needs maps, and layer '{o.layer}' gives vectors", path="attention")
        self.maps, self.pool = maps, o.pool
        self.attention = CBAM(shape[0], o.ratio) if o.attention == "cbam" else nn.Identity()
        width = pooled(torch.zeros(1, *shape), o.pool).shape[1]
        self.full = nn.Sequential(nn.Dropout(o.dropout), nn.Linear(width, o.full)) if o.full else nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.full(pooled(self.attention(self.maps(x)["maps"]), self.pool))
