"""Parts of a volume and wider frames around it; the affine follows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medray.volume import Volume

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def crop_box(volume: Volume, box_kji: Sequence[tuple[int, int]], *, fill: float = 0.0) -> Volume:
    """Return the voxels from start to stop along each axis; what lies outside is `fill`.

    Args:
        volume: any grid.
        box_kji: (start, stop) along k, j, i; may begin below 0 and end beyond the volume.
        fill: value of voxels outside the volume.
    """
    starts = [int(start) for start, _ in box_kji]
    shape = [int(stop) - int(start) for start, stop in box_kji]
    if min(shape) < 1:
        raise ValueError(f"box_kji must have stop > start along each axis, got {tuple(box_kji)}")
    out = np.full(shape, fill, dtype=volume.array.dtype)
    into, source = [], []
    for start, size, available in zip(starts, shape, volume.array.shape, strict=True):
        low, high = max(start, 0), max(min(start + size, available), start, 0)
        into.append(slice(low - start, high - start))
        source.append(slice(low, high))
    out[tuple(into)] = volume.array[tuple(source)]
    affine = volume.affine_lps.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(starts, dtype=np.float64)
    return replace(volume, array=out, affine_lps=affine)


def crop_or_pad(
    volume: Volume,
    shape_zyx: Sequence[int],
    *,
    center_index: Sequence[float] | None = None,
    fill: float = 0.0,
) -> Volume:
    """Return a volume of this size around a voxel; what lies outside is `fill`.

    Args:
        volume: any grid.
        shape_zyx: size of the result.
        center_index: continuous (k, j, i) that becomes the middle, rounded to whole voxels (halves
            up); None takes the volume's middle, as MONAI's ResizeWithPadOrCrop does.
        fill: value of voxels outside the volume.
    """
    old = volume.array.shape
    if center_index is None:
        starts = [
            have // 2 - want // 2 if want < have else -((want - have) // 2)
            for have, want in zip(old, shape_zyx, strict=True)
        ]
    else:
        starts = [
            int(np.floor(center - (want - 1) / 2 + 0.5))
            for center, want in zip(center_index, shape_zyx, strict=True)
        ]
    box = [(start, start + want) for start, want in zip(starts, shape_zyx, strict=True)]
    return crop_box(volume, box, fill=fill)


def pad_to(volume: Volume, shape_zyx: Sequence[int], *, fill: float = 0.0) -> Volume:
    """Return a volume of at least this size, padded on both sides; nothing is cut off."""
    shape = [max(have, want) for have, want in zip(volume.array.shape, shape_zyx, strict=True)]
    return crop_or_pad(volume, shape, fill=fill)


def mask_box(mask: np.ndarray, *, margin: Sequence[int] = (0, 0, 0)) -> Box | None:
    """Return the (start, stop) box of the non-zero voxels, widened but inside; None if empty."""
    box: list[tuple[int, int]] = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        if not len(hit):
            return None
        low, high = int(hit[0]) - margin[axis], int(hit[-1]) + 1 + margin[axis]
        box.append((max(low, 0), min(high, mask.shape[axis])))
    return box[0], box[1], box[2]
