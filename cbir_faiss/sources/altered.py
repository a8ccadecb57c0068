"""Another source's images turned, cut or brightened: queries that ask how robust a search is."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from cbir_faiss import base
from cbir_faiss.base.registry import make_section, section
from cbir_faiss.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image


class Altered(base.Source):
    """The items of the source ``of``, in its order, with its paths, labels and payload; each image is altered.

    Several alterations are made in the order rotate, crop, brightness. An item that cannot be read is as bad here.
    """

    name: ClassVar[str] = "altered"

    class Options(base.Options):
        """of: any source of images, as a section of its own.

        rotate: degrees counter-clockwise; the picture grows to hold all of it, its new corners are black.
        crop: the share of width and of height that is kept, around the centre.
        brightness: what every value is multiplied by, up to white.
        """

        of: Annotated[dict[str, Any], section("sources")]
        rotate: float | None = Field(None, gt=-360, lt=360)
        crop: float | None = Field(None, gt=0, le=1)
        brightness: float | None = Field(None, gt=0, le=100)

        @model_validator(mode="after")
        def _alters(self) -> Altered.Options:
            if self.rotate is None and self.crop is None and self.brightness is None:
                raise ValueError("nothing is altered: give rotate, crop or brightness")
            return self

    options: Options

    def _setup(self) -> None:
        if self._of.yields != "image":
            raise ConfigError(f"takes a source of images, and '{self._of.name}' yields vectors", path="of.name")

    @cached_property
    def _of(self) -> base.Source:
        of: base.Source = make_section("sources", self.options.of)
        return of

    @cached_property
    def _alteration(self) -> bytes:
        return json.dumps(self.options.model_dump(mode="json", exclude={"of"}), sort_keys=True).encode()

    def _items(self) -> Sequence[base.Item]:
        return self._of.items()

    def _read(self, index: int) -> Image.Image:
        return self._altered(self._of.read(index))

    def _read_reduced(self, index: int, min_side: int) -> Image.Image:
        return self._altered(self._of.read(index, self._needed(min_side)))

    def _content_key(self, index: int) -> bytes:
        return self._key(self._of.content_key(index))

    def _content(self, index: int) -> base.Content:
        of = self._of.content(index)
        return base.Content(
            self._key(of.key), lambda side: self._altered(of.read(None if side is None else self._needed(side)))
        )

    def _needed(self, min_side: int) -> int:
        # Of the pixels that are read, only this share is left; turning leaves no shorter side.
        return math.ceil(min_side / (self.options.crop or 1))

    def _key(self, of: bytes) -> bytes:
        return hashlib.sha256(self._alteration + of).digest()

    def _stamp(self, index: int) -> base.Stamp | None:
        return self._of.stamp(index)

    def _survey(self) -> str:
        return hashlib.sha256(self._alteration + self._of.source_digest().encode()).hexdigest()

    def _altered(self, image: Image.Image) -> Image.Image:
        from PIL import Image, ImageEnhance

        o = self.options
        if o.rotate is not None:
            image = image.rotate(o.rotate, Image.Resampling.BICUBIC, expand=True)
        if o.crop is not None:
            image = _centre(image, o.crop)
        if o.brightness is not None:
            image = ImageEnhance.Brightness(image).enhance(o.brightness)
        return image


def _centre(image: Image.Image, share: float) -> Image.Image:
    """The middle of an image, at least one pixel wide and high."""
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
