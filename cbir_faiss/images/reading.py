"""Opening images: what Pillow reads becomes an upright 8-bit RGB picture, what it cannot read one clear line."""

from __future__ import annotations

import base64
import importlib
import io
import re
import stat
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cbir_faiss.errors import BadImage, NoAccess
from cbir_faiss.images import DEFAULT_MAX_MEGAPIXELS

# Pillow recognises these by their first bytes, and then has no decoder for them.
_STUBS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})
_HEIC_SUFFIXES = frozenset({".heic", ".heif"})
_HEIC = re.compile(rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
_QUIET: Any = ("ignore", None, Warning, re.compile("PIL"), 0)


@cache
def image_suffixes() -> frozenset[str]:
    """The file suffixes, in lower case and with the dot, of the formats that Pillow can decode.

    HEIC is one of them also where its decoder is missing: a phone's pictures are named as left out, not passed over.
    """
    Image.init()
    return _HEIC_SUFFIXES | {
        suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN and form not in _STUBS
    }


@cache
def _decodes_heic() -> bool:
    """Has Pillow know HEIC, where the extra is installed."""
    try:
        pillow_heif: Any = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def open_image(
    source: str | Path | bytes, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS, min_side: int | None = None
) -> Image.Image:
    """The first frame of an image file, or of the bytes of one, as RGB and turned upright by its EXIF orientation.

    Sixteen-bit grey is scaled to eight bits, transparency is laid on white, CMYK and palettes are converted.
    ``min_side`` lets a JPEG be decoded at a half, a quarter or an eighth of its size, as long as its shorter side keeps
    that many pixels. Thread-safe; Pillow's warnings are kept quiet.

    Raises:
        BadImage: missing, not a regular file, empty, not an image, damaged or cut short, or of more than
            ``max_megapixels`` (read from the header, before anything is decoded). The message does not name the file.
        NoAccess: a HEIC picture, and no pillow-heif to decode it.
    """
    _quiet()
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), len(source), max_megapixels, min_side)
    path = Path(source)
    try:
        status = path.stat()
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        with path.open("rb") as file:
            return _decode(file, status.st_size, max_megapixels, min_side)
    except (OSError, ValueError) as error:
        raise BadImage(_file_reason(path, error)) from error


def data_uri(image: Image.Image, side: int) -> str:
    """A small JPEG of an RGB image, at most ``side`` pixels wide and high, to be put into a page."""
    image = image.copy()
    image.thumbnail((side, side))
    if 0 < max(image.size) < side // 2:  # tiny pictures keep their pixels visible
        scale = side // max(image.size)
        image = image.resize((image.width * scale, image.height * scale), resample=0)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg_of(image)).decode()}"


def jpeg_of(image: Image.Image, quality: int = 82) -> bytes:
    """An RGB image as the bytes of a JPEG file."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=quality)
    return jpeg.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as upright 8-bit RGB; see ``open_image``."""
    image = _upright(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        # Pillow has no direct way from grey with premultiplied alpha.
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _decode(file: Any, size: int, max_megapixels: float, min_side: int | None) -> Image.Image:
    if size == 0:
        raise BadImage("the file is empty")
    head = file.read(12)
    file.seek(0)
    if _HEIC.match(head) and not _decodes_heic():
        raise NoAccess("a HEIC picture needs pillow-heif: pip install 'cbir-faiss[heic]'")
    limit = max_megapixels * 1e6
    # Pillow itself refuses more than twice this; raising it is the only way to let a larger limit of ours through.
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = int(limit)
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width * height > limit:
                raise BadImage(f"{width} x {height} pixels are more than the limit of {max_megapixels:g} megapixels")
            if min_side is not None:
                image.draft(image.mode, (min_side, min_side))
            image.load()
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise BadImage("not an image, or of a format that Pillow does not know") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more pixels than the limit of {max_megapixels:g} megapixels") from error
    except BadImage:
        raise
    except Exception as error:  # Decoders raise nearly everything on damaged data: OSError, SyntaxError, struct.error …
        raise BadImage(f"damaged or cut short: {_first_line(error)}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Unreadable metadata does not make the picture unreadable.
        return image


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Grey of 16 or 32 bits or floats, ``(h, w)``, as uint8.

    Modes ``I;16…`` span 0…65535. ``I`` and ``F`` do not tell their range, so the smallest usual one that holds all
    values is taken: 0…1 (floats only), 0…255, 0…65535, else from their minimum to their maximum.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0:
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        fitting = [top for top in usual if high <= top]
        low, high = (0.0, fitting[0]) if fitting else (low, high)
    return np.rint((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


def _quiet() -> None:
    # A filter, because warnings.catch_warnings is not thread-safe; looked up each time, because whoever
    # leaves a catch_warnings block of their own takes it away again.
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module="PIL")


def _file_reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "a symbolic link to nothing" if path.is_symlink() else "no such file"
    return str(getattr(error, "strerror", None) or _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
