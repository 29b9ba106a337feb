"""Augmentation of images and their boxes on their own device, a whole batch at once.

All random numbers of an example come from its own seed, drawn on the CPU, so that the result is the
same on any device, in any batch and on any worker.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_NUM_DRAWS = 20
_MAX_HOLES = 32
# A box of which less is left in the frame marks nothing that could be found.
_LEAST_VISIBLE = 0.25
_BLUR_REACH = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation2d:
    """How far images are changed; a strength of 0 is off.

    Attributes:
        flip: chance of a flip left to right.
        flip_vertical: chance of a flip upside down.
        affine: chance of scale, turn and shift together.
        scale: the size is multiplied by 1 - scale .. 1 + scale.
        rotate_deg: turned by up to so many degrees.
        shift_y, shift_x: moved by up to this share of the side.
        holes: chance of up to `max_holes` black squares of `hole_px`.
        max_holes: at most 32.
        hole_px: side of a square.
        blur: chance of a Gaussian blur with a standard deviation of up to 2 px.
        gamma: chance of a gamma within 1 - gamma_range .. 1 + gamma_range.
        gamma_range: see there.
        tone: chance of another brightness and contrast.
        tone_range: both change by up to this share of the whole range.
    """

    flip: float = 0.0
    flip_vertical: float = 0.0
    affine: float = 0.0
    scale: float = 0.0
    rotate_deg: float = 0.0
    shift_y: float = 0.0
    shift_x: float = 0.0
    holes: float = 0.0
    max_holes: int = _MAX_HOLES
    hole_px: int = 8
    blur: float = 0.0
    gamma: float = 0.0
    gamma_range: float = 0.2
    tone: float = 0.0
    tone_range: float = 0.2

    def __post_init__(self) -> None:
        chances = ("flip", "flip_vertical", "affine", "holes", "blur", "gamma", "tone")
        for name in chances:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("scale", "shift_y", "shift_x", "gamma_range", "tone_range"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.rotate_deg <= 180:
            raise ValueError(f"rotate_deg must lie in [0, 180], got {self.rotate_deg}")
        if not (0 <= self.max_holes <= _MAX_HOLES and self.hole_px >= 1):
            raise ValueError(f"max_holes must lie in 0..{_MAX_HOLES} and hole_px be >= 1")


@dataclass(frozen=True, slots=True)
class Moved:
    """Images (B, C, H, W) of the given type, boxes (B, M, 4) and their classes, padded by zeros.

    Attributes:
        boxes: empty where none were given.
        labels: of the boxes, in their order.
        num_boxes: (B,) how many of them are left.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    num_boxes: Tensor


def augment_images(images: Tensor, seeds: Sequence[int], how: Augmentation2d) -> Tensor:
    """Return the images (B, C, H, W) changed by the numbers of their seeds; the type is kept.

    What comes in from beyond the border is black. Zero stays zero under changes of tone: it is
    background.
    """
    draws = torch.stack([_draw(seed) for seed in seeds])
    values = images.float() / _full(images)
    if _moves(how):
        values = _warp(values, _matrices(draws, how, images.shape[-2:]))
    values = _tone(values, draws, how)
    if how.holes:
        values = _punched(values, draws, seeds, how)
    scaled = values.clamp(0, 1) * _full(images)
    return (scaled if images.dtype.is_floating_point else scaled.round()).to(images.dtype)


def augment_with_boxes(
    images: Tensor,
    boxes: Float[Tensor, "b m 4"],
    labels: Tensor,
    num_boxes: Tensor,
    *,
    seeds: Sequence[int],
    how: Augmentation2d,
) -> Moved:
    """Return images and boxes moved together.

    A box follows the ellipse in it, which a turn does not blow up. Boxes are cut at the frame; one
    of which less than a quarter is left is dropped.
    """
    changed = augment_images(images, seeds, how)
    if not _moves(how):
        return Moved(changed, boxes, labels, num_boxes)
    draws = torch.stack([_draw(seed) for seed in seeds])
    height, width = images.shape[-2:]
    matrix = _matrices(draws, how, (height, width))
    linear = torch.linalg.inv(matrix[:, :, :2])
    middle = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    linear, shift = linear.to(boxes), matrix[:, :, 2].to(boxes)
    middle = middle.to(boxes)
    center = (boxes[..., :2] + boxes[..., 2:]) / 2 - middle - shift[:, None]
    center = (center[:, :, None, :] * linear[:, None]).sum(dim=-1) + middle
    half = (boxes[..., 2:] - boxes[..., :2]) / 2
    reach = (half[:, :, None, :] * linear[:, None]).square().sum(dim=-1).sqrt()
    whole = torch.cat([center - reach, center + reach], dim=-1)
    limit = torch.tensor([width, height, width, height]).to(boxes)
    cut = torch.minimum(whole.clamp(min=0), limit)
    real = torch.arange(boxes.shape[1], device=boxes.device)[None] < num_boxes[:, None]
    keep = real & (_area(cut) >= _LEAST_VISIBLE * _area(whole)) & (_area(cut) > 0)
    order = torch.argsort((~keep).to(torch.int8), dim=1, stable=True)
    kept = keep.gather(1, order)
    moved = cut.gather(1, order[..., None].expand(-1, -1, 4)) * kept[..., None]
    return Moved(changed, moved, labels.gather(1, order) * kept, keep.sum(dim=1))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def _full(images: Tensor) -> float:
    return 1.0 if images.dtype.is_floating_point else float(torch.iinfo(images.dtype).max)


