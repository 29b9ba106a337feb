"""From decoded instances to a volume: order, modality values and tilt, each exactly once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from medray.dicom.geometry import StackGeometry, stack_geometry
from medray.dicom.header import InstanceHeader, Plane
from medray.errors import DataError
from medray.volume import Volume

AIR_HU = -1000
_INT16 = np.iinfo(np.int16)


class Decoded(Protocol):
    """What a decoder hands over for one instance."""

    @property
    def header(self) -> InstanceHeader:
        """Header of the bytes that were decoded."""

    @property
    def frames(self) -> np.ndarray:
        """(frame, row, column) stored values."""

    @property
    def sha256(self) -> str:
        """Hash of the file's bytes."""


@dataclass(slots=True)
class VolumeBuilder:
    """Fills a volume slice by slice, in whatever order the instances arrive.

    The grid is planned from headers; every decoded instance must agree with its plan, so a file
    that changed since it was indexed is noticed.
    """

    headers: Sequence[InstanceHeader]
    geometry: StackGeometry = field(init=False)
    _places: dict[tuple[str, int], int] = field(init=False)
    _planes: list[Plane] = field(init=False)
    _array: np.ndarray = field(init=False)
    _hashes: dict[str, str] = field(init=False, default_factory=dict)
    _filled: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        unique = {header.sop_uid or str(n): header for n, header in enumerate(self.headers)}
        slices = [
            (uid, frame, plane)
            for uid, header in unique.items()
            for frame, plane in enumerate(_frame_planes(header))
        ]
        self.geometry = stack_geometry([plane for _, _, plane in slices])
        ordered = [slices[index] for index in self.geometry.order]
        self._places = {(uid, frame): k for k, (uid, frame, _) in enumerate(ordered)}
        self._planes = [plane for _, _, plane in ordered]
        first = self.headers[0]
        if first.samples_per_pixel != 1 or first.pixel_layout != "mono":
            raise DataError("unsupported_pixels", "colour slices do not make a volume of values")
        shape = (len(ordered), first.rows, first.columns)
        self._array = np.empty(shape, dtype=_output_dtype(self.headers, self._planes))
        self._filled = np.zeros(len(ordered), dtype=bool)

    def add(self, decoded: Decoded) -> None:
        """Place the frames of one instance.

        Raises:
            DataError: `duplicate_conflict`, `checksum_mismatch`, `non_finite_pixels`.
        """
        uid = decoded.header.sop_uid
        known = self._hashes.get(uid) if uid else None
        if known is not None:
            if known != decoded.sha256:
                raise DataError("duplicate_conflict", "two files share a SOP UID and differ")
            return
        if uid:
            self._hashes[uid] = decoded.sha256
        for frame, pixels in enumerate(decoded.frames):
            place = self._place(uid, frame, decoded)
            self._put(place, pixels, decoded.header)

    def _place(self, uid: str, frame: int, decoded: Decoded) -> int:
        place = self._places.get((uid, frame))
        if place is None or _frame_planes(decoded.header)[frame] != self._planes[place]:
            raise DataError("checksum_mismatch", "a file differs from what was indexed")
        return place

    def _put(self, place: int, pixels: np.ndarray, header: InstanceHeader) -> None:
        plane = self._planes[place]
        if pixels.shape != self._array.shape[1:]:
            raise DataError("mixed_size", "a slice has another matrix than its stack")
        padded = padding_mask(pixels, header)
        target = self._array[place]
        if target.dtype == np.int16 and not _fits(pixels, plane, header):
            self._array = self._array.astype(np.float32)
            target = self._array[place]
        if target.dtype == np.int16:
            wide = np.int16 if pixels.dtype.itemsize == 1 else pixels.dtype
            # Wrap-around arithmetic is exact here: the result was shown to fit 16 bit.
            stored = pixels.astype(wide, copy=False).view(_as_int16(np.dtype(wide)))
            if plane.slope == 1:
                np.add(stored, np.int16(plane.intercept), out=target)
            else:
                np.multiply(stored, np.int16(plane.slope), out=target)
                target += np.int16(plane.intercept)
        else:
            target[...] = pixels * np.float64(plane.slope) + plane.intercept
            if not np.isfinite(target).all():
                raise DataError("non_finite_pixels", "a slice holds NaN or infinite values")
        if padded is not None:
            target[padded] = AIR_HU if header.modality == "CT" else 0
        self._filled[place] = True

    def finish(self) -> Volume:
        """Return the volume, on an orthogonal grid also where the gantry was tilted.

        Raises:
            DataError: `missing_slices` if an instance of the plan never came.
        """
        if not self._filled.all():
            raise DataError("missing_slices", f"{int((~self._filled).sum())} slices did not arrive")
        volume = Volume(array=self._array, affine_lps=self.geometry.affine_lps)
        return straighten(volume, self.geometry) if self.geometry.is_tilted else volume


