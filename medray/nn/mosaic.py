"""Augmentation of detectors' frames with their boxes: mosaic, scale, shift, flip, values, colour.

What the published recipe `scratch-low` does, a whole batch at once on its own device. All random
numbers of an example come from its own seed, drawn on the CPU. The three partners of a mosaic come
from the same batch: an example depends on the others it is trained with, and on its seed alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from medray.nn.colour import hsv_to_rgb, rgb_to_hsv

_NUM_DRAWS = 20
_TILES = 4
_LEAST_SIDE_PX, _LEAST_SHARE, _MOST_ASPECT = 2.0, 0.1, 100.0
_FAR = 1e7  # a tile that is not there
_RANGES = {torch.uint8: (0.0, 255.0), torch.int16: (-32768.0, 32767.0)}


@dataclass(frozen=True, kw_only=True, slots=True)
class MosaicAugmentation:
    """How far frames are changed; a strength of 0 is off.

    Attributes:
        mosaic: chance that four frames are put together and a frame's size is cut out.
        scale: sizes are multiplied by 1 - scale .. 1 + scale.
        translate: the middle moves by up to this share of a side.
        flip: chance of a flip left to right.
        flip_rows: chance of a flip upside down.
        gain: values' distance from `fill` is multiplied by 1 - gain .. 1 + gain.
        shift: up to so much is added to the values, in their own unit.
        hsv: colours' hue moves by up to this share of the circle, saturation and value are
            multiplied by 1 - share .. 1 + share; for images of three uint8 channels.
        fill: value beyond the frames.
    """

    mosaic: float = 1.0
    scale: float = 0.5
    translate: float = 0.1
    flip: float = 0.5
    flip_rows: float = 0.0
    gain: float = 0.0
    shift: float = 0.0
    hsv: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fill: float = 114.0

    def __post_init__(self) -> None:
        if not all(0 <= chance <= 1 for chance in (self.mosaic, self.flip, self.flip_rows)):
            raise ValueError("mosaic, flip and flip_rows must lie in [0, 1]")
        if not all(0 <= share < 1 for share in (self.scale, self.translate, self.gain)):
            raise ValueError("scale, translate and gain must lie in [0, 1)")
        if self.shift < 0 or not all(0 <= share <= 1 for share in self.hsv):
            raise ValueError("shift must be >= 0, the shares of hsv in [0, 1]")


@dataclass(frozen=True, slots=True)
class Boxed:
    """Frames and the boxes on them.

    Attributes:
        image: (B, C, H, W).
        boxes: (B, M, 4) xyxy in pixels, padded with zeros.
        num_boxes: (B,).
        labels: (B, M), padded with zeros.
    """

    image: Tensor
    boxes: Float[Tensor, "b m 4"]
    num_boxes: Int64[Tensor, " b"]
    labels: Int64[Tensor, "b m"]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where everything goes: out = (tile + offset - middle) * factor + target, then the flips."""

    sources: Int64[Tensor, "b 4"]
    offsets: Float[Tensor, "b 4 2"]
    factor: Float[Tensor, "b 1"]
    target: Float[Tensor, "b 2"]
    flips: Bool[Tensor, "b 2"]
    num_tiles: int


def augment_boxed(batch: Boxed, seeds: Sequence[int], how: MosaicAugmentation) -> Boxed:
    """Return the batch, each example changed by the numbers of its seed; the types are kept."""
    draws = torch.stack([_draw(seed) for seed in seeds])
    height, width = batch.image.shape[-2:]
    size = torch.tensor([width, height], dtype=torch.float64)
    plan = _plan(draws, how, size, batch.image.device)
    moved = _move_boxes(batch, plan, size.to(batch.boxes))
    image = _sample(batch.image.float() - how.fill, plan) + how.fill
    image = _change_values(image, draws[:, 14:17].to(image.device), how)
    if batch.image.dtype in _RANGES:
        image = image.round().clamp(*_RANGES[batch.image.dtype])
    return Boxed(image.to(batch.image.dtype), *moved)


def _draw(seed: int) -> Tensor:
    """Return the example's numbers in [0, 1); always as many, whatever is switched on."""
    generator = torch.Generator().manual_seed(int(seed) % (1 << 63))
    return torch.rand(_NUM_DRAWS, generator=generator, dtype=torch.float64)


def _plan(draws: Tensor, how: MosaicAugmentation, size: Tensor, device: torch.device) -> _Plan:
    number = len(draws)
    mosaic = draws[:, 0] < how.mosaic
    own = torch.arange(number)
    partners = torch.cat([own[:, None], (draws[:, 1:4] * number).long()], dim=1)
    order = draws[:, 4:8].argsort(dim=1)
    sources = torch.where(mosaic[:, None], partners.gather(1, order), own[:, None])
    joint = (0.5 + draws[:, 8:10]) * size
    corners = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=size.dtype)
    offsets = joint[:, None] - corners * size
    alone = torch.full((_TILES, 2), _FAR, dtype=size.dtype)
    alone[0] = size / 2
    offsets = torch.where(mosaic[:, None, None], offsets, alone)
    middle = size
    factor = 1 + how.scale * (2 * draws[:, 10:11] - 1)
    target = (0.5 + how.translate * (2 * draws[:, 11:13] - 1)) * size
    flips = torch.stack([draws[:, 13] < how.flip, draws[:, 17] < how.flip_rows], dim=1)
    return _Plan(
        sources=sources.to(device),
        offsets=(offsets - middle).float().to(device),
        factor=factor.float().to(device),
        target=target.float().to(device),
        flips=flips.to(device),
        num_tiles=_TILES if bool(mosaic.any()) else 1,
    )


