"""One decoded DICOM image as values a transform can work with, bright always dense."""

import numpy as np

from medray.dicom.decoder import DecodedInstance
from medray.dicom.header import InstanceHeader
from medray.dicom.voi import apply_voi, padding_mask, to_modality_values
from medray.errors import DataError
from medray.volume import Image2D

_AIR_HU = -1000.0
_INT16 = np.iinfo(np.int16)


def decoded_image(decoded: DecodedInstance) -> Image2D:
    """Return the image of a single-frame instance.

    Colour stays (height, width, 3) uint8. Grey becomes modality values, int16 where they are whole;
    MONOCHROME1 is turned about its own range, and the windows in `meta` with it. `meta["voi"]` says
    how the file wants to be shown: `table` values are already applied and lie in 0 .. 65535.

    Raises:
        DataError: `unsupported_pixels`, `non_finite_pixels`.
    """
    header, frames = decoded.header, decoded.frames
    if len(frames) != 1:
        raise DataError("unsupported_pixels", "an image of several frames is no single image")
    meta = _facts(header)
    spacing = header.planes[0].spacing_yx_mm if header.planes else None
    if frames.ndim == 4:
        colour = _eight_bit(frames[0])
        return Image2D(array=colour, spacing_yx_mm=spacing, photometric="RGB", meta=meta)
    values = to_modality_values(frames, header.planes, decoded.tables)[0]
    if not np.isfinite(values).all():
        raise DataError("non_finite_pixels", "the image holds NaN or infinite values")
    padded = padding_mask(frames, header)
    if padded is not None and padded.any():
        values = _fill_padding(values, padded[0], header)
    if decoded.tables.voi:
        shown = apply_voi(values, header, decoded.tables)
        values = np.rint(shown * 65535)
        meta.update(voi="table", window_center=(), window_width=())
    elif header.photometric == "MONOCHROME1":
        values = _turned(values, meta)
    return Image2D(
        array=_compact(values), spacing_yx_mm=spacing, photometric=header.photometric, meta=meta
    )


def _facts(header: InstanceHeader) -> dict[str, object]:
    plane = header.planes[0]
    return {
        "modality": header.modality,
        "laterality": header.laterality,
        "view": header.view,
        "photometric": header.photometric,
        "bits_stored": header.bits_stored,
        "contrast": header.contrast,
        "rescale_slope": plane.slope,
        "rescale_intercept": plane.intercept,
        "window_center": tuple(header.window_center),
        "window_width": tuple(header.window_width),
        "voi": header.voi_function or "LINEAR",
    }


def _eight_bit(colour: np.ndarray) -> np.ndarray:
    if colour.dtype == np.uint8:
        return colour
    if colour.dtype == np.uint16:
        return (colour >> 8).astype(np.uint8)
    raise DataError("unsupported_pixels", "colour of this depth is not supported")


def _fill_padding(values: np.ndarray, padded: np.ndarray, header: InstanceHeader) -> np.ndarray:
    """Make padding air in CT; elsewhere the darkest value that is no padding."""
    values = values.copy()
    if padded.all():
        return values
    kept = values[~padded]
    darkest = kept.max() if header.photometric == "MONOCHROME1" else kept.min()
    values[padded] = _AIR_HU if header.modality == "CT" else darkest
    return values


def _turned(values: np.ndarray, meta: dict[str, object]) -> np.ndarray:
    """Turn values and window centers about the middle of the values' range."""
    about = float(values.min()) + float(values.max())
    centers = meta["window_center"]
    assert isinstance(centers, tuple)
    meta["window_center"] = tuple(about - center for center in centers)
    return np.asarray(np.float32(about) - values)


def _compact(values: np.ndarray) -> np.ndarray:
    """Return int16 where nothing is lost by it, else uint16 or float32."""
    low, high = float(values.min()), float(values.max())
    if (values == np.rint(values)).all():
        if _INT16.min <= low and high <= _INT16.max:
            return values.astype(np.int16)
        if low >= 0 and high <= 65535:
            return values.astype(np.uint16)
    return values.astype(np.float32)
