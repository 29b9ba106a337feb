"""`medray evaluate`: a model against the truth of one split, with intervals over patients."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from medray import storage
from medray.engine.actor_pool import Pool
from medray.engine.evaluate_page import write_page
from medray.engine.evaluate_task import EvaluateActor
from medray.engine.example_pool import ExamplePlan, rows_of_examples
from medray.engine.interpreter import model_hparams
from medray.engine.ledger import Ledger, content_key
from medray.engine.prepared import PreparedData
from medray.engine.run import Run
from medray.engine.schemas import REJECTED
from medray.engine.weights import read_checked_weights, read_model_json
from medray.errors import ConfigError
from medray.learning import Row
from medray.metrics.bootstrap import bootstrap_named
from medray.recipe import Recipe

_RESAMPLES = 1000
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """What the user asked for, checked already.

    Attributes:
        recipe: of the model's task.
        model: URI of the package.
        prepared: data set with the truth.
        split: `val` or `test`.
        use_gpu: one GPU an actor.
    """

    recipe: Recipe[Any]
    model: str
    prepared: PreparedData
    split: str
    use_gpu: bool = False

    def actor_settings(self, ledger: Ledger) -> dict[str, Any]:
        """Return what every actor needs that predicts these examples."""
        return {
            "recipe": self.recipe,
            "model": self.model,
            "device": "cuda" if self.use_gpu else "cpu",
            "ledger": ledger.uri,
        }


def evaluate(request: EvaluateRequest, out: str, *, quiet: bool = False) -> dict[str, Any]:
    """Evaluate into `out`; needs a running `ray_session`.

    Returns:
        The content of run.json; the numbers are in report.json too.

    Raises:
        ConfigError: another task or version, or an empty split.
        DataError: model_missing or model_hash_mismatch.
    """
    recipe, prepared = request.recipe, request.prepared
    facts = read_model_json(request.model)
    read_checked_weights(request.model)
    hparams = model_hparams(recipe, facts)
    require_same_grid(recipe, hparams, prepared)
    rows = prepared.split(request.split)
    if not rows:
        raise ConfigError(f"the prepared data have no example in split {request.split}")
    parameters = {
        "split": request.split,
        "weights_sha256": facts["weights_sha256"],
        "inference": facts["inference"],
        "data_sha256": prepared.sha256,
    }
    inputs = (request.model, prepared.uri)
    with Run(
        verb="evaluate", task=recipe.name, out=out, parameters=parameters, inputs=inputs
    ) as run:
        found, rejected = _measure(run, request, facts, rows, quiet=quiet)
        run.write_table("rejected.parquet", rejected, REJECTED)
        if not found:
            run.finish("failed")
            raise ConfigError("no example could be evaluated; see rejected.parquet")
        with run.stage("report"):
            report = make_report(recipe, request.split, facts, found, prepared)
            storage.write_json(storage.join(out, "report.json"), report)
            storage.write_parquet(storage.join(out, "predictions.parquet"), _table(found))
            write_page(out, run.state("tiles"), report, facts, found, request.model)
        run.extra["metrics"] = {name: m["value"] for name, m in report["metrics"].items()}
        return run.finish()


def require_same_grid(recipe: Recipe[Any], hparams: Any, prepared: PreparedData) -> None:
    """Refuse data that were prepared otherwise than the model's."""
    made = prepared.facts["hyperparameters"]
    for name in recipe.data_fields:
        mine = json.loads(json.dumps(getattr(hparams, name)))
        if name in made and made[name] != mine:
            raise ConfigError(
                f"the data were prepared with {name}={made[name]}, the model needs {mine}"
            )


def _measure(
    run: Run,
    request: EvaluateRequest,
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    quiet: bool,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Measure every example that is not measured yet; return rows and rejects, sorted by key."""
    ledger = Ledger(run.state("ledger"))
    settings = {**request.actor_settings(ledger), "tiles": run.state("tiles")}
    plan = ExamplePlan(
        stage="evaluate",
        uri=request.prepared.uri,
        pool=Pool(actor=EvaluateActor, settings=settings, use_gpu=request.use_gpu),
        ledger=ledger,
        key_of=lambda row: content_key(
            row["key"], row["sha256"], facts["weights_sha256"], facts["inference"]
        ),
        counts=run.counts,
    )
    return rows_of_examples(run, plan, rows, quiet=quiet)


def make_report(
    recipe: Recipe[Any],
    split: str,
    facts: Mapping[str, Any],
    rows: Sequence[Row],
    prepared: PreparedData,
) -> dict[str, Any]:
    """Return report.json: each metric with its interval over patients, a baseline beside."""
    learning = recipe.learning
    inference = facts["inference"]
    values = learning.metrics(rows, inference)
    ends = intervals(recipe, rows, inference)
    # Data for a test alone have no training split: their own commonest class then is the rival.
    known = prepared.split("train") or rows
    training_labels = [int(row["label"]) for row in known]
    baseline = learning.baseline(rows, training_labels)
    patients = {row["patient_id"] for row in rows}
    return {
        "task": recipe.name,
        "split": split,
        "num_patients": len(patients),
        "num_cases": len(rows),
        "threshold": inference.get("threshold"),
        "metrics": {
            name: {"value": _known(value), "ci95": ends[name], "n": len(rows)}
            for name, value in sorted(values.items())
        },
        "baseline": {name: _known(value) for name, value in sorted(baseline.items())},
        "bootstrap": {"resamples": _RESAMPLES, "seed": _SEED, "unit": "patient"},
        "weights_sha256": facts["weights_sha256"],
        "data_sha256": prepared.sha256,
    }


def intervals(
    recipe: Recipe[Any], rows: Sequence[Row], inference: Mapping[str, Any]
) -> dict[str, list[float | None]]:
    """Return 95 % intervals of all metrics from the same resamples."""
    learning = recipe.learning
    patients = [row["patient_id"] for row in rows]
    found = bootstrap_named(
        lambda drawn: learning.metrics([rows[i] for i in drawn], inference),
        patients,
        num=_RESAMPLES,
        seed=_SEED,
    )
    return {name: [_known(one.low), _known(one.high)] for name, one in found.items()}


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _table(rows: Sequence[Row]) -> pa.Table:
    """Return predictions.parquet: plain columns as they are, lists as lists."""
    names = ["key", "patient_id", "split", "label", "score", "scores", "predicted_label"]
    others = sorted({name for row in rows for name in row} - set(names))
    return pa.Table.from_pylist(
        [{name: row.get(name) for name in [*names, *others]} for row in rows]
    )
