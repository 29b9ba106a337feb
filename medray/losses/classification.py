"""Classification losses, as sums that add over examples and workers, and their value.

The loss is the sum of weight * -log p over the number of examples (not over the sum of weights), as
Keras takes `class_weight`. An example with label -1 has no label: it is in neither sum.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32, Integer
from torch import Tensor
from torch.nn import functional


def cross_entropy_sums(
    logits: Float[Tensor, "b k"],
    labels: Integer[Tensor, " b"],
    *,
    class_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
) -> Float32[Tensor, " 2"]:
    """Return the weighted sum of cross entropies and the number of labelled examples.

    Args:
        logits: before softmax.
        labels: class index, or -1 for none.
        class_weights: weight of an example by its class; () weighs all alike.
        label_smoothing: share of each label spread evenly over all classes.

    Raises:
        ValueError: if shapes, weights or the smoothing do not fit.
    """
    _check_smoothing(label_smoothing)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "logits must be (batch, classes) and labels (batch,), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    classes = logits.shape[1]
    if class_weights and len(class_weights) != classes:
        raise ValueError(f"class_weights must be {classes} numbers, got {tuple(class_weights)}")
    log_probability = functional.log_softmax(logits.float(), dim=1)
    known = labels >= 0
    index = labels.clamp(min=0).long()
    nll = -log_probability.gather(1, index[:, None])[:, 0]
    spread = -log_probability.mean(dim=1)
    loss = (1 - label_smoothing) * nll + label_smoothing * spread
    weights = torch.as_tensor(
        tuple(class_weights) or (1.0,) * classes, dtype=torch.float32, device=logits.device
    )
    return torch.stack([(loss * weights[index] * known).sum(), known.sum().float()])


def binary_sums(
    logits: Float[Tensor, "b 1"],
    labels: Integer[Tensor, " b"],
    *,
    positive_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> Float32[Tensor, " 2"]:
    """Return the weighted sum of binary cross entropies and the number of labelled examples.

    Args:
        logits: of class 1.
        labels: 0 or 1, or -1 for none.
        positive_weight: weight of an example of class 1; one of class 0 weighs 1.
        label_smoothing: share of each label spread evenly over both classes.

    Raises:
        ValueError: if shapes, weight or the smoothing do not fit.
    """
    _check_smoothing(label_smoothing)
    if not positive_weight > 0:
        raise ValueError(f"positive_weight must be > 0, got {positive_weight}")
    if logits.ndim != 2 or logits.shape[1] != 1 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "logits must be (batch, 1) and labels (batch,), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    wide = logits[:, 0].float()
    positive = (labels == 1).float()
    target = (1 - label_smoothing) * positive + label_smoothing / 2
    loss = functional.binary_cross_entropy_with_logits(wide, target, reduction="none")
    weights = 1 + (positive_weight - 1) * positive
    known = labels >= 0
    return torch.stack([(loss * weights * known).sum(), known.sum().float()])


def mean_value(sums: Float32[Tensor, " 2"]) -> Float32[Tensor, ""]:
    """Return the loss that the added sums of all parts amount to; 0 without any label."""
    total, number = sums.unbind()
    return total / number.clamp(min=1)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
