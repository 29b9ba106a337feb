"""Packages of small networks for tests, made without Ray and without training."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from medray.engine.checkpoint import WEIGHTS, Checkpoint
from medray.engine.package import Training, write_package
from medray.engine.prepared import open_prepared
from medray.engine.train_options import TrainOptions, Workers
from medray.recipe import Prepared, Recipe
from medray.tasks import get_recipe
from tests.prepared_data import write_prepared


def tiny(task: str, **changes: Any) -> tuple[Recipe[Any], Any]:
    """Return a recipe and hyperparameters of seconds."""
    recipe = get_recipe(task)
    return recipe, dataclasses.replace(recipe.tiny_hparams, **{"size": 16, **changes})


def training_of(recipe: Recipe[Any], hparams: Any, data: Path) -> Training:
    """Return what a package says of its training."""
    return Training(
        recipe=recipe,
        hparams=hparams,
        options=TrainOptions(),
        workers=Workers(num_workers=0),
        prepared=open_prepared(str(data), recipe),
        gates="on",
    )


def fresh_package(
    out: Path,
    recipe: Recipe[Any],
    hparams: Any,
    examples: dict[str, list[Prepared]],
    inference: dict[str, Any],
    **facts: Any,
) -> str:
    """Write the package of an untrained network and return the URI of its run.

    Args:
        facts: of the run.json of its prepared data, e.g. `upstream`.
    """
    data = write_prepared(out / "data", recipe, hparams, examples, **facts)
    torch.manual_seed(0)
    weights = save(recipe.model(hparams).state_dict())
    best = {"inference": inference, "metrics": {}, "value": None, "epoch": 1}
    checkpoint = Checkpoint(
        name="epoch-000001", blobs={WEIGHTS: weights}, state={"epoch": 1, "best": best}
    )
    write_package(str(out), training_of(recipe, hparams, data), checkpoint)
    return str(out)
