"""The small general network that ships with the package."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

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
        blocks: residual convolutions at each of the two lowest resolutions. squeeze: what these find is weighted by
        channel, by squeeze-and-excitation that narrows the channels by so much; not, where left out."""

        width: int = Field(default=24, ge=1, le=256)
        features: int = Field(default=256, ge=1, le=65_536)
        blocks: int = Field(default=2, ge=0, le=16)
        squeeze: int | None = Field(default=None, ge=1, le=256)

    options: Options

    def _build(self, pretrained: bool) -> tuple[Any, dict[str, Any]]:
        from cbir_faiss.nets._compact import CompactModule

        o = self.options
        return CompactModule(o.width, o.features, o.blocks, o.squeeze), {}
