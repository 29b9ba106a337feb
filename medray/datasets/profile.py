"""What one image looks like in about a hundred numbers that can be compared with other images'.

Values are looked at three ways: on a scale fixed for all units (a shift, a factor or a sign moves
them there), within soft tissue where values are HU (contrast agent moves them), and between the
image's own darkest and brightest (an inversion changes the shape). A picture of a few dozen blocks
tells body parts and flips apart, and the step from pixel to pixel tells noise.
"""

from typing import Any

import numpy as np

from medray.datasets.record import Sample
from medray.preprocess.orient import canonical_axes
from medray.volume import Image2D, Volume

# Below: whoever changes what a number means makes old references wrong, so the version rises.
PROFILE_VERSION = 1
# Histograms hold whole shares, so that sums do not depend on their order.
SHARE = 100_000
# asinh is linear around 0 and logarithmic beyond, so one scale holds 0..1, SUV, HU and Bq/ml.
LEVEL_STEP, NUM_LEVELS = 0.125, 256
SOFT_LOW_HU, SOFT_STEP_HU, NUM_SOFT = -32, 16, 21
NUM_SHAPE = 32
BLOCKS_ZYX, BLOCKS_YX = (4, 6, 6), (6, 6)
LAYOUT_SCALE = 1000
# Air makes values HU: nothing else has a twentieth of an image below this.
_HU_LOW_PERCENT, _HU_LOW = 5, -200
_LEAST_SOFT_SHARE = 0.01
# What is looked at of a large image; a share is then still known to a thousandth.
_MOST_ZYX, _MOST_YX = (48, 96, 96), (512, 512)
_NUM_PLANES = 8
_ENDS_PERCENT = (0.5, 99.5)
_NUM_RANKS = 256
_COLOUR_STEP, _COLOUR_SHARE = 8, 0.005
_TINY = 1e-3
_LARGEST = 1e30


