"""A small network for small pictures that learns in minutes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from cbir_faiss.nets.contract import Network

Width = Annotated[int, Field(ge=1, le=4096)]


class Speedrun(Network):
    """A whitened convolution 2 x 2, then three pairs of convolutions 3 x 3, each pooled by its maximum.

    The filters of the first layer are not trained: they are the principal axes of the patches of the pictures, divided
    by their deviations, and the opposites of these. The rest has batch normalisation and GELU throughout. After the
    networks that are trained on CIFAR-10 against the clock: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
    2024.
    """

    name: ClassVar[str] = "speedrun"
    preset: ClassVar[dict[str, Any]] = {"resize": (32, 32), "crop": None}

    class Options(Network.Options):
        """widths: channels of the three pairs; the last are the features."""

        widths: tuple[Width, Width, Width] = (64, 192, 192)

    options: Options

    def _build(self, pretrained: bool) -> tuple[Any, dict[str, Any]]:
        from cbir_faiss.nets._speedrun import SpeedrunModule

        return SpeedrunModule(self.options.widths), {}