def assemble_volume(decoded: Iterable[Decoded]) -> Volume:
    """Return the volume of all slices of one stack (see `VolumeBuilder` for a streaming form)."""
    items = list(decoded)
    builder = VolumeBuilder([item.header for item in items])
    for item in items:
        builder.add(item)
    return builder.finish()


def _frame_planes(header: InstanceHeader) -> tuple[Plane, ...]:
    if header.num_frames > 1 and len(header.planes) != header.num_frames:
        raise DataError("no_geometry", "a multi-frame object gives its frames no positions")
    return header.planes


def _output_dtype(headers: Sequence[InstanceHeader], planes: Sequence[Plane]) -> np.dtype:
    """int16 where every slope and intercept is whole and small, else float32."""
    whole = all(
        plane.slope == int(plane.slope)
        and plane.intercept == int(plane.intercept)
        and abs(plane.slope) <= _INT16.max
        and abs(plane.intercept) <= _INT16.max
        for plane in planes
    )
    narrow = all(header.bits_allocated <= 16 for header in headers)
    return np.dtype(np.int16 if whole and narrow else np.float32)


def _as_int16(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.int16).newbyteorder(dtype.byteorder)


def _fits(pixels: np.ndarray, plane: Plane, header: InstanceHeader) -> bool:
    """Tell whether every value of a slice fits int16 after rescaling."""
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        return False
    low, high = _stored_range(header)
    ends = (low * plane.slope + plane.intercept, high * plane.slope + plane.intercept)
    if _INT16.min <= min(ends) and max(ends) <= _INT16.max:
        return True
    low, high = int(pixels.min()), int(pixels.max())
    ends = (low * plane.slope + plane.intercept, high * plane.slope + plane.intercept)
    return _INT16.min <= min(ends) and max(ends) <= _INT16.max


def _stored_range(header: InstanceHeader) -> tuple[int, int]:
    bits = header.bits_stored or header.bits_allocated
    if header.signed:
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def padding_mask(pixels: np.ndarray, header: InstanceHeader) -> np.ndarray | None:
    """Return where stored values are padding, or None (PS3.3 C.7.5.1.1.2)."""
    value = header.padding_value
    if value is None:
        return None
    low, high = _stored_range(header)
    if not header.signed and value < 0:
        value += 1 << (header.bits_allocated or 16)  # written as SS where the pixels are unsigned
    if header.signed and value > high:
        value -= 1 << (header.bits_allocated or 16)
    limit = header.padding_limit if header.padding_limit is not None else value
    if not low <= value <= high and header.padding_limit is None:
        return None
    mask = (pixels >= min(value, limit)) & (pixels <= max(value, limit))
    return mask if mask.any() else None


def straighten(volume: Volume, geometry: StackGeometry) -> Volume:
    """Resample a sheared stack to the orthogonal grid, linear in the plane, nothing cut off.

    A tilted gantry moves each slice inside its own plane; the grid is widened to hold all of them.
    """
    shift = geometry.shift_yx_px
    low = np.floor(np.minimum(shift.min(axis=0), 0)).astype(int)
    high = np.ceil(np.maximum(shift.max(axis=0), 0)).astype(int)
    depth, height, width = volume.array.shape
    shape = (depth, height + high[0] - low[0], width + high[1] - low[1])
    fill = float(AIR_HU) if volume.array.min() <= AIR_HU / 2 else float(volume.array.min())
    out = np.empty(shape, dtype=np.float32)
    for k in range(depth):
        out[k] = _shifted(volume.array[k], shift[k] - low, (shape[1], shape[2]), fill)
    if volume.array.dtype.kind in "iu":
        out = np.rint(out)
    affine = geometry.affine_lps.copy()
    affine[:3, 3] += affine[:3, 1] * low[0] + affine[:3, 2] * low[1]
    return replace(
        volume,
        array=out.astype(volume.array.dtype, copy=False),
        affine_lps=affine,
        flags=(*volume.flags, "tilt_resampled"),
    )


def _shifted(image: np.ndarray, offset_yx: np.ndarray, shape: tuple[int, int], fill: float) -> np.ndarray:
    """Draw an image at a fractional place on a canvas, bilinear."""
    whole = np.floor(offset_yx).astype(int)
    part_y, part_x = offset_yx - whole
    height, width = image.shape
    padded = np.full((height + 2, width + 2), fill, dtype=np.float32)
    padded[1:-1, 1:-1] = image
    rows = padded[1:] * (1 - part_y) + padded[:-1] * part_y
    moved = rows[:, 1:] * (1 - part_x) + rows[:, :-1] * part_x
    canvas = np.full((shape[0] + 1, shape[1] + 1), fill, dtype=np.float32)
    canvas[whole[0] : whole[0] + height + 1, whole[1] : whole[1] + width + 1] = moved
    return canvas[: shape[0], : shape[1]]
