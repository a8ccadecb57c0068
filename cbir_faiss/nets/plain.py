"""The plain network of deep supervised hashing, that others are compared with."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

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
        from cbir_faiss.nets._plain import plain

        return plain(self.options.width, self.options.features), {}
