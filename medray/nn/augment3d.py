"""Augmentation of volumes on their own device: flip, scale, rotate, shift in one resampling.

All random numbers of an example come from its own seed, drawn on the CPU, so that the result is the
same on any device, in any batch and on any worker. Images and masks of an example move together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_NUM_DRAWS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """How far volumes are changed; a strength of 0 is off.

    Attributes:
        flip: chance of a flip, for each axis by itself.
        scale: sizes are multiplied by 1 - scale .. 1 + scale, each axis by itself.
        rotate_deg: turned by up to so many degrees about one random axis, counted in voxels.
        shift: moved by up to this share of the side, each axis by itself.
        crop: side in voxels of a random cube that is kept; 0 keeps all.
    """

    flip: float = 0.0
    scale: float = 0.0
    rotate_deg: float = 0.0
    shift: float = 0.0
    crop: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must lie in [0, 1], got {self.flip}")
        if not (0 <= self.scale < 1 and 0 <= self.shift < 1):
            raise ValueError(f"scale and shift must lie in [0, 1), got {self.scale}, {self.shift}")
        if not 0 <= self.rotate_deg <= 180:
            raise ValueError(f"rotate_deg must lie in [0, 180], got {self.rotate_deg}")
        if self.crop < 0:
            raise ValueError(f"crop must be >= 0, got {self.crop}")

    @property
    def resamples(self) -> bool:
        """Tell whether voxels move by parts of a voxel."""
        return bool(self.scale or self.rotate_deg or self.shift)


def augment_volumes(
    volumes: Mapping[str, Tensor],
    seeds: Sequence[int],
    how: Augmentation,
    *,
    labels: Sequence[str] = ("mask",),
) -> dict[str, Tensor]:
    """Return the volumes (B, D, H, W), each example changed by the numbers of its seed.

    Args:
        volumes: by name, all of one shape; the types are kept (integers are rounded).
        seeds: one an example.
        how: the strengths.
        labels: names sampled by the nearest voxel; the others linearly. What comes in from beyond
            the border repeats it.
    """
    examples = []
    for index, seed in enumerate(seeds):
        one = {name: volume[index] for name, volume in volumes.items()}
        examples.append(_augment_one(one, _draw(seed), how, frozenset(labels)))
    return {name: torch.stack([one[name] for one in examples]) for name in volumes}


def center_crop(volume: Tensor, side: int) -> Tensor:
    """Return the middle cube of (..., D, H, W), as training's random crop is replaced elsewhere."""
    for dim in (-3, -2, -1):
        start = max(0, (volume.shape[dim] - side) // 2)
        volume = volume.narrow(dim, start, min(side, volume.shape[dim]))
    return volume


def _draw(seed: int) -> list[float]:
    """Return the example's numbers in [0, 1); always as many, whatever is switched on."""
    generator = torch.Generator().manual_seed(int(seed) % (1 << 63))
    return torch.rand(_NUM_DRAWS, generator=generator, dtype=torch.float64).tolist()


def _augment_one(
    volumes: Mapping[str, Tensor],
    draws: Sequence[float],
    how: Augmentation,
    labels: frozenset[str],
) -> dict[str, Tensor]:
    shape = next(iter(volumes.values())).shape
    flips = [axis for axis in range(3) if draws[axis] < how.flip]
    matrix, shift = _affine(draws, how, shape)
    grid = None
    if how.resamples:
        grid = _sampling_grid(matrix, shift, shape, next(iter(volumes.values())).device)
    out = {}
    for name, volume in volumes.items():
        changed = volume
        if grid is not None:
            changed = _sample(changed, grid, nearest=name in labels)
        if flips:
            changed = changed.flip(flips)
        out[name] = _random_crop(changed, draws[13:16], how.crop) if how.crop else changed
    return out


def _affine(
    draws: Sequence[float], how: Augmentation, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return matrix (3, 3) and shift (3,) from an output voxel to the place it is taken from.

    Both places are counted in voxels from the middle.
    """
    scales = [1 + how.scale * (2 * draws[3 + n] - 1) for n in range(3)]
    angle = math.radians(how.rotate_deg * (2 * draws[6] - 1))
    axis = int(draws[7] * 3)
    first, second = (n for n in range(3) if n != axis)
    turn = torch.eye(3, dtype=torch.float64)
    turn[first, first] = turn[second, second] = math.cos(angle)
    turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
    shift = [how.shift * (2 * draws[8 + n] - 1) * shape[n] for n in range(3)]
    matrix = turn / torch.tensor(scales, dtype=torch.float64)
    return matrix, torch.tensor(shift, dtype=torch.float64)


def _sampling_grid(
    matrix: Tensor, shift: Tensor, shape: Sequence[int], device: torch.device
) -> Float[Tensor, "1 d h w 3"]:
    """Return the places to sample, as `grid_sample` counts them: x, y, z in [-1, 1].

    Sums of three vectors in one fixed order, not a matrix product, whose rounding may depend on
    the library's choice of a kernel.
    """
    planes = []
    for axis in (2, 1, 0):
        total: Tensor | float = float(shift[axis])
        for source, size in enumerate(shape):
            place = torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2
            view = [1, 1, 1]
            view[source] = size
            total = total + float(matrix[axis, source]) * place.view(view)
        assert isinstance(total, Tensor)
        planes.append(total * (2 / max(shape[axis] - 1, 1)))
    return torch.stack([plane.expand(*shape) for plane in planes], dim=-1)[None]


def _sample(volume: Tensor, grid: Tensor, *, nearest: bool) -> Tensor:
    sampled = functional.grid_sample(
        volume[None, None].float(),
        grid,
        mode="nearest" if nearest else "bilinear",
        padding_mode="border",
        align_corners=True,
    )[0, 0]
    if not volume.dtype.is_floating_point:
        sampled = sampled.round()
    return sampled.to(volume.dtype)


def _random_crop(volume: Tensor, draws: Sequence[float], side: int) -> Tensor:
    for dim, draw in enumerate(draws):
        room = volume.shape[dim] - side
        if room > 0:
            volume = volume.narrow(dim, int(draw * (room + 1)), side)
    return volume