def image_profile(sample: Sample) -> dict[str, Any]:
    """Return the numbers of a sample's image, JSON-plain; never raises for a decoded sample.

    Returns:
        `kind` (modality, `/rgb`, `/2d`), `contrast` (`yes`, `no`, `unknown`), `numbers` (lengths in
        mm, ratios), `levels` (bin to share), `soft` and `shape` (shares; `soft` empty where values
        are no HU) and `layout` (means of blocks, from superior, anterior, right).
    """
    image = sample.image
    grey, is_colour = _grey(image)
    lengths = _lengths(image)
    if isinstance(image, Volume):
        grey = _canonical(grey, image.affine_lps)
    most = _MOST_ZYX if grey.ndim == 3 else _MOST_YX
    steps = tuple(slice(None, None, -(-n // m)) for n, m in zip(grey.shape, most, strict=True))
    seen = _finite(grey[steps])
    levels = _levels(seen)
    low, ends = _percentiles(seen)
    numbers = {
        **lengths,
        "roughness": _roughness(grey),
        # The share of all other values: an empty image has none.
        "content": 1 - int(levels.max()) / SHARE + _TINY,
    }
    return {
        "kind": _kind(sample, is_colour=is_colour),
        "contrast": _contrast(sample),
        "is_constant": bool(seen.size == 0 or seen.min() == seen.max()),
        "numbers": {name: _positive(value) for name, value in numbers.items()},
        "levels": {str(index): int(levels[index]) for index in np.flatnonzero(levels)},
        "soft": _soft(seen, low),
        "shape": _shape(seen, ends),
        "layout": _layout(seen, ends),
    }


def _finite(array: np.ndarray) -> np.ndarray:
    """Return float32 values that can be summed, whatever a float file holds."""
    if array.dtype.kind == "f":
        array = np.clip(np.nan_to_num(array), -_LARGEST, _LARGEST)
    return array.astype(np.float32)


def _positive(value: float) -> float:
    """Return a number of which there is a logarithm."""
    return max(round(float(value), 6), 1e-6)


def _kind(sample: Sample, *, is_colour: bool) -> str:
    """Return what must be equal before numbers are compared at all."""
    form = "" if isinstance(sample.image, Volume) else "/2d"
    return modality_of(sample) + ("/rgb" if is_colour else "") + form


def modality_of(sample: Sample) -> str:
    """Return the modality, `unknown` where the file has none; CR and DX are one."""
    modality = str(sample.meta.get("modality", "") or "unknown")
    return "CR" if modality == "DX" else modality


def _contrast(sample: Sample) -> str:
    if modality_of(sample) == "unknown" or "contrast" not in sample.meta:
        return "unknown"
    return "yes" if sample.meta["contrast"] else "no"


def _grey(image: Volume | Image2D) -> tuple[np.ndarray, bool]:
    """Return the image without colour and whether it has any; grey written as RGB has none."""
    array = image.array
    if isinstance(image, Volume) or array.ndim == 2:
        return array, False
    low = array.min(axis=-1).astype(np.float32)
    spread = array.max(axis=-1).astype(np.float32) - low
    is_colour = float((spread > _COLOUR_STEP).mean()) > _COLOUR_SHARE
    return array.mean(axis=-1, dtype=np.float32), is_colour


def _canonical(array: np.ndarray, affine_lps: np.ndarray) -> np.ndarray:
    """Return a view with its axes toward superior, posterior and left."""
    axes, signs = canonical_axes(affine_lps)
    return array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]


def _lengths(image: Volume | Image2D) -> dict[str, float]:
    """Return spacing and extent in mm, axes as in the patient; pixels where mm are unknown."""
    if isinstance(image, Volume):
        axes, _ = canonical_axes(image.affine_lps)
        z, y, x = (image.spacing_zyx_mm[axis] for axis in axes)
        depth, height, width = (image.array.shape[axis] for axis in axes)
        return {
            "slice_mm": z,
            "pixel_mm": float(np.sqrt(y * x)),
            "extent_z_mm": z * depth,
            "extent_y_mm": y * height,
            "extent_x_mm": x * width,
        }
    height, width = image.array.shape[:2]
    found = {"matrix_px": float(np.sqrt(height * width)), "aspect": height / max(width, 1)}
    if image.spacing_yx_mm is not None:
        y, x = image.spacing_yx_mm
        found |= {"pixel_mm": float(np.sqrt(y * x))}
        found |= {"extent_y_mm": y * height, "extent_x_mm": x * width}
    return found


def _shares(counts: np.ndarray) -> np.ndarray:
    shares = counts * (SHARE / max(int(counts.sum()), 1))
    return np.asarray(np.rint(shares), dtype=np.int64)


def _levels(seen: np.ndarray) -> np.ndarray:
    """Return shares of values on the scale that is the same for every unit."""
    bins = np.floor(np.arcsinh(seen) / LEVEL_STEP).astype(np.int64) + NUM_LEVELS // 2
    bins = np.clip(bins, 0, NUM_LEVELS - 1)
    return _shares(np.bincount(bins.ravel(), minlength=NUM_LEVELS))


def _percentiles(seen: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return the low percentile by which HU are known, and the image's own ends."""
    if seen.size == 0:
        return 0.0, (0.0, 0.0)
    low, first, last = np.percentile(seen, [_HU_LOW_PERCENT, *_ENDS_PERCENT])
    if last <= first:
        first, last = seen.min(), seen.max()
    return float(low), (float(first), float(last))


def _soft(seen: np.ndarray, low: float) -> list[int]:
    """Return shares within soft tissue; nothing where values are no HU or tissue is missing."""
    if low > _HU_LOW:
        return []
    bins = np.floor((seen - SOFT_LOW_HU) / SOFT_STEP_HU)
    bins = bins[(bins >= 0) & (bins < NUM_SOFT)].astype(np.int64)
    if bins.size < _LEAST_SOFT_SHARE * seen.size:
        return []
    return [int(share) for share in _shares(np.bincount(bins, minlength=NUM_SOFT))]


def _shape(seen: np.ndarray, ends: tuple[float, float]) -> list[int]:
    """Return shares between the image's own ends."""
    places = (seen.astype(np.float64) - ends[0]) / max(ends[1] - ends[0], 1e-12)
    bins = np.clip(np.floor(places * NUM_SHAPE), 0, NUM_SHAPE - 1).astype(np.int64)
    return [int(share) for share in _shares(np.bincount(bins.ravel(), minlength=NUM_SHAPE))]


def _layout(seen: np.ndarray, ends: tuple[float, float]) -> list[int]:
    """Return means of blocks of the values' ranks, with mean 0 and deviation 1.

    Ranks make the organs count as much as the outline against air, and do not know units.
    """
    blocks = BLOCKS_ZYX if seen.ndim == 3 else BLOCKS_YX
    if seen.size == 0 or ends[1] <= ends[0]:
        return [0] * int(np.prod(blocks))
    places = (seen - np.float32(ends[0])) / np.float32(ends[1] - ends[0])
    bins = np.clip(places * _NUM_RANKS, 0, _NUM_RANKS - 1).astype(np.intp)
    counts = np.bincount(bins.ravel(), minlength=_NUM_RANKS)
    means = ((np.cumsum(counts) - counts / 2) / seen.size)[bins]
    for axis, number in enumerate(blocks):
        means = _block_means(means, axis, number)
    deviation = max(float(means.std()), 1e-9)
    scaled = np.rint((means - means.mean()) / deviation * LAYOUT_SCALE)
    return [int(value) for value in scaled.ravel().tolist()]


def _block_means(array: np.ndarray, axis: int, number: int) -> np.ndarray:
    """Return means along an axis of equal stretches; a short axis gives its samples again."""
    length = array.shape[axis]
    if length < number:
        return np.asarray(np.take(array, np.arange(number) * length // number, axis=axis))
    edges = np.arange(number) * length // number
    sizes = np.diff(np.append(edges, length))
    shape = [1] * array.ndim
    shape[axis] = number
    return np.asarray(np.add.reduceat(array, edges, axis=axis) / sizes.reshape(shape))


def _roughness(grey: np.ndarray) -> float:
    """Return the mean step between neighbouring pixels over the mean distance from the mean."""
    if grey.ndim == 3:
        chosen = np.unique(np.linspace(0, len(grey) - 1, _NUM_PLANES).astype(int))
        planes = np.stack([_finite(grey[k]) for k in chosen])
    else:
        planes = _finite(grey)[None]
    spread = float(np.abs(planes - planes.mean()).mean()) if planes.size else 0.0
    steps = [np.abs(np.diff(planes, axis=axis)) for axis in (1, 2) if planes.shape[axis] > 1]
    step = float(np.mean([float(one.mean()) for one in steps])) if steps else 0.0
    return step / spread + _TINY if spread > 0 and np.isfinite(step / spread) else _TINY
