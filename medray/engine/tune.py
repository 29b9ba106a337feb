"""`medray tune`: hyperparameters swept by Ray Tune, every trial a Ray Train run."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import ray
from ray import tune

from medray import storage
from medray.engine.evaluate import EvaluateRequest
from medray.engine.interpreter import model_hparams
from medray.engine.ledger import content_key
from medray.engine.package import Training
from medray.engine.progress import Progress
from medray.engine.run import Counts, Run
from medray.engine.train import state_folder
from medray.engine.train_log import METRICS, read_metrics
from medray.engine.tune_collect import collect_rows
from medray.engine.tune_judge import interval, refined
from medray.engine.tune_page import write_training_page
from medray.engine.tune_results import (
    BEST,
    Trial,
    copy_package,
    counts_by_status,
    refuse_foreign_state,
    write_hparams,
    write_trials,
)
from medray.engine.tune_search import scheduler_of, searcher_of
from medray.engine.tune_space import Point, Space
from medray.engine.tune_trial import FAILED, TrialPlan, run_trial
from medray.engine.weights import read_model_json
from medray.errors import MedrayError
from medray.learning import Objective
from medray.sweep_figures import shown

Search = Literal["tpe", "random", "grid"]
Stopper = Literal["asha", "median", "none"]
_MAX_FAILURES = 1
_DRIVER_CPUS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest:
    """What the user asked for, checked already.

    Attributes:
        training: what is trained where the sweep does not say otherwise.
        space: what is swept.
        search: how points are found.
        points: of a grid or a random search.
        stopper: what ends trials early.
        objective: by what trials are compared, of the validation split.
        trials: how many.
        concurrent: how many at once.
        time_budget_s: after which no trial goes on; 0 is none.
        seed: of the search.
    """

    training: Training
    space: Space
    search: Search
    points: tuple[Point, ...]
    stopper: Stopper
    objective: Objective
    trials: int
    concurrent: int = 1
    time_budget_s: float = 0.0
    seed: int = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """Return what must be the same when a sweep is taken up again; it may grow."""
        training = self.training
        return {
            **asdict(training.hparams),
            **asdict(training.options),
            **asdict(training.workers),
            "inference": False,
            "space": {name: repr(domain) for name, domain in self.space.items()},
            "search": self.search,
            "stopper": self.stopper,
            "metric": self.objective.metric,
            "mode": self.objective.mode,
            "sweep_seed": self.seed,
            "gates": training.gates,
            "data_sha256": training.prepared.sha256,
        }


def tune_training(request: TuneRequest, out: str, *, quiet: bool = False) -> dict[str, Any]:
    """Sweep into `out`; needs a running `ray_session`.

    Trials that an earlier run finished are not run again; one that was cut goes on from its last
    checkpoint. What is known of them is in records of our own, never in Ray Tune's pickled state.

    Returns:
        The content of run.json.

    Raises:
        ConfigError: an output of another run.
        MedrayError: all trials failed, or none was finished in time.
    """
    out = storage.normalise(out)
    refuse_foreign_state(out)
    training = request.training
    plan = TrialPlan(
        training=training,
        space=request.space,
        points=request.points,
        objective=request.objective,
        out=out,
        share=_share(request.concurrent),
    )
    with Run(
        verb="tune",
        task=training.recipe.name,
        out=out,
        parameters=request.parameters,
        inputs=(training.prepared.uri,),
    ) as run:
        before = set(plan.over())
        with run.stage("sweep") as stage:
            unfinished = _sweep(request, plan, quiet=quiet)
        if training.workers.use_gpu:
            stage.gpu_seconds = stage.seconds * training.workers.num_workers
        trials = _trials(request, plan, unfinished)
        _count(run, trials, before)
        write_trials(out, trials, tuple(request.space))
        run.extra["num_trials_run"] = len(set(plan.ledger.read()) - before)
        return _conclude(run, request, plan, trials)


def _share(concurrent: int) -> float:
    """Return the part of the cluster that a trial counts on, its driver taken off.

    Half of the CPUs must stay free, whole ones: a task of Ray Data that no CPU is left for would
    wait for trainings that wait for it.
    """
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    drivers = 2 * _DRIVER_CPUS * concurrent / max(1.0, total.get("CPU", 1.0))
    return max(0.01, 1 - drivers) / concurrent


def _sweep(request: TuneRequest, plan: TrialPlan, *, quiet: bool) -> dict[str, Point]:
    """Run the trials that are not over yet; return those that time was too short for."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    # An interrupted sweep is not one whose trials were stopped: the interruption must come through.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    over = plan.over()
    planned = {content_key(point): number for number, point in enumerate(request.points)}
    left = [number for key, number in planned.items() if key not in over]
    number = len(left) if planned else max(0, request.trials - len(over))
    if not number:
        return {}
    with Progress("trials", number, quiet=quiet) as bar, state_folder(plan.out) as state:
        epochs = request.training.hparams.epochs
        bar.note(f"{number} of up to {epochs} epochs, {request.concurrent} at a time")
        watch = SweepWatch(plan=plan, bar=bar, budget_s=request.time_budget_s)
        _tuner(request, plan, left, watch, state).fit()
    if not planned:
        return watch.cut
    known = plan.ledger.read()
    return {key: request.points[place] for key, place in planned.items() if key not in known}


