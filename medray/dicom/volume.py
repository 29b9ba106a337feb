"""From decoded instances to a volume: order, modality values and tilt, each exactly once."""

from collections.abc import Iterable, Iterator, Sequence
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
class StackReader:
    """Turns decoded instances into placed slices of modality values, in whatever order they arrive.

    The grid is planned from headers; every decoded instance must agree with its plan, so a file
    that changed since it was indexed is noticed.

    Attributes:
        headers: of every instance of one stack; copies of one SOP instance are fine.
        geometry: order, affine and spacing.
        shape_zyx: size of the stack.
        dtype: int16 where every slope and intercept is whole, else float32; a slice whose values
            leave the range of int16 comes as float32 all the same.
    """

    headers: Sequence[InstanceHeader]
    geometry: StackGeometry = field(init=False)
    shape_zyx: tuple[int, int, int] = field(init=False)
    dtype: np.dtype = field(init=False)
    _places: dict[tuple[str, int], int] = field(init=False)
    _planes: list[Plane] = field(init=False)
    _hashes: dict[str, str] = field(init=False, default_factory=dict)
    _seen: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        unique = {_identity(header): header for header in self.headers}
        slices = [
            (uid, frame, plane)
            for uid, header in unique.items()
            for frame, plane in enumerate(_frame_planes(header))
        ]
        first = self.headers[0]
        if first.samples_per_pixel != 1 or first.pixel_layout != "mono":
            raise DataError("unsupported_pixels", "colour slices do not make a volume of values")
        self.geometry = stack_geometry([plane for _, _, plane in slices])
        ordered = [slices[index] for index in self.geometry.order]
        self._places = {(uid, frame): k for k, (uid, frame, _) in enumerate(ordered)}
        self._planes = [plane for _, _, plane in ordered]
        self.shape_zyx = (len(ordered), first.rows, first.columns)
        self.dtype = _output_dtype(self.headers, self._planes)
        self._seen = np.zeros(len(ordered), dtype=bool)

    def slices_of(
        self, decoded: Decoded, *, into: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the place and the (height, width) modality values of each frame.

        Args:
            into: (depth, height, width) array that may take int16 values where they belong.

        Raises:
            DataError: `duplicate_conflict`, `checksum_mismatch`, `mixed_size`, `non_finite_pixels`.
        """
        header = decoded.header
        identity = _identity(header)
        known = self._hashes.setdefault(identity, decoded.sha256)
        if known != decoded.sha256:
            raise DataError("duplicate_conflict", "two files share a SOP UID and differ")
        planes = _frame_planes(header)
        for frame, pixels in enumerate(decoded.frames):
            place = self._places.get((identity, frame))
            if place is None or planes[frame] != self._planes[place]:
                raise DataError("checksum_mismatch", "a file differs from what was indexed")
            if pixels.shape != self.shape_zyx[1:]:
                raise DataError("mixed_size", "a slice has another matrix than its stack")
            if self._seen[place]:
                continue  # a copy with equal bytes
            self._seen[place] = True
            whole = self.dtype == np.int16
            out = into[place] if into is not None and into.dtype == np.int16 else None
            yield place, modality_values(pixels, planes[frame], header, whole=whole, out=out)

    def require_all(self) -> None:
        """Check that every slice came.

        Raises:
            DataError: `missing_slices`.
        """
        if not self._seen.all():
            raise DataError("missing_slices", f"{int((~self._seen).sum())} slices did not arrive")


def modality_values(
    pixels: np.ndarray,
    plane: Plane,
    header: InstanceHeader,
    *,
    whole: bool,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return stored values times slope plus intercept, padding made air: int16 or float32.

    Args:
        whole: slope and intercept are whole, so int16 is exact where the values fit.
        out: int16 array of the same shape that may hold the result.

    Raises:
        DataError: `non_finite_pixels`.
    """
    if whole and _fits(pixels, plane, header):
        # Wrap-around arithmetic is exact here: the result was shown to fit 16 bit.
        wide = pixels.astype(np.int16) if pixels.dtype.itemsize == 1 else pixels
        stored = wide.view(np.dtype(np.int16).newbyteorder(wide.dtype.byteorder))
        if plane.slope == 1:
            values = np.add(stored, np.int16(plane.intercept), out=out, dtype=np.int16)
        else:
            values = np.multiply(stored, np.int16(plane.slope), out=out, dtype=np.int16)
            values += np.int16(plane.intercept)
    else:
        values = (pixels * np.float64(plane.slope) + plane.intercept).astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError("non_finite_pixels", "a slice holds NaN or infinite values")
    padded = padding_mask(pixels, header)
    if padded is not None:
        values[padded] = AIR_HU if header.modality == "CT" else 0
    return values


@dataclass(slots=True)
class VolumeBuilder:
    """Fills a volume slice by slice (see `StackReader`)."""

    headers: Sequence[InstanceHeader]
    reader: StackReader = field(init=False)
    _array: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.reader = StackReader(self.headers)
        self._array = np.empty(self.reader.shape_zyx, dtype=self.reader.dtype)

    def add(self, decoded: Decoded) -> None:
        """Place the frames of one instance.

        Raises:
            DataError: see `StackReader.slices_of`.
        """
        for place, values in self.reader.slices_of(decoded, into=self._array):
            if self._array.dtype != values.dtype and self._array.dtype == np.int16:
                self._array = self._array.astype(np.float32)
            if not np.may_share_memory(values, self._array):
                self._array[place] = values

    def finish(self) -> Volume:
        """Return the volume, on an orthogonal grid also where the gantry was tilted.

        Raises:
            DataError: `missing_slices` if an instance of the plan never came.
        """
        self.reader.require_all()
        geometry = self.reader.geometry
        volume = Volume(array=self._array, affine_lps=geometry.affine_lps)
        return straighten(volume, geometry) if geometry.is_tilted else volume


def assemble_volume(decoded: Iterable[Decoded]) -> Volume:
    """Return the volume of all slices of one stack (see `VolumeBuilder` for a streaming form)."""
    items = list(decoded)
    builder = VolumeBuilder([item.header for item in items])
    for item in items:
        builder.add(item)
    return builder.finish()


def _identity(header: InstanceHeader) -> str:
    """Return what tells instances apart: the SOP UID, or the place where that is empty."""
    return header.sop_uid or repr(header.planes[0].position_mm)


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


def _shifted(
    image: np.ndarray, offset_yx: np.ndarray, shape: tuple[int, int], fill: float
) -> np.ndarray:
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
