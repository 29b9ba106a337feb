"""Focal losses of one logit, as sums that add over examples and workers, and their values.

`focal` is Lin et al. 2017 (arXiv:1708.02002), per example. `focal_batch` is what one published
system trained with: the focal weight is made of the batch's mean cross-entropy m, alpha x
(1 - e^-m)^gamma x m. It is no sum over examples, but it is a function of two sums: take those of
`classification.binary_sums` and let `focal_batch_value` apply it once to the mean over all examples
of a step. Two workers then are one with the doubled batch; the original, on one device, is met
exactly.
"""

import torch
from jaxtyping import Float, Float32, Integer
from torch import Tensor
from torch.nn import functional


def focal_sums(
    logits: Float[Tensor, "b 1"],
    labels: Integer[Tensor, " b"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float32[Tensor, " 2"]:
    """Return the sum of -alpha_t (1 - p_t)^gamma log p_t and the number of labelled examples.

    Args:
        logits: of class 1.
        labels: 0 or 1, or -1 for none.
        alpha: weight of class 1; class 0 weighs 1 - alpha. 0 weighs both 1.
        gamma: how far easy examples are discounted; 0 is the cross-entropy.

    Raises:
        ValueError: if shapes or numbers do not fit.
    """
    _check_numbers(alpha, gamma)
    if alpha >= 1:
        raise ValueError(f"alpha must lie below 1, got {alpha}")
    if logits.ndim != 2 or logits.shape[1] != 1 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "logits must be (batch, 1) and labels (batch,), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    wide, positive = logits[:, 0].float(), labels == 1
    toward_truth = torch.where(positive, wide, -wide)
    # sigmoid(-x) is 1 - sigmoid(x) without its rounding, and its log never is that of 0.
    loss = -functional.logsigmoid(toward_truth)
    if gamma:
        loss = loss * torch.exp(gamma * functional.logsigmoid(-toward_truth))
    if alpha:
        loss = loss * torch.where(positive, alpha, 1 - alpha)
    known = labels >= 0
    return torch.stack([(loss * known).sum(), known.sum().float()])


def focal_batch_value(
    sums: Float32[Tensor, " 2"], *, alpha: float = 1.0, gamma: float = 1.0
) -> Float32[Tensor, ""]:
    """Return alpha (1 - e^-m)^gamma m of the mean cross-entropy m; 0 without any label.

    Args:
        sums: of `classification.binary_sums`, added over all parts.
        alpha: factor, 1 in the original.
        gamma: exponent, 1 in the original.

    Raises:
        ValueError: if a number does not fit.
    """
    _check_numbers(alpha, gamma)
    total, number = sums.unbind()
    mean = total / number.clamp(min=1)
    value: Tensor = alpha * (-torch.expm1(-mean)) ** gamma * mean
    return value


def _check_numbers(alpha: float, gamma: float) -> None:
    if alpha < 0 or gamma < 0:
        raise ValueError(f"alpha and gamma must be >= 0, got {alpha} and {gamma}")
