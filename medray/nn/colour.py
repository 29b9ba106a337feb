"""Colours as hue, saturation and value, all in [0, 1]; (batch, 3, height, width)."""

import torch
from jaxtyping import Float
from torch import Tensor


def rgb_to_hsv(rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Return hue (share of the circle), saturation and value; grey has hue 0."""
    value, place = rgb.max(dim=1)
    span = value - rgb.amin(dim=1)
    red, green, blue = rgb.unbind(dim=1)
    safe = torch.where(span > 0, span, 1.0)
    thirds = torch.stack([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe])
    hue = thirds.gather(0, place.unsqueeze(0))[0] / 6 % 1.0
    saturation = span / torch.where(value > 0, value, 1.0)
    return torch.stack([torch.where(span > 0, hue, 0.0), saturation, value], dim=1)


def hsv_to_rgb(hsv: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Return the colours: value x (1 - saturation x clip(|...|)) of each channel."""
    hue, saturation, value = hsv.unbind(dim=1)
    channels = []
    for start in (5.0, 3.0, 1.0):
        sector = (start + 6 * hue) % 6
        channels.append(value * (1 - saturation * torch.minimum(sector, 4 - sector).clamp(0, 1)))
    return torch.stack(channels, dim=1)
