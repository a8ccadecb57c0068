"""From a picture to the pixels that a network is fed; PIL and numpy only, in torchvision's arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, PlainSerializer, PlainValidator, model_validator
from typing_extensions import TypedDict

from cbir_faiss.base.options import Options
from cbir_faiss.errors import BadImage
from cbir_faiss.types import Floats

if TYPE_CHECKING:
    from PIL import Image

_MAX_SIDE = 8192


def _size(value: Any) -> int | tuple[int, int]:
    sides = value if isinstance(value, (list, tuple)) else (value, value)
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= _MAX_SIDE for side in sides):
        raise ValueError(f"must be a number of pixels from 1 to {_MAX_SIDE}, or [height, width]")
    return value if isinstance(value, int) else (sides[0], sides[1])


def _as_is(value: Any) -> Any:
    return value


# Validated by hand, because the message for a union would be about one of its parts.
Size = Annotated[int | tuple[int, int], PlainValidator(_size), PlainSerializer(_as_is, return_type=Any)]
"""One number, or height and width."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
PerChannel = tuple[float, float, float]

IMAGENET_MEAN: PerChannel = (0.485, 0.456, 0.406)
IMAGENET_STD: PerChannel = (0.229, 0.224, 0.225)
_MAX_RESIZED_PIXELS = 100_000_000


class Preprocess(Options):
    """resize: the shorter side, or height and width, or nothing. crop: the middle, a square or height and width;
    what is smaller gets a black border. mean, std: of pixels from 0 to 1, by channel."""

    resize: Size | None = 256
    crop: Size | None = 224
    interpolation: Interpolation = "bilinear"
    mean: PerChannel = IMAGENET_MEAN
    std: PerChannel = IMAGENET_STD

    @model_validator(mode="after")
    def _one_size(self) -> Preprocess:
        if self.crop is None and not isinstance(self.resize, tuple):
            raise ValueError("images would differ in shape: give crop, or resize as [height, width]")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every prepared image."""
        chosen = self.resize if self.crop is None else self.crop
        assert chosen is not None  # the validator saw to it
        return chosen if isinstance(chosen, tuple) else (chosen, chosen)

    @property
    def min_side(self) -> int | None:
        """Pixels of the shorter side from which ``pixels`` gives what a larger picture would, very nearly.

        Three times what it is resized to: at that, JPEGs decoded at half size moved MobileNetV2's vectors by less than
        0.001 of cosine (a sharp drawing by 0.005); at twice, some by 0.01.
        """
        return (
            None if self.resize is None else 3 * (max(self.resize) if isinstance(self.resize, tuple) else self.resize)
        )

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resized and cropped: uint8 ``(height, width, 3)`` of an RGB image.

        Raises:
            BadImage: so long and thin that resizing its shorter side would not fit in memory.
        """
        from PIL import Image

        if self.resize is not None:
            width, height = _resized(image.size, self.resize)
            if width * height > _MAX_RESIZED_PIXELS:
                raise BadImage(f"{image.width} x {image.height} pixels are too long and thin to be resized")
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if self.crop is not None:
            image = image.crop(_middle(image.size, self.size))
        return np.asarray(image)

    def normalise(self, batch: NDArray[np.uint8], scale: float = 1 / 255) -> Floats:
        """``(batch * scale - mean) / std``, float32, of uint8 ``(n, height, width, 3)``."""
        mean, std = np.array(self.mean), np.array(self.std)
        normal: Floats = batch * (scale / std).astype(np.float32) - (mean / std).astype(np.float32)
        return normal


class Override(TypedDict, total=False):
    """The parts of ``Preprocess`` that are to be other than what a network or its weights bring."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    resize: Size | None
    crop: Size | None
    interpolation: Interpolation
    mean: PerChannel
    std: PerChannel


def _resized(size: tuple[int, int], to: Size) -> tuple[int, int]:
    """Width and height after resizing; the longer side is rounded down."""
    if isinstance(to, tuple):
        return to[1], to[0]
    width, height = size
    return (to, int(to * height / width)) if width <= height else (int(to * width / height), to)


def _middle(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) to cut out; it reaches beyond an image that is smaller."""
    left, top = (_offset(have, want) for have, want in zip(size, reversed(crop), strict=True))
    return left, top, left + crop[1], top + crop[0]


def _offset(have: int, want: int) -> int:
    # Halves are rounded to even when cutting and away from the middle when padding, as torchvision does.
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


def spatial_pool(x: NDArray[Any], how: Literal["avg", "max", "gem", "flatten"]) -> Floats:
    """Feature maps ``(n, c, h, w)`` or token sequences ``(n, t, c)`` as float32 ``(n, c)``; ``(n, c)`` passes.

    ``gem`` is the generalised mean with p = 3 (Radenović, Tolias and Chum, PAMI 2019); ``flatten`` keeps every value.
    """
    x = x.astype(np.float32, copy=False)
    if x.ndim == 2 or how == "flatten":
        return x.reshape(len(x), -1)
    axes = (2, 3) if x.ndim == 4 else (1,)
    if how == "max":
        return np.asarray(x.max(axis=axes), np.float32)
    if how == "gem":
        return np.asarray(np.mean(np.maximum(x, 1e-6) ** 3, axis=axes) ** (1 / 3), np.float32)
    return np.asarray(x.mean(axis=axes), np.float32)
