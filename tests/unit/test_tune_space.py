"""What `--space` says, what it refuses, and the points that follow from it."""

import numpy as np
import pytest

from medray.engine.tune_space import (
    axis_values,
    grid_points,
    inference_space,
    position,
    random_points,
    training_space,
)
from medray.errors import ConfigError
from medray.learning import Choice, LogUniform, Uniform
from medray.tasks import TASKS, get_recipe

MASKS = get_recipe("pancreas_segmentation")


def of(*texts: str):
    return training_space(MASKS, MASKS.tiny_hparams, texts)


def test_without_a_word_the_recipes_space_is_swept():
    assert of() == dict(MASKS.learning.search_space)


def test_named_parameters_are_swept_alone():
    space = of("dice_weight=choice(1,7,10)", "lr")
    assert space == {
        "dice_weight": Choice((1.0, 7.0, 10.0)),
        "lr": MASKS.learning.search_space["lr"],
    }


def test_ranges_and_types_are_read():
    assert of("lr=loguniform(1e-4, 1e-2)") == {"lr": LogUniform(1e-4, 1e-2)}
    assert of("flip=uniform(0,0.5)") == {"flip": Uniform(0.0, 0.5)}
    assert of("batch_size=choice(1,2)") == {"batch_size": Choice((1, 2))}
    assert of("filters=choice([4,8],[8,16])") == {"filters": Choice(((4, 8), (8, 16)))}
    assert of("loss=choice(dice, weighted_ce)") == {"loss": Choice(("dice", "weighted_ce"))}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dice_wieght=choice(1,7)", "did you mean 'dice_weight'"),
        ("lr=loguniform(1e-2,1e-4)", "the range from 0.01 to 0.0001 is empty"),
        ("lr=uniform(1e-3,1e-3)", "is empty"),
        ("lr=loguniform(0,1e-2)", "begins above 0"),
        ("lr=choice()", "choice\\(\\) is empty"),
        ("lr=1e-3", "must be choice"),
        ("lr=gauss(0,1)", "must be choice"),
        ("lr=uniform(1e-3)", "needs two ends"),
        ("lr=uniform(a,b)", "lr must be a float, got 'a'"),
        ("lr=loguniform(1e-4,inf)", "lr must be a float"),
        ("batch_size=uniform(1,4)", "say --space batch_size=choice"),
        ("loss=choice(dice,dise)", "loss must be one of"),
        ("flip=uniform(0,2)", "flip must lie in 0..1"),
        ("size=choice(32,48)", "the data were prepared with one size"),
        ("weight_decay", "the recipe has no range of weight_decay"),
    ],
)
def test_a_wrong_space_is_one_clear_line(text, said):
    with pytest.raises(ConfigError, match=said):
        of(text)


def test_inference_parameters_are_named_too():
    assert set(inference_space(MASKS, [])) == {"threshold", "parts"}
    assert inference_space(MASKS, ["threshold=uniform(0.2,0.4)"]) == {
        "threshold": Uniform(0.2, 0.4)
    }
    with pytest.raises(ConfigError, match="did you mean 'threshold'"):
        inference_space(MASKS, ["treshold=uniform(0.2,0.4)"])


def test_a_parameter_that_not_every_model_has_is_swept_only_where_it_is_named():
    joint = get_recipe("pancreas_classification")
    assert set(inference_space(joint, [])) == {"threshold"}
    assert len(inference_space(joint, ["mask_threshold"])["mask_threshold"].values) == 31


@pytest.mark.parametrize("task", TASKS)
def test_the_spaces_of_every_task_hold(task):
    recipe = get_recipe(task)
    for hparams in (recipe.hparams, recipe.tiny_hparams):
        assert training_space(recipe, hparams, [])
    assert grid_points(inference_space(recipe, []))
    known = recipe.learning.metrics([], {})
    assert recipe.learning.objective.metric in known


def test_a_grid_is_every_combination():
    space = {"a": Choice((1, 2)), "b": LogUniform(1e-4, 1e-2)}
    points = grid_points(space)
    assert len(points) == 10
    assert points[0] == {"a": 1, "b": 1e-4}
    assert axis_values(space["b"])[2] == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match="narrow it"):
        grid_points({str(n): Uniform(0, 1) for n in range(8)})


def test_random_points_grow_without_changing():
    space = {"a": Uniform(0, 1), "b": LogUniform(1e-4, 1e-2), "c": Choice(("x", "y"))}
    long = random_points(space, 20, seed=3)
    assert random_points(space, 7, seed=3) == long[:7]
    assert random_points(space, 7, seed=4) != long[:7]
    assert all(1e-4 <= p["b"] <= 1e-2 and 0 <= p["a"] <= 1 for p in long)
    logs = np.log10([p["b"] for p in random_points(space, 200, seed=0)])
    assert np.median(logs) == pytest.approx(-3, abs=0.3)


def test_a_small_space_is_not_drawn_twice():
    points = random_points({"a": Choice((1, 2, 3))}, 10, seed=0)
    assert sorted(p["a"] for p in points) == [1, 2, 3]


def test_places_in_a_range():
    assert position(Choice(("a", "b", "c")), "b") == 0.5
    assert position(LogUniform(1e-4, 1e-2), 1e-3) == pytest.approx(0.5)
    assert position(Uniform(2, 4), 3.0) == 0.5
