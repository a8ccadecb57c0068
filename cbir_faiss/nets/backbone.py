"""Any classification model of torchvision without its classifier, to be trained further."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from cbir_faiss.base.options import name_or_path, need
from cbir_faiss.nets.contract import Network


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
        dropout: of what the full connection is fed. seed: of weights ``none``; that of the training where left out."""

        model: str
        weights: Annotated[str, AfterValidator(name_or_path)] = "DEFAULT"
        layer: str | None = None
        attention: Literal["none", "cbam"] = "none"
        ratio: int = Field(default=16, ge=1)
        pool: Literal["avg", "max", "gem", "flatten"] = "avg"
        full: int | None = Field(default=None, ge=1, le=65_536)
        dropout: float = Field(default=0.0, ge=0, lt=1)
        seed: int | None = Field(default=None, ge=0)

        @model_validator(mode="after")
        def _goes_together(self) -> Backbone.Options:
            if self.dropout and self.full is None:
                raise ValueError("dropout stands before the full connection: give full")
            return self

    options: Options

    def _build(self, pretrained: bool) -> tuple[Any, dict[str, Any]]:
        need("torchvision", "torch")
        from cbir_faiss.nets._backbone import Cut, cut, shape_of
        from cbir_faiss.nets.zoo import build_model

        o = self.options
        model, preset = build_model(o.model, o.weights if pretrained else "none", o.seed)
        maps = cut(model, o.layer)
        return Cut(maps, o, shape_of(maps, *self._preprocess(preset).size)), preset
