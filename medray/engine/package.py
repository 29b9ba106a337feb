"""The model package: weights, model.json and a card; nothing in it is pickled."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import medray
from medray import storage
from medray.engine.checkpoint import WEIGHTS, Checkpoint
from medray.engine.prepared import PreparedData
from medray.engine.run import package_versions, source_commit
from medray.engine.train_options import TrainOptions, Workers
from medray.engine.upstream import pack_upstream
from medray.engine.weights import MODEL_JSON
from medray.recipe import Recipe

NOTICE = "For research use only. Not a medical device, not for clinical decisions."


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a package says of how its weights came about."""

    recipe: Recipe[Any]
    hparams: Any
    options: TrainOptions
    workers: Workers
    prepared: PreparedData
    gates: str
    findings: tuple[tuple[str, str], ...] = ()


def write_package(out: str, training: Training, checkpoint: Checkpoint) -> dict[str, Any]:
    """Write `model/` from a checkpoint, model.json last, and return its content.

    Raises:
        DataError: sink_full or sink_denied.
    """
    weights = checkpoint.blobs[WEIGHTS]
    best = checkpoint.state["best"]
    recipe = training.recipe
    hparams = asdict(training.hparams)
    folder = storage.join(out, "model")
    facts = {
        "task": recipe.name,
        "kind": recipe.kind,
        "transform_version": recipe.transform_version,
        "hyperparameters": hparams,
        "options": asdict(training.options),
        "inference": best["inference"],
        "labels": list(recipe.class_names_of(training.hparams)),
        "objective": recipe.learning.objective.metric,
        "metrics": {f"val/{name}": value for name, value in sorted(best["metrics"].items())},
        "epoch": checkpoint.epoch,
        "data": _data_facts(training.prepared),
        "gates": {"mode": training.gates, "found": [list(item) for item in training.findings]},
        "fingerprint": training.prepared.fingerprint,
        "upstream": pack_upstream(folder, training.prepared.facts.get("upstream", [])),
        "version": medray.__version__,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "created_by": {"commit": source_commit(), "versions": package_versions()},
    }
    storage.write_atomic(storage.join(folder, WEIGHTS), weights)
    storage.write_atomic(storage.join(folder, "README.md"), model_card(facts).encode())
    storage.write_json(storage.join(folder, MODEL_JSON), facts)
    return facts


def _data_facts(prepared: PreparedData) -> dict[str, Any]:
    """Return what the training data were, without any name or path."""
    rows = prepared.rows
    return {
        "sha256": prepared.sha256,
        "num_examples": {name: len(prepared.split(name)) for name in ("train", "val", "test")},
        "num_patients": len({row["patient_id"] for row in rows}),
        "split": prepared.facts["hyperparameters"].get("split", "patient"),
    }


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the card of a package as Markdown; every number is one of model.json."""
    data = facts["data"]
    counts = ", ".join(f"{number} {name}" for name, number in data["num_examples"].items())
    lines = [
        f"# {facts['task']}",
        "",
        NOTICE,
        "",
        *[line for item in model_warnings(facts) for line in (f"**{item}**", "")],
        f"- medray {facts['version']}, commit {facts['created_by']['commit'] or 'unknown'}",
        f"- weights sha256 `{facts['weights_sha256']}`",
        f"- trained on {data['num_patients']} patients; examples: {counts}",
        f"- data sha256 `{data['sha256']}`",
        f"- classes: {', '.join(facts['labels']) or 'none'}",
        f"- chosen: epoch {facts['epoch']}, inference {facts['inference'] or 'as is'}",
        "",
        "## Validation",
        "",
        "On the split by which the epoch and the inference parameters were chosen: optimistic.",
        "For the test split: `medray evaluate MODEL --data PREPARED --split test --out DIR`.",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {_number(value)} |" for name, value in facts["metrics"].items()),
        "",
        "## Training",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in sorted(facts["hyperparameters"].items())),
        *(f"| {name} | {value} |" for name, value in sorted(facts["options"].items())),
        "",
        "## Use",
        "",
        "Trained on images like those of `fingerprint` in model.json (spacing, size, intensities,",
        "contrast); it has not been tried on others. `medray info MODEL` shows this model.",
        "",
    ]
    return "\n".join(lines)


def model_warnings(facts: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before anything else, one sentence each."""
    found = []
    if facts["gates"]["mode"] != "on":
        reasons = ", ".join(sorted({reason for reason, _ in facts["gates"]["found"]})) or "none"
        found.append(f"Gates were off while this model was trained (they found: {reasons}).")
    if facts["data"]["split"] == "none":
        found.append("Trained and validated on the same cases: an overfit check, no estimate.")
    if facts["options"]["shuffle_labels"]:
        found.append("Canary: trained on shuffled labels, it must not be used.")
    return found


def _number(value: Any) -> str:
    return "undefined" if value is None or value != value else f"{value:.4f}"  # noqa: PLR0124
