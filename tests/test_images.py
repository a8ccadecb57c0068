"""Opening images: everything that Pillow reads, upright and in RGB; everything else one line."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cbir_faiss.errors import BadImage, NoAccess
from cbir_faiss.images.reading import image_suffixes, open_image, to_rgb
from cbir_faiss.sources.folder import images_below

RED, BLUE = (230, 20, 30), (20, 30, 230)


def picture(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red, with a blue top left quarter."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (0, 0, size[0] // 2, size[1] // 2))
    return image


def close(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int], slack: int = 12) -> bool:
    return max(abs(a - b) for a, b in zip(image.getpixel(at), colour, strict=True)) <= slack


def huge_png(width: int, height: int) -> bytes:
    """A valid header and next to nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".gif", ".webp", ".tiff", ".ppm", ".tga", ".jp2", ".ico"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    picture((64, 32)).save(path)
    image = open_image(path)
    assert image.mode == "RGB"
    width, height = image.size
    assert close(image, (width - 5, height - 5), RED, 40) or suffix == ".ico"
    assert suffix in image_suffixes()
    assert open_image(path.read_bytes()).tobytes() == image.tobytes()


def test_heic_is_read_where_its_decoder_is_installed(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "phone.heic"
    pillow_heif.from_pillow(picture((64, 64))).save(path, quality=95)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert close(image, (59, 59), RED, 40)
    assert open_image(path.read_bytes()).tobytes() == image.tobytes()


def test_without_a_decoder_heic_is_left_out_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbir_faiss.images.reading._decodes_heic", lambda: False)
    path = tmp_path / "phone.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert [found.name for found in images_below(tmp_path)] == ["phone.HEIC"]
    for given in (path, path.read_bytes()):  # NoAccess: the next build tries again
        with pytest.raises(NoAccess, match=r"pip install 'cbir-faiss\[heic\]'"):
            open_image(given)


def test_suffixes_are_of_formats_that_can_be_decoded() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif"} <= image_suffixes()
    assert not {".txt", ".csv", ".db", ".pdf", ".mpg", ".h5", ".hdf5", ""} & image_suffixes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp"])
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The picture is stored turned, with the note how; opened, its blue quarter is at the top left again."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture() if orientation == 1 else picture().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    stored.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if suffix == ".jpg" else {}))
    image = open_image(path)
    assert image.size == (40, 20)
    assert close(image, (3, 3), BLUE, 40)
    assert close(image, (36, 16), RED, 40)


def test_broken_exif_does_not_spoil_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "exif.jpg"
    picture().save(path, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x00\x01")
    assert open_image(path).size == (40, 20)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    path = tmp_path / f"ramp{suffix}"
    Image.fromarray(ramp).save(path)
    got = np.asarray(open_image(path))
    assert (got[..., 0].ravel() == np.arange(256)).all()
    assert (got[..., 0] == got[..., 2]).all()


def test_big_endian_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "big.tiff"
    Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 0, 65535)).save(path)
    assert np.asarray(open_image(path))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 128, 255], np.int32, [0, 128, 255]),
        ([0, 257 * 128, 65535], np.int32, [0, 128, 255]),
        ([0, 500_000, 1_000_000], np.int32, [0, 128, 255]),
        ([-10, 0, 10], np.int32, [0, 128, 255]),
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 128.0, 255.0], np.float32, [0, 128, 255]),
        ([0.0, float("nan"), 1.0], np.float32, [0, 0, 255]),
        ([7, 7, 7], np.int32, [7, 7, 7]),
    ],
)
def test_wide_greys(tmp_path: Path, values: list[float], dtype: Any, expected: list[int]) -> None:
    path = tmp_path / "wide.tiff"
    Image.fromarray(np.array([values], dtype)).save(path)
    assert np.asarray(open_image(path))[0, :, 0].tolist() == expected


def test_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "cmyk.jpg"
    picture().convert("CMYK").save(path, quality=95)
    assert close(open_image(path), (36, 16), RED, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 2, 4))
    image = to_rgb(clear.convert("LA" if mode == "La" else "RGBA").convert(mode))
    assert image.mode == "RGB"
    assert (image.getpixel((0, 0)), image.getpixel((3, 3))) == ((0, 0, 0), (255, 255, 255))


