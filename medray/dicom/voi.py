"""Stored values to modality values (HU, Bq/ml, ...) and on to display values in [0, 1]."""

from collections.abc import Sequence

import numpy as np

from medray.dicom.header import InstanceHeader, Plane
from medray.dicom.tables import LutTables
from medray.errors import DataError

# float32 holds every whole number below 2**24 exactly.
_FLOAT32_EXACT = 1 << 24


NO_TABLES = LutTables()


def to_modality_values(
    frames: np.ndarray, planes: Sequence[Plane], tables: LutTables = NO_TABLES
) -> np.ndarray:
    """Turn stored values into modality values, slope and intercept per frame.

    `value * slope + intercept` (PS3.3 C.11.1), or the Modality LUT where there is one. float32
    arithmetic is used where it is exact, float64 inside otherwise.

    Args:
        frames: (num_frames, rows, columns) stored values.
        planes: one for all frames, or one for each.
        tables: the instance's lookup tables.

    Returns:
        (num_frames, rows, columns) float32.

    Raises:
        DataError: `unsupported_pixels` for colour, `bad_tag_value` if planes and frames disagree.
    """
    if frames.ndim != 3:
        raise DataError("unsupported_pixels", "colour frames have no modality values")
    if tables.modality is not None:
        return tables.modality.look_up(frames).astype(np.float32)
    if len(planes) not in {1, len(frames)}:
        raise DataError("bad_tag_value", "there are neither one nor as many planes as frames")
    out = np.empty(frames.shape, np.float32)
    for index, frame in enumerate(frames):
        plane = planes[0] if len(planes) == 1 else planes[index]
        _rescale(frame, plane, out[index])
    return out


def _rescale(frame: np.ndarray, plane: Plane, out: np.ndarray) -> None:
    if (plane.slope, plane.intercept) == (1.0, 0.0):
        out[...] = frame
        return
    if _is_exact(frame.dtype, plane):
        np.multiply(frame, np.float32(plane.slope), out=out, dtype=np.float32, casting="unsafe")
        np.add(out, np.float32(plane.intercept), out=out)
        return
    values = np.multiply(frame, plane.slope, dtype=np.float64)
    out[...] = values + plane.intercept


def _is_exact(dtype: np.dtype[np.generic], plane: Plane) -> bool:
    """Tell whether float32 holds every product and sum of 16 bit values exactly."""
    whole = float(plane.slope).is_integer() and float(plane.intercept).is_integer()
    return (
        whole
        and dtype.kind in "iu"
        and dtype.itemsize <= 2
        and 65536 * abs(plane.slope) + abs(plane.intercept) < _FLOAT32_EXACT
    )


def padding_mask(frames: np.ndarray, header: InstanceHeader) -> np.ndarray | None:
    """Return where stored values are padding (PS3.3 C.7.5.1.1.2), None if the header has none.

    The value is one bit pattern written as US or SS at will, so it is read in the type of the
    pixels. With PixelPaddingRangeLimit everything between the two, both included, is padding.
    """
    if header.padding_value is None or frames.dtype.kind not in "iu":
        return None
    low = _as_stored(header.padding_value, header)
    high = low if header.padding_limit is None else _as_stored(header.padding_limit, header)
    low, high = min(low, high), max(low, high)
    if low == high:
        return np.asarray(frames == low)
    return np.asarray((frames >= low) & (frames <= high))


def _as_stored(value: int, header: InstanceHeader) -> int:
    """Read a padding value in the signedness of the pixels."""
    bits = header.bits_allocated
    if header.signed and value >= 1 << (bits - 1):
        return value - (1 << bits)
    if not header.signed and value < 0:
        return value + (1 << bits)
    return value


def apply_voi(
    values: np.ndarray, header: InstanceHeader, tables: LutTables = NO_TABLES, *, index: int = 0
) -> np.ndarray:
    """Turn modality values into display values; MONOCHROME1 is inverted, so bright is dense.

    A VOI LUT goes before a window (as pydicom, dcmtk and the IHE profile do). Without either the
    range of the values is used.

    Args:
        values: any shape, modality values.
        header: gives window, function and photometric interpretation.
        tables: the instance's lookup tables.
        index: which of several windows or tables.

    Returns:
        float32 in [0, 1], same shape.
    """
    if tables.voi:
        table = tables.voi[min(index, len(tables.voi) - 1)]
        shown = table.look_up(np.rint(values)).astype(np.float32)
        shown = np.clip(shown / float((1 << table.bits) - 1), 0, 1)
    elif header.window_center and header.window_width:
        last = min(len(header.window_center), len(header.window_width)) - 1
        at = min(index, last)
        shown = window(
            values,
            center=header.window_center[at],
            width=header.window_width[at],
            function=header.voi_function,
        )
    else:
        shown = _full_range(values)
    if header.photometric == "MONOCHROME1":
        shown = 1.0 - shown
    return np.asarray(shown, np.float32)


def window(
    values: np.ndarray, *, center: float, width: float, function: str = "LINEAR"
) -> np.ndarray:
    """Map modality values to [0, 1] with a window (PS3.3 C.11.2.1.2.1, C.11.2.1.3).

    Args:
        values: any shape.
        center: window center, in modality units.
        width: window width, in modality units.
        function: `LINEAR` (the default, also for empty), `LINEAR_EXACT` or `SIGMOID`.

    Raises:
        DataError: `bad_tag_value` for a width the function does not allow, or another function.
    """
    name = function or "LINEAR"
    if width <= 0 or (name == "LINEAR" and width < 1):
        raise DataError("bad_tag_value", f"WindowWidth is too small for {name}")
    x = values.astype(np.float64)
    if name == "LINEAR":
        if width == 1:  # a threshold: the formula divides by zero
            return (x > center - 0.5).astype(np.float32)
        shown = (x - (center - 0.5)) / (width - 1) + 0.5
    elif name == "LINEAR_EXACT":
        shown = (x - center) / width + 0.5
    elif name == "SIGMOID":
        exponent = np.clip(-4 * (x - center) / width, -700, 700)  # exp stays finite
        shown = 1 / (1 + np.exp(exponent))
    else:
        raise DataError("bad_tag_value", "VOILUTFunction is none of the standard's")
    return np.clip(shown, 0, 1).astype(np.float32)


def _full_range(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)
