"""`medray tune --inference`: inference parameters chosen on predictions that are made once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from medray import storage
from medray.engine.evaluate import EvaluateRequest, require_same_grid
from medray.engine.interpreter import inferred_hparams, model_hparams
from medray.engine.ledger import Ledger, content_key
from medray.engine.run import Run
from medray.engine.schemas import REJECTED
from medray.engine.train import state_folder
from medray.engine.tune_collect import collect_rows
from medray.engine.tune_judge import (
    best_of,
    held_out_value,
    interval,
    judge_points,
    patient_folds,
    refined,
    refined_key,
    require_metric,
)
from medray.engine.tune_page import write_inference_page
from medray.engine.tune_results import (
    BEST,
    Trial,
    copy_package,
    refuse_foreign_state,
    write_hparams,
    write_trials,
)
from medray.engine.tune_space import Point, Space
from medray.engine.weights import read_checked_weights, read_model_json
from medray.errors import ConfigError, MedrayError
from medray.learning import Objective, Row

NUM_FOLDS = 5
_BATCHES_PER_ACTOR = 4
_TRIAL_CPUS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """What the user asked for, checked already.

    Attributes:
        evaluated: recipe, model, data and split.
        space: what is swept.
        points: of it, in any order.
        objective: by what the point is chosen.
        concurrent: trials at once; 0 takes a CPU each.
    """

    evaluated: EvaluateRequest
    space: Space
    points: tuple[Point, ...]
    objective: Objective
    concurrent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a trial needs; the rows go through the object store once."""

    request: InferenceRequest
    hparams: Any
    rows: Sequence[Row]
    folds: Sequence[int]
    batches: Sequence[Sequence[Point]]
    ledger: str

    def key(self, batch: int) -> str:
        """Return what a batch's results depend on."""
        rows = [str(row["key"]) for row in self.rows]
        return content_key(list(self.batches[batch]), self.request.objective.metric, rows)


def tune_inference(request: InferenceRequest, out: str, *, quiet: bool = False) -> dict[str, Any]:
    """Choose inference parameters into `out`; needs a running `ray_session`.

    Returns:
        The content of run.json.

    Raises:
        ConfigError: another task or version, an empty split, a metric that the task lacks.
        DataError: model_missing or model_hash_mismatch.
    """
    out = storage.normalise(out)
    refuse_foreign_state(out)
    evaluated = request.evaluated
    recipe, prepared = evaluated.recipe, evaluated.prepared
    facts = read_model_json(evaluated.model)
    hparams = model_hparams(recipe, facts)
    read_checked_weights(evaluated.model)
    require_same_grid(recipe, hparams, prepared)
    if not prepared.split(evaluated.split):
        raise ConfigError(f"the prepared data have no example in split {evaluated.split}")
    with Run(
        verb="tune",
        task=recipe.name,
        out=out,
        parameters=_parameters(request, facts),
        inputs=(evaluated.model, prepared.uri),
    ) as run:
        rows, rejected = collect_rows(run, evaluated, run.counts, surveyed=True, quiet=quiet)
        run.write_table("rejected.parquet", rejected, REJECTED)
        if not rows:
            run.finish("failed")
            raise ConfigError("no example could be predicted; see rejected.parquet")
        settled = inferred_hparams(recipe, hparams, facts["inference"])
        work = _work(run, request, settled, rows)
        judged = _sweep(run, work, out)
        return _conclude(run, work, judged, facts)


def _parameters(request: InferenceRequest, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "inference": True,
        "space": {name: repr(domain) for name, domain in request.space.items()},
        "points": content_key(list(request.points)),
        "metric": request.objective.metric,
        "mode": request.objective.mode,
        "split": request.evaluated.split,
        "weights_sha256": facts["weights_sha256"],
        "from_inference": facts["inference"],
        "data_sha256": request.evaluated.prepared.sha256,
    }


