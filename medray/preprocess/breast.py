"""Where the breast is in a mammogram, found by threshold and shape, without a network.

Images are bright = dense (MONOCHROME1 already inverted) on a dark background.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, Real

Side = Literal["left", "right"]

# The mask is found on an image of this many pixels along its longer side: a skin line is broader
# than one such pixel (0.25 mm), and connected components on 12 million pixels take seconds.
_WORKING_PX = 1024
_FULL_SHARE = 0.95
# Of the working image's longer side: removes labels, wedges and tape, keeps the breast. The
# published pipeline opens with an ellipse of 100 px at 1024 rows.
_OPENING_SHARE = 50 / 1024


def otsu_threshold(values: Real[np.ndarray, "*shape"], *, num_bins: int = 256) -> float:
    """Return the value that separates two classes with the largest between-class variance.

    Values above it are foreground. Otsu 1979, on `num_bins` equal bins; the threshold is the upper
    edge of the last background bin. A constant image returns its value.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low
    counts, edges = np.histogram(values, bins=num_bins, range=(low, high))
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = below[-1] + counts[-1] - below
    sum_below = np.cumsum(counts * centers)[:-1]
    sum_above = (counts * centers).sum() - sum_below
    valid = (below > 0) & (above > 0)
    gap = np.zeros_like(below)
    gap[valid] = sum_below[valid] / below[valid] - sum_above[valid] / above[valid]
    best = int(np.argmax(below * above * gap**2))
    return float(edges[best + 1])


def tissue_threshold(values: Real[np.ndarray, "*shape"]) -> float:
    """Return a value between air, noise included, and the faintest tissue.

    Otsu's threshold may fall inside the breast, between fat and glands or before a white frame. Air
    is the commonest value of a mammogram, so half way from there to Otsu's threshold is above its
    noise and below all tissue.
    """
    threshold = otsu_threshold(values)
    counts, edges = np.histogram(values, bins=256)
    air = float(edges[int(np.argmax(counts))])
    return (air + threshold) / 2 if air < threshold else threshold


def breast_mask(image: Real[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return the filled region of the breast; everywhere True if there is none to be found.

    Foreground is what exceeds 1/255 of the range; where that is more than 95 % of the image, what
    exceeds the noise of the background (see `tissue_threshold`). After an opening by a disc, the
    component with the largest bounding rectangle is taken and its holes are filled.
    """
    step = max(1, -(-max(image.shape) // _WORKING_PX))
    small = _block_means(image, step)
    low, high = float(small.min()), float(small.max())
    foreground = small > low + (high - low) / 255
    if foreground.mean() > _FULL_SHARE:
        foreground = small > tissue_threshold(small)
    region = _largest_region(foreground, radius=round(_OPENING_SHARE * max(small.shape)))
    if region is None:
        return np.ones(image.shape, dtype=bool)
    wide = np.repeat(np.repeat(region, step, axis=0), step, axis=1)
    return wide[: image.shape[0], : image.shape[1]]


def breast_box(image: Real[np.ndarray, "height width"]) -> Int64[np.ndarray, "4"]:
    """Return the box of the breast, xyxy in pixels, edges; the whole image if none is found."""
    mask = breast_mask(image)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.int64)


def breast_side(image: Real[np.ndarray, "height width"]) -> Side:
    """Return at which side of the image the breast lies.

    The sums of the outermost 10 % of the columns are compared; equal sums count as right, as in
    the published pipeline.
    """
    width = max(1, image.shape[1] // 10)
    left = float(image[:, :width].sum(dtype=np.float64))
    right = float(image[:, -width:].sum(dtype=np.float64))
    return "left" if left > right else "right"


def remove_background(
    image: Real[np.ndarray, "height width"],
) -> Real[np.ndarray, "height width"]:
    """Return the image with everything but the breast set to its minimum (black)."""
    return np.where(breast_mask(image), image, image.min())


def _block_means(image: np.ndarray, step: int) -> np.ndarray:
    """Average step x step blocks; the last ones repeat the border."""
    if step == 1:
        return image.astype(np.float32)
    height, width = image.shape
    padded = np.pad(image, ((0, -height % step), (0, -width % step)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    means: np.ndarray = blocks.mean(axis=(1, 3), dtype=np.float32)
    return means


def _largest_region(foreground: np.ndarray, *, radius: int) -> np.ndarray | None:
    """Open, take the component with the largest bounding rectangle and fill its holes."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(foreground.astype(np.uint8))
    # The border counts as foreground: the breast touches it and must not be eaten there.
    padded = sitk.ConstantPad(image, [radius] * 2, [radius] * 2, 1)
    eroded = sitk.BinaryErode(padded, [radius] * 2, sitk.sitkBall)
    inner = sitk.Crop(eroded, [radius] * 2, [radius] * 2)
    opened = sitk.And(sitk.BinaryDilate(inner, [radius] * 2, sitk.sitkBall), image)
    labels = sitk.ConnectedComponent(opened, True)
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(labels)
    if not shapes.GetNumberOfLabels():
        return None
    areas = {
        label: shapes.GetBoundingBox(label)[2] * shapes.GetBoundingBox(label)[3]
        for label in shapes.GetLabels()
    }
    best = max(areas, key=lambda label: (areas[label], -label))
    filled: np.ndarray = sitk.GetArrayFromImage(sitk.BinaryFillhole(labels == best))
    return filled.astype(bool)
