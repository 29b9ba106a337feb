"""Values onto ranges, and what is said of their distribution. Arguments are never changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Real


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelStats:
    """Facts of an image's values; plain floats, so that they travel as JSON."""

    value_min: float
    value_max: float
    mean: float
    std: float

    @property
    def is_constant(self) -> bool:
        """Tell whether all values are equal."""
        return self.value_min == self.value_max


def window_hu(
    volume_hu: Real[np.ndarray, "*shape"], *, center_hu: float, width_hu: float
) -> Float32[np.ndarray, "*shape"]:
    """Map Hounsfield units to [0, 1]; values outside the window saturate.

    LINEAR_EXACT VOI function, DICOM PS3.3 C.11.2.1.3.2: (x - center) / width + 0.5.
    """
    if not width_hu > 0:
        raise ValueError(f"width_hu must be > 0, got {width_hu}")
    low = center_hu - width_hu / 2
    return scale_range(volume_hu, low=low, high=low + width_hu)


def scale_range(
    values: Real[np.ndarray, "*shape"],
    *,
    low: float,
    high: float,
    out_low: float = 0.0,
    out_high: float = 1.0,
) -> Float32[np.ndarray, "*shape"]:
    """Map [low, high] to [out_low, out_high] linearly; values outside saturate."""
    if not high > low:
        raise ValueError(f"high must be > low, got low={low}, high={high}")
    first, last = np.float32(low), np.float32(high)
    out = values.astype(np.float32)
    np.clip(out, first, last, out=out)
    out -= first
    out /= last - first  # by division, so that `high` gives exactly 1
    if (out_low, out_high) != (0, 1):
        out *= np.float32(out_high - out_low)
        out += np.float32(out_low)
    return out


def minmax(
    values: Real[np.ndarray, "*shape"], *, out_low: float = 0.0, out_high: float = 1.0
) -> Float32[np.ndarray, "*shape"]:
    """Map the values' own minimum and maximum to a range; a constant image becomes `out_low`."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.full(values.shape, out_low, dtype=np.float32)
    return scale_range(values, low=low, high=high, out_low=out_low, out_high=out_high)


def percentile_window(
    values: Real[np.ndarray, "*shape"], *, low_percent: float = 0.5, high_percent: float = 99.5
) -> tuple[float, float]:
    """Return the values at two percentiles, as a window for `scale_range`.

    Where both are equal (mostly background) the window is the full range, and one unit wide in a
    constant image, so that it can always be used.
    """
    low, high = (float(value) for value in np.percentile(values, [low_percent, high_percent]))
    if low == high:
        low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def normalise(
    values: Real[np.ndarray, "*shape"],
    *,
    mean: Sequence[float] | float,
    std: Sequence[float] | float,
) -> Float32[np.ndarray, "*shape"]:
    """Return (values - mean) / std; sequences hold one number per leading channel."""
    scale = np.asarray(std, dtype=np.float32)
    if not (scale > 0).all():
        raise ValueError(f"std must be > 0, got {std}")
    shift = np.asarray(mean, dtype=np.float32)
    if shift.ndim or scale.ndim:
        tail = (1,) * (values.ndim - 1)
        shift, scale = shift.reshape(-1, *tail), scale.reshape(-1, *tail)
    out: np.ndarray = (values.astype(np.float32) - shift) / scale
    return out


def pixel_stats(values: Real[np.ndarray, "*shape"]) -> PixelStats:
    """Return minimum, maximum, mean and standard deviation, summed in float64."""
    return PixelStats(
        value_min=float(values.min()),
        value_max=float(values.max()),
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
    )
