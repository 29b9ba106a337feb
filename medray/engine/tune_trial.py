"""One trial of a sweep of trainings: a Ray Train run of its own, and a record of how it ended."""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from medray import storage
from medray.engine.ledger import Ledger, content_key
from medray.engine.package import Training
from medray.engine.run import STATE_DIR
from medray.engine.train import TrainRequest, train
from medray.engine.tune_space import Point, Space
from medray.errors import MedrayError
from medray.learning import Choice, Objective

EPOCH = "epoch"
FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """What every trial is told.

    Attributes:
        training: what is trained where the sweep does not say otherwise.
        space: what is swept.
        points: the points of a grid or a random search; empty where the search makes them.
        objective: by what trials are compared.
        out: of the sweep.
        share: of the cluster that a trial counts on.
    """

    training: Training
    space: Space
    points: tuple[Point, ...]
    objective: Objective
    out: str
    share: float

    @property
    def ledger(self) -> Ledger:
        """Return the records of the trials that are over."""
        return Ledger(storage.join(self.out, STATE_DIR, "ledger", "trials"))

    def over(self) -> dict[str, dict[str, Any]]:
        """Return the records of the trials that need not be run again: those that did not fail."""
        return {k: r for k, r in self.ledger.read().items() if r["status"] != FAILED}

    def point(self, config: Mapping[str, Any]) -> Point:
        """Return the parameters that a trial's configuration means."""
        if "number" in config:
            return dict(self.points[int(config["number"])])
        return {
            name: domain.values[int(config[name])]
            if isinstance(domain, Choice)
            else float(config[name])
            for name, domain in self.space.items()
        }

    def place(self, trial_id: str) -> str:
        """Return the URI of a trial's own output."""
        return storage.join(self.out, "trials", trial_id)

    def cause(self, trial_id: str) -> str:
        """Return the URI of the sentence that a failing trial leaves."""
        return storage.join(self.out, STATE_DIR, "causes", f"{trial_id}.json")


class EpochReport(TuneReportCallback):
    """Tells Ray Tune of every epoch but the last.

    After the last one the trial still writes its model: a scheduler must not stop it then.
    """

    def __init__(self, num_epochs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_epochs = num_epochs

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Pass on what the workers reported."""
        if metrics[0][EPOCH] < self.num_epochs:
            super().after_report(run_context, metrics, checkpoint)


def run_trial(config: Mapping[str, Any], plan: TrialPlan) -> None:
    """Train one point and record it; the trial function of Ray Tune.

    Raises:
        MedrayError: what the training raised; the sentence is kept for the sweep.
    """
    point = plan.point(config)
    trial_id = content_key(point)
    metric = plan.objective.metric
    record = plan.ledger.find(trial_id)
    if record is None or record["status"] == FAILED:
        try:
            record = _trained(point, trial_id, plan)
        except Exception as error:
            storage.write_json(plan.cause(trial_id), {"reason": sentence_of(error)})
            raise
        plan.ledger.commit(trial_id, record)
    if record["value"] is None:
        raise MedrayError(record["reason"] or f"{metric} is undefined")
    tune.report({metric: record["value"], EPOCH: plan.training.hparams.epochs})


def _trained(point: Point, trial_id: str, plan: TrialPlan) -> dict[str, Any]:
    began = time.perf_counter()
    base = plan.training
    hparams = dataclasses.replace(base.hparams, **point)
    request = TrainRequest(
        training=replace(base, hparams=hparams),
        share=plan.share,
        callbacks=(EpochReport(hparams.epochs),),
    )
    best = train(request, plan.place(trial_id), quiet=True)["train"]["best"]
    value = best["metrics"].get(plan.objective.metric)
    if value is None or not math.isfinite(value):
        raise MedrayError(f"{plan.objective.metric} is undefined on the validation split")
    return {
        "params": point,
        "status": "done",
        "value": value,
        "reason": "",
        "metrics": best["metrics"],
        "epoch": best["epoch"],
        "seconds": time.perf_counter() - began,
        "at": time.time(),
    }


def sentence_of(error: BaseException) -> str:
    """Return an error as one sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, MedrayError) else f"{type(error).__name__}: {text}"
