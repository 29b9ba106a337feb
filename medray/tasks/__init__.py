"""The registry of tasks: a name and the module of its recipe, imported when it is asked for."""

import importlib
from typing import Any

from medray.config import unknown_name
from medray.errors import ConfigError
from medray.recipe import Recipe

TASKS: dict[str, str] = {
    "lung_detection": "medray.tasks.lung_detection.recipe",
    "lung_classification": "medray.tasks.lung_classification.recipe",
    "breast_roi": "medray.tasks.breast_roi.recipe",
    "breast_classification": "medray.tasks.breast_classification.recipe",
    "pneumonia_detection": "medray.tasks.pneumonia_detection.recipe",
    "pancreas_segmentation": "medray.tasks.pancreas_segmentation.recipe",
    "pancreas_classification": "medray.tasks.pancreas_classification.recipe",
}


def get_recipe(name: str) -> Recipe[Any]:
    """Return the full-size recipe of a task.

    Raises:
        ConfigError: for an unknown task; the nearest right name is given.
    """
    if name not in TASKS:
        raise ConfigError(unknown_name("task", name, TASKS))
    recipe: Recipe[Any] = importlib.import_module(TASKS[name]).recipe()
    return recipe
