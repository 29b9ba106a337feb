"""Voxel losses of two classes, as sums that add over examples and workers, and their value.

`segmentation_value` of the added `segmentation_sums` of any parts of a batch is the loss of the
whole batch. y is the mask (-1 ignore, 0 background, 1 foreground), p the foreground's probability,
N the number of voxels, ignored ones included, k the weight:

- weighted_ce:   sum of w * -log p(y) over N; w = k where y = 1, 1 where y = 0, 0 where y = -1.
                 Divided by N, not by the sum of w.
- balanced_ce:   the same with w = 1 - N_fg / N where y = 1 and 1 - N_bg / N where y = 0, counted
                 over the whole batch.
- dice:          1 - (2 * sum(p * y) + 1) / (sum(p) + sum(y) + 1), sums over the whole batch.
- weighted_dice: the same with each product and term times 1 + (k - 1) * y: a false negative costs
                 k false positives; k = 1 is dice.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float32, Integer
from torch import Tensor
from torch.nn import functional

SegmentationLoss = Literal["weighted_ce", "balanced_ce", "dice", "weighted_dice"]
# Keeps the Dice of an empty mask defined, and of a small one smooth.
_SMOOTHING = 1.0


def segmentation_sums(
    name: SegmentationLoss,
    logits: Float[Tensor, "b 2 d h w"],
    mask: Integer[Tensor, "b d h w"],
    *,
    weight: float = 1.0,
) -> Float32[Tensor, " k"]:
    """Return a batch's sums for a loss: float32, also of half-precision logits.

    Args:
        name: of the loss.
        logits: before softmax, background first.
        mask: -1 ignore, 0 background, 1 foreground.
        weight: k, of the foreground; at least the weighted losses read it.

    Raises:
        ValueError: for an unknown name, or shapes that do not belong together.
    """
    _check(name, weight)
    if logits.ndim != 5 or logits.shape[1] != 2:
        raise ValueError(
            f"logits must be (batch, 2, depth, height, width), got {tuple(logits.shape)}"
        )
    if mask.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"mask must be (batch, depth, height, width) like the logits' {tuple(logits.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    wide = logits.float()
    # Two-class softmax is the sigmoid of the difference: one exponential, none that overflows.
    difference = wide[:, 1] - wide[:, 0]
    if name in {"dice", "weighted_dice"}:
        return _overlap_sums(difference, mask)
    by_class = _nll_sums(difference, mask)
    if name == "balanced_ce":
        return by_class
    nll_foreground, nll_background, _, _, number = by_class.unbind()
    return torch.stack([weight * nll_foreground + nll_background, number])


def segmentation_value(
    name: SegmentationLoss, sums: Float32[Tensor, " k"], *, weight: float = 1.0
) -> Float32[Tensor, ""]:
    """Return the loss that the sums of a whole batch amount to.

    Args:
        name: of the loss.
        sums: added `segmentation_sums` of all parts, made with the same weight.
        weight: k.

    Raises:
        ValueError: for an unknown name or a weight that is not positive.
    """
    _check(name, weight)
    return _VALUES[name](sums, weight)


def _check(name: str, weight: float) -> None:
    if name not in get_args(SegmentationLoss):
        raise ValueError(
            f"a segmentation loss is one of {', '.join(get_args(SegmentationLoss))}, got {name!r}"
        )
    if not weight > 0:
        raise ValueError(f"weight must be > 0, got {weight}")


def _nll_sums(difference: Tensor, mask: Tensor) -> Tensor:
    """Return sum of -log p over foreground and over background, their counts, and N."""
    foreground, background = mask == 1, mask == 0
    nll_foreground = -functional.logsigmoid(difference) * foreground
    nll_background = -functional.logsigmoid(-difference) * background
    return torch.stack(
        [
            nll_foreground.sum(),
            nll_background.sum(),
            foreground.sum().float(),
            background.sum().float(),
            torch.full_like(difference[:0].sum(), mask.numel()),
        ]
    )


def _overlap_sums(difference: Tensor, mask: Tensor) -> Tensor:
    """Return sum(p * y), sum(p), sum(y); ignored voxels are in none of them."""
    foreground = (mask == 1).float()
    probability = torch.sigmoid(difference) * (mask >= 0)
    return torch.stack(
        [(probability * foreground).sum(), probability.sum(), foreground.sum()],
    )


def _weighted_ce(sums: Tensor, _: float) -> Tensor:
    total, number = sums.unbind()
    return total / number.clamp(min=1)


def _balanced_ce(sums: Tensor, _: float) -> Tensor:
    nll_foreground, nll_background, num_foreground, num_background, number = sums.unbind()
    number = number.clamp(min=1)
    foreground = (1 - num_foreground / number) * nll_foreground
    background = (1 - num_background / number) * nll_background
    return (foreground + background) / number


def _weighted_dice(sums: Tensor, weight: float) -> Tensor:
    both, predicted, true = sums.unbind()
    # sum(w * p) with w = k on the foreground: what lies there counts k - 1 times more.
    weighted = predicted + (weight - 1) * both
    return 1 - (2 * weight * both + _SMOOTHING) / (weighted + weight * true + _SMOOTHING)


def _dice(sums: Tensor, _: float) -> Tensor:
    return _weighted_dice(sums, 1.0)


_VALUES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "weighted_ce": _weighted_ce,
    "balanced_ce": _balanced_ce,
    "dice": _dice,
    "weighted_dice": _weighted_dice,
}
