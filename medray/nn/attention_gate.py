"""Additive attention gate on a U-Net's skip connection (Oktay et al. 2018, arXiv:1804.03999)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medray.nn.blocks import BlockStyle, Triple, upsample_nearest


class AttentionGate(nn.Module):
    """Weight a skip connection's voxels by what a gate signal finds relevant.

        theta = Conv(F, kernel = stride = reduction, no bias)(x),  F = C / 2
        phi   = upsample(Conv1(F)(g)) to theta's size
        a     = sigmoid(Conv1(1)(activation(theta + phi)))
        out   = norm(Conv1(C)(x * upsample(a)))

    Upsampling repeats voxels. `reduction` is the ratio of x's size to that of the coarser map the
    attention is computed on: 1 where the gate has x's size.
    """

    def __init__(
        self, channels: int, gate_channels: int, style: BlockStyle, *, reduction: Triple
    ) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.theta = nn.Conv3d(channels, inner, reduction, stride=reduction, bias=False)
        self.phi = nn.Conv3d(gate_channels, inner, 1)
        self.psi = nn.Conv3d(inner, 1, 1)
        self.out = nn.Conv3d(channels, channels, 1, bias=style.bias)
        self.norm = style.make_norm(channels)
        self.activation = style.make_activation()

    def forward(
        self, x: Float[Tensor, "b c d h w"], gate: Float[Tensor, "b g e i y"]
    ) -> Float[Tensor, "b c d h w"]:
        """Return the gated skip features, of x's shape."""
        theta = self.theta(x)
        phi = upsample_nearest(self.phi(gate), _size(theta))
        attention = torch.sigmoid(self.psi(self.activation(theta + phi)))
        out: Tensor = self.norm(self.out(x * upsample_nearest(attention, _size(x))))
        return out


def _size(x: Tensor) -> Triple:
    return x.shape[2], x.shape[3], x.shape[4]