def _work(run: Run, request: InferenceRequest, hparams: Any, rows: Sequence[Row]) -> _Work:
    """Deal the points out: those that share refined rows stay together.

    Raises:
        ConfigError: a metric that these rows do not give.
    """
    learning = request.evaluated.recipe.learning
    first = request.points[0]
    numbers = learning.metrics(refined(learning, rows, first, hparams), first)
    require_metric(request.objective.metric, numbers)
    ordered = sorted(request.points, key=lambda point: repr(refined_key(learning, point)))
    size = max(1, -(-len(ordered) // (_BATCHES_PER_ACTOR * _actors(request))))
    return _Work(
        request=request,
        hparams=hparams,
        rows=rows,
        folds=patient_folds(rows, NUM_FOLDS),
        batches=[ordered[start : start + size] for start in range(0, len(ordered), size)],
        ledger=run.state("ledger", "points"),
    )


def _actors(request: InferenceRequest) -> int:
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return request.concurrent or max(1, int(total.get("CPU", 1)))


def _judge_batch(config: Mapping[str, Any], work: _Work) -> None:
    """Judge a batch of points; one trial of Ray Tune."""
    began = time.perf_counter()
    number = int(config["batch"])
    request = work.request
    judged = judge_points(
        request.evaluated.recipe.learning,
        work.hparams,
        work.rows,
        work.folds,
        request.objective.metric,
        work.batches[number],
    )
    seconds = (time.perf_counter() - began) / len(judged)
    points = [{**one, "seconds": seconds} for one in judged]
    Ledger(work.ledger).commit(work.key(number), {"points": points})
    known = [one["value"] for one in points if one["value"] is not None]
    best = max(known, default=None) if request.objective.mode == "max" else min(known, default=None)
    tune.report({"points": len(points), request.objective.metric: best})


def _sweep(run: Run, work: _Work, out: str) -> list[dict[str, Any]]:
    """Judge every batch that is not judged yet; return all points.

    Raises:
        MedrayError: a batch failed twice.
    """
    ledger = Ledger(work.ledger)
    known = ledger.read()
    left = [n for n in range(len(work.batches)) if work.key(n) not in known]
    with run.stage("sweep"), state_folder(out) as state:
        if left:
            _run_trials(work, left, state)
    records = ledger.read()
    missing = [n for n in range(len(work.batches)) if work.key(n) not in records]
    if missing:
        raise MedrayError(
            f"{len(missing)} of {len(work.batches)} batches of points were not judged"
        )
    return [one for n in range(len(work.batches)) for one in records[work.key(n)]["points"]]


def _run_trials(work: _Work, left: Sequence[int], state: str) -> None:
    trainable = tune.with_resources(
        tune.with_parameters(_judge_batch, work=work), {"CPU": _TRIAL_CPUS}
    )
    grid = tune.Tuner(
        trainable,
        param_space={"batch": tune.grid_search(list(left))},
        tune_config=tune.TuneConfig(max_concurrent_trials=_actors(work.request), reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=state,
            name="sweep",
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    ).fit()
    for error in grid.errors:
        raise MedrayError(f"a batch of points failed: {' '.join(str(error).split())[-300:]}")


def _conclude(
    run: Run, work: _Work, judged: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose, write what a sweep leaves, and end the run."""
    request, out = work.request, run.out
    evaluated, objective = request.evaluated, request.objective
    learning = evaluated.recipe.learning
    trials = [_trial(one) for one in judged]
    write_trials(out, trials, tuple(request.space))
    with run.stage("choose"):
        chosen = judged[best_of(judged, objective, request.space)]
        rows = refined(learning, work.rows, chosen["params"], work.hparams)
        ends = interval(learning, rows, work.folds, objective.metric, chosen["params"])
    tuned = {
        "metric": objective.metric,
        "mode": objective.mode,
        "value": chosen["value"],
        "ci95": ends,
        "held_out": held_out_value(judged, objective, request.space),
        "num_points": len(judged),
        "num_cases": len(work.rows),
        "num_folds": len(set(work.folds)),
        "split": evaluated.split,
        "makes_no_difference": len({one["value"] for one in judged}) < 2 <= len(judged),
    }
    numbers = {f"val/{name}": value for name, value in sorted(chosen["metrics"].items())}
    changes = {
        "inference": {**facts["inference"], **chosen["params"]},
        "metrics": {**facts["metrics"], **numbers},
        "tuned": tuned,
    }
    model = copy_package(evaluated.model, out, changes)
    best = {"params": chosen["params"], **tuned, "model_uri": storage.join(out, "model")}
    storage.write_json(storage.join(out, BEST), best)
    write_hparams(out, trials, objective.metric)
    write_inference_page(out, request.space, judged, best, model)
    run.extra.update(best=best, metrics=numbers, inference=model["inference"])
    return run.finish()


def _trial(one: Mapping[str, Any]) -> Trial:
    return Trial(
        trial_id=content_key(one["params"]),
        params=one["params"],
        value=one["value"],
        status="done",
        seconds=one["seconds"],
        metrics=one["metrics"],
    )
