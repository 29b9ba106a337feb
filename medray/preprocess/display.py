"""Projection images and slices as grey in [0, 1]."""

from collections.abc import Sequence

import numpy as np

from medray.dicom.voi import window
from medray.preprocess.intensity import percentile_window
from medray.volume import Image2D

# Luma of ITU-R BT.601, as grey conversions of image files use it.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def grey(image: Image2D) -> np.ndarray:
    """Return (height, width) float32 values; colour becomes its luma."""
    if image.array.ndim == 3:
        return np.asarray(image.array[..., :3].astype(np.float32) @ _LUMA)
    return image.array.astype(np.float32)


def as_shown(image: Image2D) -> np.ndarray:
    """Return the image as its file wants it shown, float32 in [0, 1].

    A window or table of the file counts; without one 8 bit values are taken whole and others
    between the percentiles 0.5 and 99.5.
    """
    values = grey(image)
    if image.meta.get("voi") == "table":
        return values / np.float32(65535)
    if _has_window(image):
        return _windowed(image, values)
    if image.array.dtype == np.uint8 or image.meta.get("bits_stored") == 8:
        return np.clip(values / np.float32(255), 0, 1)
    return percentile_stretch(values, values)


def sigmoid_applied(image: Image2D) -> np.ndarray:
    """Return grey values with a VOI table or SIGMOID function applied and nothing else.

    A linear window only cuts and stretches, which a percentile window does better; a curve changes
    the relation of tissues and belongs to the image (SEEDS_SPEC 3.1).
    """
    values = grey(image)
    if image.meta.get("voi") == "SIGMOID" and _has_window(image):
        return _windowed(image, values)
    return values


def percentile_stretch(values: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Map values to [0, 1] between the percentiles 0.5 and 99.5 of a sample of them."""
    low, high = percentile_window(sample)
    return stretch(values, low=low, high=high)


def stretch(values: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Map [low, high] to [0, 1]; values outside saturate, an empty range gives 0."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.float32)
    shown = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.asarray(np.clip(shown, 0, 1))


def quantise(shown: np.ndarray, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Turn [0, 1] into the whole range of uint8 or uint16."""
    steps = np.rint(np.clip(shown, 0, 1) * np.float32(np.iinfo(dtype).max))
    return np.asarray(steps, dtype=dtype)


def _has_window(image: Image2D) -> bool:
    return bool(_numbers(image, "window_center")) and bool(_numbers(image, "window_width"))


def _windowed(image: Image2D, values: np.ndarray) -> np.ndarray:
    return window(
        values,
        center=float(_numbers(image, "window_center")[0]),
        width=float(_numbers(image, "window_width")[0]),
        function=str(image.meta.get("voi", "LINEAR")),
    )


def _numbers(image: Image2D, name: str) -> Sequence[float]:
    value = image.meta.get(name)
    return value if isinstance(value, (tuple, list)) else ()