def _sample(image: Tensor, plan: _Plan) -> Tensor:
    """Return the frames, 0 where no tile lies, by linear interpolation."""
    out = torch.zeros_like(image)
    sides = [_places(axis, image.shape[-1 - axis], plan) for axis in (0, 1)]
    for tile in range(plan.num_tiles):
        grids, inside = [], []
        for axis, place in enumerate(sides):
            length = image.shape[-1 - axis]
            own = place - plan.offsets[:, tile, axis : axis + 1]
            # a mosaic's canvas has twice the sides of a frame; what lies beyond it is cut off
            inside.append((own >= 0) & (own <= length) & (place.abs() <= length))
            grids.append((own * (2 / length) - 1).clamp(-2, 2))
        x, y = grids
        across = x[:, None, :].expand(-1, y.shape[1], -1)
        down = y[:, :, None].expand(-1, -1, x.shape[1])
        grid = torch.stack([across, down], dim=-1)
        covered = (inside[0][:, None, :] & inside[1][:, :, None])[:, None]
        sampled = functional.grid_sample(
            image[plan.sources[:, tile]], grid, padding_mode="border", align_corners=False
        )
        out = torch.where(covered, sampled, out)
    return out


def _places(axis: int, length: int, plan: _Plan) -> Tensor:
    """Return (B, length): where on the canvas, from its middle, each output pixel is taken from."""
    out = torch.arange(length, device=plan.target.device, dtype=torch.float32) + 0.5
    pixel = torch.where(plan.flips[:, axis : axis + 1], length - out, out)
    return (pixel - plan.target[:, axis : axis + 1]) / plan.factor


def _move_boxes(batch: Boxed, plan: _Plan, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the boxes, their number and their labels: those of all tiles that are still seen."""
    tiles = plan.sources[:, : plan.num_tiles]
    most = batch.boxes.shape[1]
    there = torch.arange(most, device=tiles.device) < batch.num_boxes[tiles].unsqueeze(-1)
    offsets = plan.offsets[:, : plan.num_tiles, None].repeat(1, 1, 1, 2)
    on_canvas = (batch.boxes[tiles] + offsets).clamp(-size.repeat(2), size.repeat(2))
    moved = on_canvas.flatten(1, 2) * plan.factor[:, None] + plan.target.repeat(1, 2)[:, None]
    before = moved
    moved = moved.clamp(torch.zeros_like(size).repeat(2), size.repeat(2))
    flipped = size.repeat(2) - moved[..., [2, 3, 0, 1]]
    moved = torch.where(plan.flips.repeat(1, 2)[:, None], flipped, moved)
    seen = there.flatten(1) & _is_seen(before, moved)
    order = (~seen).long().argsort(dim=1, stable=True)
    number = seen.sum(dim=1)
    keep = max(int(number.max()), 1)
    order = order[:, :keep]
    padding = torch.arange(keep, device=order.device) >= number[:, None]
    boxes = moved.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    labels = batch.labels[tiles].flatten(1).gather(1, order)
    return (
        boxes.masked_fill(padding.unsqueeze(-1), 0.0),
        number,
        labels.masked_fill(padding, 0),
    )


def _is_seen(before: Tensor, after: Tensor) -> Tensor:
    """Tell which boxes have kept sides of more than 2 pixels and a tenth of their area."""
    whole = (before[..., 2:] - before[..., :2]).prod(dim=-1)
    sides = after[..., 2:] - after[..., :2]
    longest, shortest = sides.amax(dim=-1), sides.amin(dim=-1)
    share = sides.prod(dim=-1) / (whole + 1e-9)
    aspect = longest / (shortest + 1e-9)
    return (shortest > _LEAST_SIDE_PX) & (share > _LEAST_SHARE) & (aspect < _MOST_ASPECT)


def _change_values(image: Tensor, draws: Tensor, how: MosaicAugmentation) -> Tensor:
    signs = (2 * draws - 1).to(image.dtype).view(-1, 3, 1, 1)
    if any(how.hsv):
        hsv = rgb_to_hsv(image.clamp(0, 255) / 255)
        hue = (hsv[:, :1] + how.hsv[0] * signs[:, :1]) % 1.0
        share = torch.tensor(how.hsv[1:], device=image.device).view(1, 2, 1, 1)
        rest = (hsv[:, 1:] * (1 + share * signs[:, 1:])).clamp(0, 1)
        image = hsv_to_rgb(torch.cat([hue, rest], dim=1)) * 255
    if how.gain or how.shift:
        image = (image - how.fill) * (1 + how.gain * signs[:, :1]) + how.fill
        image = image + how.shift * signs[:, 1:2]
    return image
