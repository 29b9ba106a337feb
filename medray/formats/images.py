"""PNG and JPEG images, read under a pixel limit and written so that equal arrays give equal bytes.

EXIF orientation is ignored on purpose: boxes are given in the stored pixels, and a radiograph's
right way up is told by its label, not by a camera's sensor.
"""

import io
import warnings
from typing import Any

import numpy as np
from jaxtyping import UInt

from medray.errors import DataError
from medray.volume import Image2D

# 256 megapixels: the largest mammograms have 20.
MAX_PIXELS = 1 << 28
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY_MODES = {"1": "L", "L": "L", "LA": "L", "I;16": "I;16", "I;16B": "I;16"}
_COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX", "P", "PA"})
_MARKS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}


def read_image(
    data: bytes,
    name: str = "",  # noqa: ARG001 - called like read_volume; the bytes alone tell the format
    *,
    max_pixels: int = MAX_PIXELS,
) -> Image2D:
    """Return a PNG or JPEG as 8 or 16 bit grey, or as RGB.

    Alpha is dropped, a palette becomes RGB, one-bit images become 0 and 255; 16 bit colour is read
    with 8 bits. Of an animation the first image counts.

    Args:
        data: the file's bytes.
        name: the file's name; not looked at.
        max_pixels: what the header may declare.

    Raises:
        DataError: `empty_file`, `unreadable`, `bomb_suspected`, `truncated`, `unsupported_pixels`.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise DataError("empty_file", "the file has no bytes")
    form = next((form for mark, form in _MARKS.items() if data.startswith(mark)), None)
    if form is None:
        raise DataError("unreadable", "the bytes are neither PNG nor JPEG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=(form,)) as image:
                if image.width * image.height > max_pixels:
                    raise DataError("bomb_suspected", "the image declares too many pixels")
                return _to_image(image)
    except Image.DecompressionBombError as error:
        raise DataError("bomb_suspected", "the image declares too many pixels") from error
    except UnidentifiedImageError as error:
        raise DataError("unreadable", "the header is damaged") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = "truncated" if "truncated" in str(error) else "unreadable"
        raise DataError(reason, "the image data are damaged or incomplete") from error


def write_png(array: UInt[np.ndarray, "height width *channels"]) -> bytes:
    """Return an array as PNG: grey uint8 or uint16, or (height, width, 3) uint8."""
    from PIL import Image

    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    colour = array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
    if not (grey or colour):
        raise ValueError(f"PNG takes uint8, uint16 or RGB uint8, got {array.dtype} {array.shape}")
    target = io.BytesIO()
    # Level and filter are fixed and no time is stored, so equal arrays give equal bytes.
    image = Image.fromarray(np.ascontiguousarray(array))
    image.save(target, format="PNG", compress_level=6, optimize=False)
    return target.getvalue()


def _to_image(image: Any) -> Image2D:
    """Decode an opened Pillow image to grey or RGB."""
    if image.mode in _GREY_MODES:
        array = np.asarray(image.convert(_GREY_MODES[image.mode]))
        return Image2D(array=array.astype(array.dtype.newbyteorder("=")))
    if image.mode in _COLOUR_MODES:
        return Image2D(array=np.array(image.convert("RGB")), photometric="RGB")
    raise DataError("unsupported_pixels", "the colours are neither grey nor RGB")
