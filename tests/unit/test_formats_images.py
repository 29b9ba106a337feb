"""PNG and JPEG against what Pillow is told, and the ways in which they can be wrong."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medray.errors import DataError
from medray.formats import read_image, write_png

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7


def saved(image: Image.Image, form: str = "PNG", **options) -> bytes:
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def refused(data: bytes, reason: str, **options) -> None:
    with pytest.raises(DataError, match=f"^{reason}: "):
        read_image(data, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_comes_back(dtype):
    array = GREY.astype(dtype) * (200 if dtype == np.uint16 else 1)
    image = read_image(write_png(array), "x.png")
    assert image.array.dtype == dtype
    assert image.array.dtype.isnative
    assert np.array_equal(image.array, array)
    assert image.photometric == "MONOCHROME2"
    assert image.spacing_yx_mm is None


def test_colour_comes_back():
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    image = read_image(write_png(array))
    assert np.array_equal(image.array, array)
    assert image.photometric == "RGB"


def test_png_bytes_repeat():
    assert write_png(GREY) == write_png(GREY.copy(order="F"))


@pytest.mark.parametrize(
    "array", [GREY.astype(np.float32), GREY[None], GREY[..., None], GREY.astype(np.int16)]
)
def test_png_takes_nothing_else(array):
    with pytest.raises(ValueError, match="PNG takes uint8"):
        write_png(array)


def test_alpha_is_dropped():
    grey = Image.fromarray(GREY).convert("LA")
    assert np.array_equal(read_image(saved(grey)).array, GREY)
    colour = Image.fromarray(np.dstack([GREY] * 3)).convert("RGBA")
    colour.putalpha(3)
    assert np.array_equal(read_image(saved(colour)).array, np.dstack([GREY] * 3))


def test_palette_becomes_colour():
    image = Image.fromarray(GREY % 3)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    array = read_image(saved(image)).array
    assert array.shape == (5, 7, 3)
    assert np.array_equal(array, np.eye(3, dtype=np.uint8)[GREY % 3] * 255)


def test_one_bit_becomes_black_and_white():
    array = read_image(saved(Image.fromarray(GREY > 100))).array
    assert np.array_equal(array, (GREY > 100).astype(np.uint8) * 255)


def test_jpeg_is_what_pillow_decodes():
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    for image in (
        Image.fromarray(smooth),
        Image.fromarray(np.dstack([smooth, smooth // 2, 255 - smooth])),
    ):
        data = saved(image, "JPEG", quality=95)
        assert np.array_equal(read_image(data).array, np.asarray(Image.open(io.BytesIO(data))))


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = saved(Image.fromarray(GREY), "JPEG", exif=exif)
    assert read_image(data).array.shape == GREY.shape


def test_real_mammograms_are_read(real_data):
    paths = sorted((real_data / "mammo/monai_breast_density").rglob("*.jpg"))
    assert paths
    for path in paths[::3]:
        assert min(read_image(path.read_bytes(), path.name).array.shape[:2]) > 100


def test_what_is_no_image_is_refused():
    refused(b"", "empty_file")
    refused(b"hello", "unreadable")
    refused(saved(Image.fromarray(GREY), "TIFF"), "unreadable")
    refused(saved(Image.fromarray(GREY), "GIF"), "unreadable")
    refused(b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "unreadable")
    refused(b"\xff\xd8\xff" + b"\0" * 100, "unreadable")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_an_image_that_ends_early_is_truncated(form):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200)).astype(np.uint8)
    data = saved(Image.fromarray(noise), form)
    refused(data[: len(data) // 2], "truncated")


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_bombs_are_refused_from_the_header():
    refused(png_of_size(30_000, 30_000), "bomb_suspected")
    refused(png_of_size(2**31 - 1, 2**31 - 1), "bomb_suspected")
    refused(write_png(GREY), "bomb_suspected", max_pixels=34)


def test_cmyk_is_unsupported():
    refused(saved(Image.new("CMYK", (8, 8)), "JPEG"), "unsupported_pixels")


def test_damaged_bytes_give_reasons_and_nothing_else():
    rng = np.random.default_rng(1)
    for data in (write_png(GREY), saved(Image.fromarray(GREY), "JPEG")):
        for _ in range(200):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                damaged[place] = rng.integers(256)
            try:
                read_image(bytes(damaged), max_pixels=1 << 20)
            except DataError:
                continue
