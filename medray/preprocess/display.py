"""Projection images and slices as grey in [0, 1].

Images are resized first and windowed then: averaging belongs to the modality's values, and a window
on a mammogram of 14 million pixels takes longer than everything else together.
"""

from collections.abc import Sequence

import numpy as np

from medray.dicom.voi import window
from medray.preprocess.intensity import percentile_window
from medray.preprocess.planar import Placement, letterbox
from medray.volume import Image2D

# Luma of ITU-R BT.601, as grey conversions of image files use it.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def grey(image: Image2D) -> np.ndarray:
    """Return (height, width) values; colour becomes its luma, float32."""
    if image.array.ndim == 3:
        return np.asarray(image.array[..., :3].astype(np.float32) @ _LUMA)
    return image.array


def letterbox_shown(image: Image2D, shape_yx: tuple[int, int]) -> tuple[np.ndarray, Placement]:
    """Return the image on a black canvas as its file wants it shown, float32 in [0, 1]."""
    canvas, placement = letterbox(grey(image), shape_yx, fill=np.nan)
    covered = ~np.isnan(canvas)
    shown = np.zeros(shape_yx, dtype=np.float32)
    shown[covered] = as_shown(canvas[covered], image)
    return shown, placement


def as_shown(values: np.ndarray, image: Image2D) -> np.ndarray:
    """Return grey values of an image as its file wants them shown, float32 in [0, 1].

    A window or table of the file counts; without one 8 bit values are taken whole and others
    between the percentiles 0.5 and 99.5.
    """
    if image.meta.get("voi") == "table":
        return np.asarray(np.clip(values / np.float32(65535), 0, 1), dtype=np.float32)
    if _has_window(image):
        return _windowed(values, image)
    if image.array.dtype == np.uint8 or image.meta.get("bits_stored") == 8:
        return np.asarray(np.clip(values / np.float32(255), 0, 1), dtype=np.float32)
    return percentile_stretch(values, values)


def sigmoid_applied(values: np.ndarray, image: Image2D) -> np.ndarray:
    """Return grey values of an image with its SIGMOID function applied, if it has one.

    A linear window only cuts and stretches, which a percentile window does better; a curve changes
    the relation of tissues and belongs to the image (SEEDS_SPEC 3.1).
    """
    if image.meta.get("voi") == "SIGMOID" and _has_window(image):
        return _windowed(values, image)
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


def _windowed(values: np.ndarray, image: Image2D) -> np.ndarray:
    return window(
        values,
        center=float(_numbers(image, "window_center")[0]),
        width=float(_numbers(image, "window_width")[0]),
        function=str(image.meta.get("voi", "LINEAR")),
    )


def _numbers(image: Image2D, name: str) -> Sequence[float]:
    value = image.meta.get(name)
    return value if isinstance(value, (tuple, list)) else ()
