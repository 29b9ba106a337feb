"""Every full-size preset makes two real optimiser steps; only the image is small here."""

from typing import Any

import numpy as np
import pytest
import torch

from medray.config import override
from medray.tasks import get_recipe

# A side that fits the networks' strides; parameters are those of the full size, where a head is
# not bound to the image.
PRESETS = [
    ("pancreas_segmentation", 32, ()),
    ("pancreas_segmentation", 16, ("network=g1", "loss=weighted_dice")),
    ("pancreas_segmentation", 32, ("network=g2", "loss=weighted_ce")),
    ("pancreas_classification", 32, ()),
    ("pancreas_classification", 32, ("joint=true",)),
    ("pancreas_classification", 32, ("compat=original",)),
    ("lung_classification", 32, ()),
    ("lung_classification", 64, ("network=original", "compat=original", "schedule=plateau")),
]


def _batch(size: int, num_classes: int) -> dict[str, torch.Tensor]:
    """Return two volumes of random tissue, each with a cube of another kind in it."""
    rng = np.random.default_rng(0)
    mask = np.zeros((2, size, size, size), np.uint8)
    mask[:, size // 4 : size // 2, size // 4 : size // 2, size // 3 :] = 1
    image = rng.normal(0, 60, mask.shape) + 120 * mask
    return {
        "image": torch.from_numpy(image.astype(np.int16)),
        "mask": torch.from_numpy(mask),
        "label": torch.tensor([0, num_classes - 1]),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "size", "settings"), PRESETS, ids=lambda value: str(value).replace(" ", "")
)
def test_two_steps_move_every_weight(task: str, size: int, settings: tuple[str, ...]) -> None:
    recipe = get_recipe(task)
    learning = recipe.learning
    hp: Any = override(recipe.hparams, [f"size={size}", *settings])
    torch.manual_seed(0)
    network = learning.model(hp).train()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    batch = _batch(size, len(recipe.class_names_of(hp)) or 2)
    optimizer = learning.optimizer(network, hp)
    losses = []
    for step in range(2):
        taken = learning.augment(batch, [step, step + 10], hp)
        outputs = network(learning.inputs(taken, hp))
        loss = learning.loss_value(learning.loss_sums(outputs, taken, hp), hp)
        if learning.penalty is not None:
            loss = loss + learning.penalty(network, hp)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
    still = [n for n, p in network.named_parameters() if torch.equal(p, before[n])]
    assert not still, f"two steps left these as they were: {still[:5]}"