def _draw(seed: int) -> Tensor:
    """Return the example's numbers in [0, 1); always as many, whatever is switched on."""
    generator = torch.Generator().manual_seed(int(seed) % (1 << 63))
    return torch.rand(_NUM_DRAWS, generator=generator, dtype=torch.float64)


def _moves(how: Augmentation2d) -> bool:
    return bool(how.flip or how.flip_vertical or how.affine)


def _matrices(draws: Tensor, how: Augmentation2d, shape_yx: Sequence[int]) -> Tensor:
    """Return (B, 2, 3), xy: from a place in the output, px from the middle, to where it is from."""
    height, width = shape_yx
    on = (draws[:, 2] < how.affine).double()
    size = 1 + on * how.scale * (2 * draws[:, 3] - 1)
    angle = on * math.radians(how.rotate_deg) * (2 * draws[:, 4] - 1)
    mirrored = 1 - 2 * (draws[:, 0] < how.flip).double()
    upset = 1 - 2 * (draws[:, 1] < how.flip_vertical).double()
    cos, sin = angle.cos() / size, angle.sin() / size
    shift_x = on * how.shift_x * width * (2 * draws[:, 5] - 1)
    shift_y = on * how.shift_y * height * (2 * draws[:, 6] - 1)
    first = torch.stack([cos * mirrored, -sin * upset, shift_x], dim=1)
    second = torch.stack([sin * mirrored, cos * upset, shift_y], dim=1)
    return torch.stack([first, second], dim=1)


def _warp(values: Tensor, matrix: Tensor) -> Tensor:
    """Sample (B, C, H, W) at the places that the matrices say; black beyond the border."""
    height, width = values.shape[-2:]
    matrix = matrix.to(values)
    x = torch.arange(width, device=values.device, dtype=values.dtype) - (width - 1) / 2
    y = torch.arange(height, device=values.device, dtype=values.dtype) - (height - 1) / 2
    planes = [
        (row[:, 0, None, None] * x + row[:, 1, None, None] * y[:, None] + row[:, 2, None, None])
        * (2 / side)
        for row, side in ((matrix[:, 0], width), (matrix[:, 1], height))
    ]
    grid = torch.stack(planes, dim=-1)
    return functional.grid_sample(
        values, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def _tone(values: Tensor, draws: Tensor, how: Augmentation2d) -> Tensor:
    """Change blur, gamma, brightness and contrast of values in [0, 1]."""
    if how.blur:
        deviation = (draws[:, 7] < how.blur) * 2 * draws[:, 8]
        values = _blurred(values, deviation)
    if not (how.gamma or how.tone):
        return values
    gamma = 1 + (draws[:, 9] < how.gamma) * how.gamma_range * (2 * draws[:, 10] - 1)
    on = (draws[:, 11] < how.tone) * how.tone_range
    contrast, brightness = 1 + on * (2 * draws[:, 12] - 1), on * (2 * draws[:, 13] - 1)
    gamma, contrast, brightness = (
        one.to(values)[:, None, None, None] for one in (gamma, contrast, brightness)
    )
    changed = values.clamp(min=0) ** gamma
    middle = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed = (changed - middle) * contrast + middle + brightness
    return torch.where(values > 0, changed.clamp(0, 1), values)


def _blurred(values: Tensor, deviation: Tensor) -> Tensor:
    """Return (B, C, H, W) blurred by each example's standard deviation in px; 0 leaves it."""
    batch, channels, height, width = values.shape
    places = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1, dtype=torch.float64)
    kernel = torch.exp(-((places / deviation.clamp(min=1e-3)[:, None]) ** 2) / 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(values)
    kernel = kernel.repeat_interleave(channels, dim=0)[:, None, None, :]
    stacked = values.reshape(1, batch * channels, height, width)
    sides = (_BLUR_REACH, _BLUR_REACH, 0, 0)
    for one, pads in ((kernel, sides), (kernel.transpose(2, 3), (*sides[2:], *sides[:2]))):
        padded = functional.pad(stacked, pads, mode="replicate")
        stacked = functional.conv2d(padded, one, groups=batch * channels)
    return stacked.reshape(values.shape)


def _punched(values: Tensor, draws: Tensor, seeds: Sequence[int], how: Augmentation2d) -> Tensor:
    """Set random squares to 0."""
    height, width = values.shape[-2:]
    covered = torch.ones(len(seeds), height, width, device=values.device, dtype=torch.bool)
    for index, seed in enumerate(seeds):
        if draws[index, 14] >= how.holes:
            continue
        generator = torch.Generator().manual_seed(int(seed) % (1 << 63) ^ 1)
        places = torch.rand(_MAX_HOLES, 2, generator=generator, dtype=torch.float64)
        for y, x in places[: int(draws[index, 15] * (how.max_holes + 1))].tolist():
            top, left = int(y * height), int(x * width)
            covered[index, top : top + how.hole_px, left : left + how.hole_px] = False
    return values * covered[:, None]
