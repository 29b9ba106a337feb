"""What a sweep leaves: trials.parquet, best.json, the chosen model, TensorBoard HParams."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medray import storage
from medray.engine.checkpoint import WEIGHTS
from medray.engine.package import model_card
from medray.engine.train_log import TENSORBOARD
from medray.engine.weights import MODEL_JSON, package_uri
from medray.errors import ConfigError

BEST = "best.json"
TRIALS = "trials.parquet"
# How Ray Tune keeps its own state: pickled, so never read.
_FOREIGN_STATE = ("tuner.pkl", "trainer.pkl")

_STATUSES = ("done", "stopped", "failed", "unfinished")

# A file a trial: more of them than this nobody tells apart.
_MOST_HPARAMS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One point of a sweep and what became of it.

    Attributes:
        trial_id: hash of its parameters.
        params: by name.
        value: of the metric that is swept for; None where it is undefined or the trial failed.
        status: `done`, `stopped` (by the scheduler), `failed` or `unfinished`.
        reason: one sentence where it is not done.
        seconds: that it took.
        metrics: all numbers known of it.
        ended_s: when, seconds since the epoch.
    """

    trial_id: str
    params: Mapping[str, Any]
    value: float | None
    status: str
    reason: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, float | None]
    ended_s: float = 0.0


def counts_by_status(trials: Sequence[Trial]) -> dict[str, int]:
    """Return how many trials ended in which way, the good ways first; none is left out."""
    ended = Counter(trial.status for trial in trials)
    return {
        name: ended[name] for name in ("done", "stopped", "failed", "unfinished") if ended[name]
    }


def refuse_foreign_state(out: str) -> None:
    """Refuse an output that holds a sweep of Ray Tune's own.

    Raises:
        ConfigError: its state is there.
    """
    for name in _FOREIGN_STATE:
        if storage.exists(storage.join(out, name)):
            raise ConfigError(
                f"{out} holds the state of another Ray run ({name}), which is pickled and never "
                "read; choose a new --out"
            )


def write_trials(out: str, trials: Sequence[Trial], names: Sequence[str]) -> None:
    """Write trials.parquet, one row a trial by its id, all that was measured of it at the end.

    Values that no column can hold are text.
    """
    ordered = sorted(trials, key=lambda trial: trial.trial_id)
    columns: dict[str, Any] = {"trial_id": [trial.trial_id for trial in ordered]}
    for name in names:
        columns[name] = _column([trial.params.get(name) for trial in ordered])
    columns["metric"] = pa.array([trial.value for trial in ordered], pa.float64())
    columns["status"] = [trial.status for trial in ordered]
    columns["reason"] = [trial.reason for trial in ordered]
    columns["seconds"] = pa.array([trial.seconds for trial in ordered], pa.float64())
    for name in sorted({name for trial in ordered for name in trial.metrics} - set(columns)):
        columns[name] = pa.array([trial.metrics.get(name) for trial in ordered], pa.float64())
    storage.write_parquet(storage.join(out, TRIALS), pa.table(columns))


def _column(values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) == 1 and kinds <= {int, float, bool, str}:
        return pa.array(values)
    if kinds and kinds <= {int, float}:
        return pa.array(values, pa.float64())
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())


def copy_package(model: str, out: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Write `model/` as another package with some facts changed, model.json last.

    Args:
        model: URI of a package; its weights are copied byte by byte, and what it packs with it.
        out: of the sweep.
        changes: of model.json.

    Returns:
        The content of the new model.json.
    """
    source, folder = package_uri(model), storage.join(out, "model")
    facts = {**storage.read_json(storage.join(source, MODEL_JSON)), **changes}
    own = {WEIGHTS, MODEL_JSON, "README.md"}
    root = storage.normalise(source).rstrip("/") + "/"
    for entry in storage.list_files(source):
        name = entry.uri.removeprefix(root)
        if name not in own:
            storage.write_atomic(storage.join(folder, name), storage.read_bytes(entry.uri))
    weights = storage.read_bytes(storage.join(source, WEIGHTS), sha256=str(facts["weights_sha256"]))
    storage.write_atomic(storage.join(folder, WEIGHTS), weights)
    storage.write_atomic(storage.join(folder, "README.md"), model_card(facts).encode())
    storage.write_json(storage.join(folder, MODEL_JSON), facts)
    return facts


def write_hparams(out: str, trials: Sequence[Trial], metric: str) -> None:
    """Write TensorBoard's HParams, a folder a trial below `tensorboard/`; of many trials some.

    Those some are spread evenly from the lowest value to the highest.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    known = sorted(
        (trial for trial in trials if trial.value is not None),
        key=lambda trial: (trial.value or 0.0, trial.trial_id),
    )
    picked = np.unique(np.linspace(0, len(known) - 1, _MOST_HPARAMS).round()) if known else ()
    for trial in (known[int(place)] for place in picked):
        plain = {name: _plain(value) for name, value in trial.params.items()}
        with tempfile.TemporaryDirectory(prefix="medray-hparams-") as folder:
            writer: Any = SummaryWriter(folder)
            for summary in hparams(plain, {metric: trial.value}):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(summary)
            writer.add_scalar(metric, trial.value)
            writer.close()
            for path in Path(folder).glob("events.*"):
                where = storage.join(out, TENSORBOARD, trial.trial_id, "events.out.tfevents.0")
                storage.write_atomic(where, path.read_bytes())


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
