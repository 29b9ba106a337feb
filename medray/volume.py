"""What an image is once it has left its file: an array with its place in the patient."""

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A 3D image on a regular grid, in the patient's LPS millimetres.

    Attributes:
        array: (depth, height, width), any numeric dtype; CT holds HU.
        affine_lps: (4, 4) float64, maps the index (k, j, i, 1) to (x, y, z, 1) in mm, LPS.
            Column 0 is one slice, column 1 one row, column 2 one column.
        geometry: `verified`, or `unverified` where positions were absent; then no output
            that claims a place in the patient may be written.
        flags: what a reader of the result should know, e.g. `tilt_resampled`.
    """

    array: np.ndarray
    affine_lps: np.ndarray
    geometry: str = "verified"
    flags: tuple[str, ...] = ()

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along k, j, i in mm."""
        z, y, x = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(z), float(y), float(x)

    def with_array(self, array: np.ndarray) -> "Volume":
        """Return the same grid with other values."""
        return replace(self, array=array)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image2D:
    """A projection image, a photograph of a slice or one CT slice.

    Attributes:
        array: (height, width) grey or (height, width, 3) RGB.
        spacing_yx_mm: pixel size in mm, or None where the file does not say.
        photometric: `MONOCHROME1`, `MONOCHROME2` or `RGB`, as stored; `array` is already
            the right way round (bright = dense) for MONOCHROME1.
        meta: plain header facts that a transform may use (laterality, view, window, ...);
            never a patient's name, id or date.
    """

    array: np.ndarray
    spacing_yx_mm: tuple[float, float] | None = None
    photometric: str = "MONOCHROME2"
    meta: dict[str, object] = field(default_factory=dict)
