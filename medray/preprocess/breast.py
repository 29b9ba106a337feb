"""Where the breast is in a mammogram, found by threshold, opening and the largest part."""

import numpy as np

from medray.preprocess.axes import nearest_map, pick_plane, resize_positions
from medray.preprocess.letterbox import resize_plane

# Work at this long side: labels and burned-in text vanish, the skin line stays within 1 %.
_WORK_PX = 256
_OPENING_RADIUS_PX = 3
_THRESHOLD_SHARE = 0.06
# More foreground than this is no background at a low threshold (SEEDS_SPEC 3.2, step 5).
_MAX_FOREGROUND = 0.95
_HISTOGRAM_BINS = 256
_MARGIN = 0.02


def breast_mask(values: np.ndarray) -> np.ndarray:
    """Return (height, width) bool, True on the breast; all True where none can be told.

    Args:
        values: (height, width), bright is dense.
    """
    height, width = values.shape
    ratio = min(1.0, _WORK_PX / max(height, width))
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    small = resize_plane(values, size)
    found = _largest_part(_foreground(small))
    if not found.any():
        return np.ones(values.shape, dtype=bool)
    rows = nearest_map(resize_positions(size[0], height), num_in=size[0])
    columns = nearest_map(resize_positions(size[1], width), num_in=size[1])
    return pick_plane(found, rows=rows, columns=columns)


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box x0, y0, x1, y1 (pixel edges) round a mask with a margin of 2 %."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    margin_y, margin_x = round((y1 - y0) * _MARGIN), round((x1 - x0) * _MARGIN)
    height, width = mask.shape
    return (
        max(0, x0 - margin_x),
        max(0, y0 - margin_y),
        min(width, x1 + margin_x),
        min(height, y1 + margin_y),
    )


def breast_is_right(mask: np.ndarray) -> bool:
    """Tell whether the chest wall is at the right edge: more breast in the outermost columns."""
    outer = max(1, mask.shape[1] // 10)
    return bool(mask[:, -outer:].sum() > mask[:, :outer].sum())


def _foreground(small: np.ndarray) -> np.ndarray:
    low, high = (float(v) for v in np.percentile(small, (0.5, 99.5)))
    found = small > low + _THRESHOLD_SHARE * (high - low)
    if found.mean() > _MAX_FOREGROUND:
        found = small > otsu_threshold(small)
    return np.asarray(found)


def otsu_threshold(values: np.ndarray) -> float:
    """Return the threshold with the largest variance between two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=_HISTOGRAM_BINS)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sums = np.cumsum(counts * centers)
    means_below = sums[:-1] / np.maximum(below, 1)
    means_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * (means_below - means_above) ** 2
    return float(edges[1 + int(between.argmax())])


def _largest_part(found: np.ndarray) -> np.ndarray:
    """Open, keep the largest connected part, fill its holes."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(found.astype(np.uint8))
    # Without padding the opening would eat the breast where it meets the image's edge.
    pad = [_OPENING_RADIUS_PX] * 2
    image = sitk.ZeroFluxNeumannPad(image, pad, pad)
    image = sitk.BinaryMorphologicalOpening(image, [_OPENING_RADIUS_PX] * 2, sitk.sitkBall)
    image = sitk.Crop(image, pad, pad)
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(image), sortByObjectSize=True)
    filled = sitk.BinaryFillhole(parts == 1)
    return np.asarray(sitk.GetArrayFromImage(filled) > 0)
