"""Stored values to a network's input range, on the tensors' device."""

import torch
from jaxtyping import Float32
from torch import Tensor


def window(
    image: Tensor, *, low: float, high: float, out_low: float, out_high: float
) -> Float32[Tensor, "*shape"]:
    """Map [low, high] to [out_low, out_high] linearly; values outside saturate."""
    share = (image.float().clamp(low, high) - low) / (high - low)
    return share * (out_high - out_low) + out_low


def min_max(image: Tensor, *, out_low: float, out_high: float) -> Float32[Tensor, "b d h w"]:
    """Map each volume's own range to [out_low, out_high]; a constant volume becomes out_low."""
    values = image.float()
    least = values.amin(dim=(1, 2, 3), keepdim=True)
    span = values.amax(dim=(1, 2, 3), keepdim=True) - least
    share = (values - least) / torch.where(span > 0, span, 1.0)
    return share * (out_high - out_low) + out_low


def pad_to_multiple(volume: Tensor, stride: tuple[int, int, int], *, value: float) -> Tensor:
    """Return (..., D, H, W) made longer at the far ends until the stride divides its sizes."""
    missing = [-size % step for size, step in zip(volume.shape[-3:], stride, strict=True)]
    if not any(missing):
        return volume
    depth, height, width = missing
    return torch.nn.functional.pad(volume, (0, width, 0, height, 0, depth), value=value)
