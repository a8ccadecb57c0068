"""The bilinear network of Zeng, Hu and Xiao: max and average pooling of every stream, in every layer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from cbir_faiss.nets.contract import Network

Pooling = Literal["avg", "max"]


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
        from cbir_faiss.nets._multipool import multipool

        o = self.options
        return multipool(o.pooling, o.width, o.joint, o.features), {}
