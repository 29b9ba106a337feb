"""Heads that turn a feature volume into one vector of logits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medray.nn.blocks import Triple
from medray.nn.initial import glorot_uniform


class PooledNorm(nn.Module):
    """Batch norm of pooled features; a batch of one example is normed by what was seen so far.

    A small finding moves the mean over a large volume by a thousandth of what it is: without a
    norm the linear layer would need weights that it never reaches.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(num_features)

    def forward(self, features: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """Return the normed features."""
        if self.training and features.shape[0] == 1:
            mean, variance = self.norm.running_mean, self.norm.running_var
            weight, bias = self.norm.weight, self.norm.bias
            return functional.batch_norm(features, mean, variance, weight, bias, eps=self.norm.eps)
        out: Tensor = self.norm(features)
        return out


class PoolHead(nn.Module):
    """Mean and maximum of each channel, dropout, one linear layer; for any size of volume."""

    def __init__(
        self, channels: int, num_outputs: int, *, dropout: float, norm: bool = False
    ) -> None:
        super().__init__()
        self.norm: nn.Module = PooledNorm(2 * channels) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * channels, num_outputs)
        glorot_uniform(self)

    def forward(self, features: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k"]:
        """Return the logits."""
        axes = (2, 3, 4)
        pooled = torch.cat([features.mean(dim=axes), features.amax(dim=axes)], dim=1)
        logits: Tensor = self.linear(self.dropout(self.norm(pooled)))
        return logits


class FlattenHead(nn.Module):
    """One linear layer on all features; bound to one size of volume."""

    def __init__(
        self, channels: int, num_outputs: int, *, size_zyx: Triple, dropout: float
    ) -> None:
        super().__init__()
        self.size_zyx = size_zyx
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels * math.prod(size_zyx), num_outputs)
        glorot_uniform(self)

    def forward(self, features: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k"]:
        """Return the logits.

        Raises:
            ValueError: if the features are not of the size the head was made for.
        """
        size = tuple(features.shape[2:])
        if size != self.size_zyx:
            raise ValueError(
                f"a flatten head made for features of size {self.size_zyx} got {size}; give images "
                "of the configured size, or take the pool head"
            )
        logits: Tensor = self.linear(self.dropout(features.flatten(1)))
        return logits
