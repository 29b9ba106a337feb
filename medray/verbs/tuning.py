"""The verb that sweeps: tune, by training or on predictions that are made once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from medray import storage
from medray.errors import ConfigError
from medray.verbs.models import PreparedUri, checked_training
from medray.verbs.options import (
    Address,
    AsJson,
    Debug,
    Epochs,
    Gpu,
    NumWorkers,
    Out,
    Quiet,
    Settings,
    Task,
    Tiny,
    conclude,
    with_epochs,
    with_ray,
)

_SEARCHES = ("tpe", "random", "grid")
_STOPPERS = ("asha", "median", "none")
_TRIALS, _POINTS = 16, 200

Inference = Annotated[bool, typer.Option("--inference", help="Of a model, without training.")]
Model = Annotated[str, typer.Option("--model", help="model/ or the --out above it.")]
Trials = Annotated[
    int,
    typer.Option(
        "--trials", min=0, help="At most; 0: 16 trainings, 200 random points, or the whole grid."
    ),
]
Concurrent = Annotated[int, typer.Option("--concurrent", min=0, help="Trials at once; 0: as fit.")]
Spaces = Annotated[
    list[str] | None,
    typer.Option("--space", help="name=loguniform(1e-4,1e-2), or name."),
]
Search = Annotated[str, typer.Option("--search", help="tpe, random or grid.")]
Stop = Annotated[str, typer.Option("--stop", help="asha, median or none.")]
Metric = Annotated[str, typer.Option("--metric", help="name, or name:min.")]
TimeBudget = Annotated[float, typer.Option("--time-budget", min=0, help="Seconds; 0: none.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the search.")]


def tune(
    task: Task,
    data: PreparedUri,
    out: Out,
    inference: Inference = False,
    model: Model = "",
    trials: Trials = 0,
    concurrent: Concurrent = 0,
    space: Spaces = None,
    search: Search = "",
    stop: Stop = "asha",
    metric: Metric = "",
    time_budget: TimeBudget = 0,
    seed: Seed = 0,
    num_workers: NumWorkers = 1,
    gpu: Gpu = False,
    epochs: Epochs = 0,
    set_: Settings = None,
    tiny: Tiny = False,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Sweep hyperparameters by Ray Tune; a killed sweep goes on without its finished trials.

    Example: medray tune pancreas_segmentation --data /data/prepared --out /data/tune --tiny
    """
    wanted = Wanted(tuple(space or ()), trials, concurrent, search, stop, metric, time_budget, seed)
    settings = with_epochs(set_, epochs)
    if inference:
        extra = [*settings, *(["--tiny"] if tiny else [])]
        action = _inference(task, data, model, wanted, gpu=gpu, extra=extra)
    elif model:
        raise ConfigError("--model is for --inference")
    else:
        base = checked_training(task, data, settings, tiny=tiny, num_workers=num_workers, gpu=gpu)
        action = _training(base, wanted, given=[text.partition("=")[0] for text in settings])
    _refuse_foreign_state(out)
    summary = with_ray(
        lambda: action(out, quiet=quiet), address=address, debug=debug, trains=not inference
    )
    _print_best(summary, out, quiet=quiet)
    conclude(summary, out, as_json=as_json, quiet=quiet)


