"""Masks on the original grid: kept as bits of their bounding box, made from probabilities by slabs.

A pancreas in a 512 x 512 x 240 CT is 63 MB as bytes and about 0.2 MB as bits of its box.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32, Real, UInt8

from medray.preprocess.crop import Box, mask_box
from medray.preprocess.spatial import resample_to_grid
from medray.volume import Volume

# 32 slices of 512 x 512 are 34 MB of float32.
_SLAB_VOXELS = 32 * 512 * 512


def pack_mask(
    mask: Real[np.ndarray, "depth height width"],
) -> tuple[UInt8[np.ndarray, "bytes"], Box]:
    """Return the bits of a mask's bounding box and the box as (start, stop) of k, j, i.

    An empty mask is the box of its first voxel.
    """
    box = mask_box(mask) or ((0, 1), (0, 1), (0, 1))
    part = mask[tuple(slice(*ends) for ends in box)]
    return np.packbits(part != 0), box


def unpack_mask(
    bits: UInt8[np.ndarray, "bytes"],
    box_kji: Sequence[Sequence[int]],
    shape_zyx: Sequence[int],
) -> UInt8[np.ndarray, "depth height width"]:
    """Return the mask (0 or 1) that `pack_mask` was given.

    Raises:
        ValueError: the bits do not fill the box, or the box leaves the grid.
    """
    shape = [int(size) for size in shape_zyx]
    box = [(int(start), int(stop)) for start, stop in box_kji]
    inside = all(0 <= a < b <= n for (a, b), n in zip(box, shape, strict=True))
    sizes = [stop - start for start, stop in box]
    count = int(np.prod(sizes))
    if not inside or len(bits) != -(-count // 8):
        raise ValueError(f"{len(bits)} bytes do not fill the box {box} of a grid {shape}")
    mask = np.zeros(shape, dtype=np.uint8)
    part = np.unpackbits(bits, count=count).reshape(sizes)
    mask[tuple(slice(*ends) for ends in box)] = part
    return mask


def mask_on_grid(
    probs: Float32[np.ndarray, "d h w"],
    affine_lps: Float[np.ndarray, "4 4"],
    *,
    grid: tuple[Sequence[int], Float[np.ndarray, "4 4"]],
    threshold: float,
) -> UInt8[np.ndarray, "depth height width"]:
    """Return where a probability, sampled linearly on another grid, reaches the threshold.

    It goes slab by slab, so that the probabilities of the whole grid never exist; outside the
    field of view the probability is 0.

    Args:
        probs: probability of the foreground.
        affine_lps: (4, 4) of its grid.
        grid: shape and affine of the grid wanted.
        threshold: 1 where the probability is at least this.
    """
    mask = np.zeros([int(size) for size in grid[0]], dtype=np.uint8)
    for part, sampled in _slabs(probs, affine_lps, grid):
        np.greater_equal(sampled, np.float32(threshold), out=mask[part].view(np.bool_))
    return mask


def levels_on_grid(
    probs: Float32[np.ndarray, "d h w"],
    affine_lps: Float[np.ndarray, "4 4"],
    *,
    grid: tuple[Sequence[int], Float[np.ndarray, "4 4"]],
    num_levels: int,
) -> UInt8[np.ndarray, "depth height width"]:
    """Return the highest level k whose threshold k / `num_levels` a sampled probability reaches.

    `levels >= k` is the mask that `mask_on_grid` gives at that threshold, exactly, where the number
    is a power of two up to 256.
    """
    levels = np.zeros([int(size) for size in grid[0]], dtype=np.uint8)
    for part, sampled in _slabs(probs, affine_lps, grid):
        levels[part] = np.minimum(sampled * np.float32(num_levels), num_levels - 1).astype(np.uint8)
    return levels


def _slabs(
    probs: np.ndarray, affine_lps: np.ndarray, grid: tuple[Sequence[int], np.ndarray]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield which slices of the grid, and the values sampled there."""
    shape, affine = [int(size) for size in grid[0]], np.asarray(grid[1], dtype=np.float64)
    source = Volume(array=probs, affine_lps=np.asarray(affine_lps, dtype=np.float64))
    step = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        depth = min(step, shape[0] - start)
        slab = affine.copy()
        slab[:3, 3] += affine[:3, 0] * start
        sampled = resample_to_grid(source, slab, (depth, shape[1], shape[2]))
        yield slice(start, start + depth), sampled.array