def _tuner(
    request: TuneRequest, plan: TrialPlan, left: Sequence[int], watch: "SweepWatch", state: str
) -> tune.Tuner:
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, plan=plan), {"CPU": _DRIVER_CPUS}
    )
    searcher = None
    space: dict[str, Any] = {"number": tune.grid_search(list(left))}
    if not request.points:
        searcher = searcher_of(request, plan.over())
        space = {}
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=request.objective.metric,
            mode=request.objective.mode,
            search_alg=searcher,
            num_samples=1 if request.points else watch.bar.total or 1,
            scheduler=scheduler_of(request.stopper, request.training.hparams.epochs),
            max_concurrent_trials=request.concurrent,
            time_budget_s=request.time_budget_s or None,
        ),
        run_config=tune.RunConfig(
            storage_path=state,
            name="sweep",
            verbose=0,
            callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a trial ended that could not say so itself."""

    status: str
    reason: str
    value: float | None = None
    seconds: float = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class SweepWatch(tune.Callback):
    """Records on the driver how trials ended that could not say so themselves.

    Attributes:
        plan: of the trials.
        bar: progress of the sweep.
        budget_s: seconds after which trials are cut rather than stopped; 0 is none.
        cut: points of the trials that time was too short for.
    """

    plan: TrialPlan
    bar: Progress
    budget_s: float
    cut: dict[str, Point] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that the scheduler stopped; one that time cut may go on another day."""
        del iteration, trials, info
        point = self.plan.point(trial.config)
        key = content_key(point)
        self.bar.advance()
        found = self.plan.ledger.find(key)
        if found is not None:
            self._tell(point, _Ending(found["status"], found["reason"], found["value"]))
            return
        if self.budget_s and time.monotonic() - self.began >= self.budget_s:
            self.cut[key] = point
            return
        last = trial.last_result or {}
        metric = self.plan.objective.metric
        best = (trial.metric_analysis or {}).get(metric, {}).get(self.plan.objective.mode)
        reason = f"stopped after epoch {last.get('epoch')}"
        self._record(point, _Ending("stopped", reason, best, float(last.get("time_total_s", 0))))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that failed once more after its retry."""
        del iteration, trials, info
        point = self.plan.point(trial.config)
        key = content_key(point)
        self.bar.advance(rejected=True)
        where = self.plan.cause(key)
        reason = "the trial's process died"
        if storage.exists(where):
            reason = storage.read_json(where)["reason"]
        self._record(point, _Ending(FAILED, reason))

    def _tell(self, point: Point, ending: _Ending) -> None:
        """Say how a trial ended, by its parameters."""
        value = "" if ending.value is None else f"{self.plan.objective.metric} {ending.value:.4f}, "
        named = ", ".join(f"{name} {shown(one)}" for name, one in point.items())
        self.bar.note(f"{named}: {value}{ending.reason or ending.status}")

    def _record(self, point: Point, ending: _Ending) -> None:
        self._tell(point, ending)
        record = {"params": point, **asdict(ending), "metrics": {}, "at": time.time()}
        self.plan.ledger.commit(content_key(point), record)


def _trials(request: TuneRequest, plan: TrialPlan, cut: Mapping[str, Point]) -> list[Trial]:
    """Return every trial of this sweep; an output's records of points now left out stay silent."""
    planned = {content_key(point) for point in request.points}
    known = plan.ledger.read()
    trials = [
        Trial(
            trial_id=key,
            params=record["params"],
            value=record["value"],
            status=record["status"],
            reason=record["reason"],
            seconds=record["seconds"],
            metrics=record["metrics"],
            ended_s=record["at"],
        )
        for key, record in known.items()
        if not planned or key in planned
    ]
    reason = "the time was over; the same command goes on"
    late = [
        Trial(
            trial_id=key, params=point, value=None, status="unfinished", reason=reason, metrics={}
        )
        for key, point in cut.items()
    ]
    return sorted([*trials, *late], key=lambda trial: trial.trial_id)


def _count(run: Run, trials: Sequence[Trial], before: set[str]) -> None:
    for trial in trials:
        if trial.trial_id in before:
            run.counts.add("skipped", "already_done")
        elif trial.status in {"failed", "unfinished"}:
            run.counts.add("skipped", f"trial_{trial.status}")
        else:
            run.counts.add("done", "")


def _conclude(
    run: Run, request: TuneRequest, plan: TrialPlan, trials: Sequence[Trial]
) -> dict[str, Any]:
    """Choose the best finished trial, write what a sweep leaves, and end the run.

    Raises:
        MedrayError: there is none.
    """
    out, objective = run.out, request.objective
    done = [trial for trial in trials if trial.status == "done" and trial.value is not None]
    if not done:
        run.finish("failed")
        raise MedrayError(_nothing_done(trials))
    sign = 1.0 if objective.mode == "max" else -1.0
    best = max(done, key=lambda trial: sign * (trial.value or 0.0))
    place = plan.place(best.trial_id)
    tuned: dict[str, Any] = {
        "trial_id": best.trial_id,
        "metric": objective.metric,
        "mode": objective.mode,
        "value": best.value,
        "ci95": None,
        "split": "val",
        "num_trials": len(trials),
    }
    with run.stage("interval"):
        tuned["ci95"] = _interval(run, request, place)
    model = copy_package(place, out, {"tuned": {**tuned, "params": dict(best.params)}})
    facts = {"params": dict(best.params), **tuned, "model_uri": storage.join(out, "model")}
    storage.write_json(storage.join(out, BEST), facts)
    write_hparams(out, trials, objective.metric)
    curves = {trial.trial_id: _curve(plan, trial, objective.metric) for trial in trials}
    write_training_page(out, request.space, trials, curves, facts, model)
    run.extra.update(best=facts, metrics=model["metrics"], inference=model["inference"])
    run.extra["trials_by_status"] = counts_by_status(trials)
    return run.finish()


def _interval(run: Run, request: TuneRequest, model: str) -> list[float | None] | None:
    """Return the best model's 95 % interval over the validation patients; None if not predicted."""
    training = request.training
    recipe = training.recipe
    evaluated = EvaluateRequest(
        recipe=recipe,
        model=model,
        prepared=training.prepared,
        split="val",
        use_gpu=training.workers.use_gpu,
    )
    rows, rejected = collect_rows(run, evaluated, Counts(), surveyed=False, quiet=True)
    if rejected or not rows:
        return None
    facts = read_model_json(model)
    learning = recipe.learning
    # What trials are compared by is measured without a chosen threshold, as the best epoch is.
    if recipe.learning.sweep.survey is None:
        rows = list(refined(learning, rows, {}, model_hparams(recipe, facts)))
    return interval(learning, rows, [0] * len(rows), request.objective.metric, {})


def _nothing_done(trials: Sequence[Trial]) -> str:
    failed = [trial for trial in trials if trial.status == "failed"]
    if failed:
        first = min(failed, key=lambda trial: trial.ended_s)
        return f"{len(failed)} of {len(trials)} trials failed, none is done: {first.reason}"
    return "no trial was finished in time; run the same command again to go on"


def _curve(plan: TrialPlan, trial: Trial, metric: str) -> list[tuple[float, float]]:
    """Return the validation metric of a trial's epochs, from its own log."""
    place = plan.place(trial.trial_id)
    if not storage.exists(storage.join(place, METRICS)):
        return []
    return [
        (float(row["epoch"]), float(row["value"]))
        for row in read_metrics(place)
        if row["split"] == "val" and row["name"] == metric and row["value"] is not None
    ]