def test_transparent_colour_of_palette_grey_and_rgb(tmp_path: Path) -> None:
    for name, image, transparent in (
        ("p.png", picture().quantize(8), None),
        ("l.png", Image.new("L", (4, 4), 9), 9),
        ("rgb.png", Image.new("RGB", (4, 4), (9, 9, 9)), (9, 9, 9)),
    ):
        if transparent is None:
            transparent = image.getpixel((36, 16))
        image.save(tmp_path / name, transparency=transparent)
        opened = open_image(tmp_path / name)
        assert opened.getpixel((opened.width - 1, opened.height - 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV", "LAB"])
def test_other_modes(mode: str) -> None:
    assert to_rgb(picture().convert("L" if mode == "1" else "RGB").convert(mode)).mode == "RGB"


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tiff"])
def test_of_an_animation_the_first_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE, BLUE)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert close(open_image(path), (8, 8), RED)


def test_one_pixel(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    picture((1, 1)).save(path)
    assert open_image(path).size == (1, 1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".bmp", ".tiff"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7])
def test_cut_short(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(BadImage) as caught:
        open_image(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) not in message
    assert ("empty" in message) == (kept == 0)


def test_text_named_jpg(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("not a picture at all\n")
    with pytest.raises(BadImage, match="not an image"):
        open_image(path)


def test_bytes_of_nothing() -> None:
    with pytest.raises(BadImage, match="empty"):
        open_image(b"")


@pytest.mark.parametrize("size", [(14_000, 14_285), (10_001, 10_000), (100_000, 100_000)])
def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(huge_png(*size))
    with pytest.raises(BadImage, match="limit of 100 megapixels"):
        open_image(path)


def test_the_limit_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    path = tmp_path / "small.png"
    picture((40, 30)).save(path)
    assert open_image(path, max_megapixels=0.0012).size == (40, 30)
    with pytest.raises(BadImage, match=r"40 x 30 pixels are more than the limit of 0\.001 megapixels"):
        open_image(path, max_megapixels=0.001)
    # 225 megapixels are beyond what Pillow would refuse; let through by ours, the file is only cut short
    path.write_bytes(huge_png(15_000, 15_000))
    with pytest.raises(BadImage, match="damaged or cut short"):
        open_image(path, max_megapixels=1000)


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(BadImage, match=r"^no such file$"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(BadImage, match=r"^a symbolic link to nothing$"):
        open_image(tmp_path / "link.png")
    for bad in ("loop.png", "nul\0.png"):
        with pytest.raises(BadImage):
            open_image(tmp_path / bad)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_and_folders_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for place in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(BadImage, match="not a regular file"):
            open_image(place)


def test_a_fault_in_any_byte_is_a_bad_image_or_a_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".gif", ".webp", ".tiff", ".bmp", ".jp2"):
        path = tmp_path / f"x{suffix}"
        picture().save(path)
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            broken = data.copy()
            broken[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
            with contextlib.suppress(BadImage):
                assert open_image(broken.tobytes()).mode == "RGB"


def test_no_warning_of_pillow_escapes(tmp_path: Path) -> None:
    """Ninety-five megapixels make Pillow warn; in threads, and with warnings turned into errors."""
    path = tmp_path / "large.png"
    Image.new("1", (9_800, 9_700)).save(path)
    code = (
        "import sys\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "from cbir_faiss.images.reading import open_image\n"
        "with ThreadPoolExecutor(2) as pool: print([i.size for i in pool.map(open_image, sys.argv[1:])])"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(path), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (str([(9800, 9700)] * 2), "")


def test_a_callers_own_warning_filters_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_image(path)
        warnings.warn("mine", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["mine"]


def test_threads(tmp_path: Path) -> None:
    paths = []
    for i in range(8):
        paths.append(tmp_path / f"{i}.png")
        picture((20 + i, 30)).save(paths[-1])
    with ThreadPoolExecutor(4) as pool:
        assert [image.width for image in pool.map(open_image, paths * 5)] == [20 + i for i in range(8)] * 5