def _refuse_foreign_state(out: str) -> None:
    """Refuse it before Ray starts.

    Raises:
        ConfigError: the output holds a sweep of Ray Tune's own.
    """
    from medray.engine.tune_results import refuse_foreign_state

    refuse_foreign_state(storage.normalise(out))


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of a sweep, as they were given.

    Raises:
        ConfigError: a search or a stopping rule that there is not.
    """

    space: tuple[str, ...]
    trials: int
    concurrent: int
    search: str
    stop: str
    metric: str
    time_budget_s: float
    seed: int

    def __post_init__(self) -> None:
        _require_among("--search", self.search, ("", *_SEARCHES))
        _require_among("--stop", self.stop, _STOPPERS)


def _training(training: Any, wanted: Wanted, *, given: Sequence[str]) -> Any:
    """Return the sweep of trainings as a call that needs Ray.

    Raises:
        ConfigError: what is swept was given a value too.
    """
    from medray.engine.tune_space import grid_points, random_points, training_space

    space = training_space(training.recipe, training.hparams, wanted.space)
    twice = [name for name in space if name in given]
    if twice and wanted.space:
        raise ConfigError(f"{twice[0]} cannot be set and swept; leave one out")
    space = {name: domain for name, domain in space.items() if name not in twice}
    if not space:
        raise ConfigError("everything that the recipe sweeps is set; nothing is left")
    how = wanted.search or "tpe"
    number = wanted.trials or _TRIALS
    points = grid_points(space) if how == "grid" else []
    if how == "random":
        points = random_points(space, number, seed=wanted.seed)
    learning = training.recipe.learning
    objective = _objective(wanted.metric, learning.objective, set(learning.metrics([], {})))
    # Before Ray starts: importing Ray Tune turns Ray's narration on again.
    from medray.engine.tune import TuneRequest, tune_training

    request = TuneRequest(
        training=training,
        space=space,
        search=how,  # type: ignore[arg-type]
        points=tuple(points[: wanted.trials] if wanted.trials else points),
        stopper=wanted.stop,  # type: ignore[arg-type]
        objective=objective,
        trials=number,
        concurrent=wanted.concurrent or 1,
        time_budget_s=wanted.time_budget_s,
        seed=wanted.seed,
    )
    return lambda out, *, quiet: tune_training(request, out, quiet=quiet)


def _inference(
    task: str, data: str, model: str, wanted: Wanted, *, gpu: bool, extra: Sequence[str]
) -> Any:
    """Return the sweep of inference parameters as a call that needs Ray.

    Raises:
        ConfigError: no model, or one of another task; an option of training.
    """
    if not model:
        raise ConfigError("--inference needs --model: whose predictions are to be judged?")
    if extra:
        raise ConfigError(
            f"--inference takes its hyperparameters from the model; leave out {extra[0]}"
        )
    if wanted.search == "tpe":
        raise ConfigError("--inference judges whole grids at once: --search grid or random")
    from medray.engine.prepared import open_prepared
    from medray.engine.tune_space import inference_space
    from medray.engine.weights import read_model_json
    from medray.tasks import get_recipe

    recipe = get_recipe(task)
    found = read_model_json(model).get("task")
    if found != recipe.name:
        raise ConfigError(f"{model} is a model of {found}, not of {recipe.name}")
    space = inference_space(recipe, wanted.space)
    prepared = open_prepared(data, recipe)
    if not prepared.split("val"):
        raise ConfigError("the prepared data have no example in split val")
    learning = recipe.learning
    objective = _inference_objective(wanted.metric, learning)
    # Before Ray starts: importing Ray Tune turns Ray's narration on again.
    from medray.engine.evaluate import EvaluateRequest
    from medray.engine.tune_inference import InferenceRequest, tune_inference

    request = InferenceRequest(
        evaluated=EvaluateRequest(
            recipe=recipe, model=model, prepared=prepared, split="val", use_gpu=gpu
        ),
        space=space,
        points=_inference_points(space, wanted),
        objective=objective,
        concurrent=wanted.concurrent,
    )
    return lambda out, *, quiet: tune_inference(request, out, quiet=quiet)


def _inference_points(space: Any, wanted: Wanted) -> tuple[Any, ...]:
    """Return the whole grid, or random points.

    Raises:
        ConfigError: a grid of more points than were asked for.
    """
    from medray.engine.tune_space import grid_points, random_points

    if wanted.search == "random":
        return tuple(random_points(space, wanted.trials or _POINTS, seed=wanted.seed))
    points = grid_points(space)
    if wanted.trials and wanted.trials < len(points):
        raise ConfigError(f"the grid has {len(points)} points; fewer: --search random or --space")
    return tuple(points)


def _inference_objective(text: str, learning: Any) -> Any:
    """Return what points are judged by; measures of single sites are known by their rows alone."""
    default = learning.sweep.objective or learning.objective
    known = {*learning.metrics([], {}), *learning.sweep.further_metrics, default.metric}
    of_parts = any(text.startswith(f"{whole}_") for whole in known)
    return _objective(text, default, None if of_parts else known)


def _objective(text: str, default: Any, known: set[str] | None) -> Any:
    """Return what is swept for: `name`, or `name:min` where less is better.

    Args:
        text: of `--metric`.
        default: where it is empty.
        known: metrics that the task has; None where rows alone can tell.

    Raises:
        ConfigError: a metric that the recipe does not have.
    """
    from medray.config import unknown_name
    from medray.learning import Objective

    if not text:
        return default
    name, colon, mode = text.partition(":")
    if colon and mode not in {"min", "max"}:
        raise ConfigError(f"--metric {text!r}: after the colon comes min or max")
    if known is not None and name not in known:
        raise ConfigError(unknown_name("metric", name, known))
    same = default.mode if name == default.metric else "max"
    return Objective(name, mode or same)  # type: ignore[arg-type]


def _require_among(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        shown = ", ".join(name for name in known if name)
        raise ConfigError(f"{option} must be one of {shown}, got {value!r}")


def _print_best(summary: dict[str, Any], out: str, *, quiet: bool) -> None:
    """Show how trials ended, the chosen point, and where the report lies."""
    if quiet:
        return
    best = summary["best"]
    ended = [f"{number} {status}" for status, number in summary.get("trials_by_status", {}).items()]
    if ended:
        typer.echo(f"trials: {', '.join(ended)}")
    low, high = best["ci95"] or (None, None)
    between = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    of = ""
    if "num_folds" in best:
        of = f", mean of {best['num_folds']} folds of patients, of {best['num_points']} points"
    typer.echo(f"best {best['metric']} {best['value']:.4f}{between}{of}")
    if best.get("makes_no_difference"):
        typer.echo("no parameter made a difference on these cases")
    for name, value in best["params"].items():
        typer.echo(
            f"  {name:<24}{value:.6g}" if isinstance(value, float) else f"  {name:<24}{value}"
        )
    typer.echo(f"report: {out}/report.html")
