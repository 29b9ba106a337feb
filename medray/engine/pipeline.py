"""`medray run`: all stages of a task in order, each below one --out, each resumable by itself."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medray import storage
from medray.datasets.split import SplitOptions
from medray.engine.evaluate import EvaluateRequest, evaluate
from medray.engine.index import index
from medray.engine.ledger import Ledger
from medray.engine.package import Training
from medray.engine.predict import PredictRequest, predict
from medray.engine.prepare import PrepareOptions, prepare
from medray.engine.prepared import open_prepared, pass_gates
from medray.engine.run import STATE_DIR, Run
from medray.engine.train import TrainRequest, train
from medray.engine.train_options import TrainOptions, Workers
from medray.engine.upstream import Upstream
from medray.recipe import Recipe

STAGES = ("index", "prepare", "train", "evaluate", "predict")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Everything that the stages of one run need.

    Attributes:
        recipe, hparams, split, options, workers: what is prepared and trained, and how.
        data, labels, layout: as in prepare.
        gates: `on` or `off`.
        upstream: models that make a part of each sample.
    """

    recipe: Recipe[Any]
    hparams: Any
    split: SplitOptions
    options: TrainOptions
    workers: Workers
    data: str
    labels: str = ""
    layout: str = ""
    gates: str = "on"
    upstream: tuple[Upstream, ...] = ()


def run_pipeline(plan: Pipeline, out: str, say: Say, *, quiet: bool) -> dict[str, Any]:
    """Run all stages; a stage that is finished costs a look at its tables.

    Returns:
        The content of run.json; its counts are those of prepare.

    Raises:
        ConfigError, GateError, DataError: of the first stage that cannot be done.
    """
    parameters = {
        **asdict(plan.hparams),
        **asdict(plan.split),
        **asdict(plan.options),
        **asdict(plan.workers),
        "gates": plan.gates,
        "layout": plan.layout,
    }
    inputs = tuple(uri for uri in (plan.data, plan.labels) if uri)
    with Run(
        verb="run", task=plan.recipe.name, out=out, parameters=parameters, inputs=inputs
    ) as run:
        summaries: dict[str, dict[str, Any]] = {}
        for name in STAGES:
            say(f"{name}: {storage.join(out, name)}")
            with run.stage(name) as stage:
                summary = _DO[name](plan, out, quiet)
                stage.gpu_seconds = sum(s["gpu_seconds"] for s in summary["stages"].values())
            summaries[name] = summary
            if summary.get("left_out"):
                say(f"{name} is left out: {summary['left_out']}")
        _count(run, summaries["prepare"]["counts"])
        run.extra["metrics"] = summaries["evaluate"]["metrics"]
        run.extra["split"] = _evaluated_split(plan, out)
        return run.finish()


def _count(run: Run, counts: dict[str, Any]) -> None:
    run.counts.num_inputs = counts["num_inputs"]
    run.counts.num_done = counts["num_done"]
    run.counts.skipped = Counter(counts["skipped_by_reason"])
    run.counts.rejected = Counter(counts["rejected_by_reason"])


def _index(plan: Pipeline, out: str, quiet: bool) -> dict[str, Any]:  # noqa: FBT001
    source = plan.data.rpartition("/")[0] or "." if _is_datalist(plan) else plan.data
    return index([source], storage.join(out, "index"), quiet=quiet)


def _is_datalist(plan: Pipeline) -> bool:
    return plan.data.endswith(".json")


def _prepare(plan: Pipeline, out: str, quiet: bool) -> dict[str, Any]:  # noqa: FBT001
    options = PrepareOptions(
        data=storage.join(out, "index"),
        labels=plan.data if _is_datalist(plan) else plan.labels,
        layout=plan.layout or ("datalist" if _is_datalist(plan) else ""),
        gates=plan.gates,
    )
    where = storage.join(out, "prepare")
    return prepare(
        plan.recipe, plan.hparams, plan.split, where, options, upstream=plan.upstream, quiet=quiet
    )


def _train(plan: Pipeline, out: str, quiet: bool) -> dict[str, Any]:  # noqa: FBT001
    prepared = open_prepared(storage.join(out, "prepare"), plan.recipe)
    training = Training(
        recipe=plan.recipe,
        hparams=plan.hparams,
        options=plan.options,
        workers=plan.workers,
        prepared=prepared,
        gates=plan.gates,
        findings=pass_gates(prepared, plan.recipe, plan.hparams, gates=plan.gates),
    )
    return train(TrainRequest(training=training), storage.join(out, "train"), quiet=quiet)


def _evaluated_split(plan: Pipeline, out: str) -> str:
    """Return test, or val where the data have no test split."""
    prepared = open_prepared(storage.join(out, "prepare"), plan.recipe)
    return "test" if prepared.split("test") else "val"


def _evaluate(plan: Pipeline, out: str, quiet: bool) -> dict[str, Any]:  # noqa: FBT001
    request = EvaluateRequest(
        recipe=plan.recipe,
        model=storage.join(out, "train", "model"),
        prepared=open_prepared(storage.join(out, "prepare"), plan.recipe),
        split=_evaluated_split(plan, out),
        use_gpu=plan.workers.use_gpu,
    )
    return evaluate(request, storage.join(out, "evaluate"), quiet=quiet)


def _predict(plan: Pipeline, out: str, quiet: bool) -> dict[str, Any]:  # noqa: FBT001
    """Predict the sources of the evaluated split as if their labels were not known."""
    prepared = open_prepared(storage.join(out, "prepare"), plan.recipe)
    rows = prepared.split(_evaluated_split(plan, out))
    series = sorted({str(row["series_key"]) for row in rows if row["series_key"]})
    sources = (storage.join(out, "index"),) if series else _files_of(out, rows)
    made = {model.part for model in plan.upstream}
    needed = (name for name, part in plan.recipe.upstream.items() if part.is_needed)
    missing = sorted(set(needed) - made)
    if missing:
        named = (f"--set {plan.recipe.upstream[part].setting}=URI" for part in missing)
        return {"stages": {}, "left_out": f"it needs a model first: {', '.join(named)}"}
    request = PredictRequest(
        recipe=plan.recipe,
        model=storage.join(out, "train", "model"),
        sources=sources,
        upstream=plan.upstream,
        use_gpu=plan.workers.use_gpu,
        series_keys=tuple(series),
    )
    return predict(request, storage.join(out, "predict"), quiet=quiet)


def _files_of(out: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the files that examples without a DICOM series were made of."""
    wanted = {row["key"] for row in rows}
    done = Ledger(storage.join(out, "prepare", STATE_DIR, "ledger")).read().values()
    return tuple(sorted(r["uri"] for r in done if not r["reason"] and r["row"]["key"] in wanted))


_DO: dict[str, Callable[[Pipeline, str, bool], dict[str, Any]]] = {
    "index": _index,
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
}
