"""Predictions of a split, made once and kept as one row a case: what a sweep of inference reads."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from medray import storage
from medray.engine.actor_pool import Pool, answer_block
from medray.engine.evaluate import EvaluateRequest
from medray.engine.evaluate_task import measured_row
from medray.engine.example_pool import ExamplePlan, rows_of_examples
from medray.engine.examples import decode_example
from medray.engine.ledger import Ledger, content_key
from medray.engine.predictor import Predictor
from medray.engine.run import Counts, Run
from medray.engine.weights import read_model_json
from medray.learning import Row
from medray.recipe import Recipe

STAGE = "collect_example"
_FORMAT = 1


class CollectActor:
    """Holds the model; Ray Data keeps a few of these and hands them examples."""

    def __init__(
        self, recipe: Recipe[Any], model: str, device: str, ledger: str, *, surveyed: bool
    ) -> None:
        raw = recipe.learning.sweep.raw
        self.survey = recipe.learning.sweep.survey if surveyed else None
        self.predictor = Predictor(recipe, model, device=device, inference=raw)
        self.ledger = Ledger(ledger)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Predict a block of examples; each result is a JSON text."""
        return answer_block(table, self._one, STAGE)

    def _one(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Predict one example and keep its row.

        Raises:
            DataError: checksum_mismatch, model_output_invalid, or what storage says.
        """
        arrays, facts = decode_example(storage.read_bytes(payload["uri"], sha256=payload["sha256"]))
        found = self.predictor.probabilities([arrays])[0]
        row = measured_row(self.predictor, payload["label"], arrays, found)
        row = {
            "key": payload["key"],
            "patient_id": payload["patient_id"],
            "label": payload["label"],
            **row,
            **(self.survey(found, arrays, facts) if self.survey else {}),
        }
        self.ledger.commit(payload["work_key"], row)
        return {"record": row}


def collect_rows(
    run: Run, request: EvaluateRequest, counts: Counts, *, surveyed: bool, quiet: bool
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Return one row of raw predictions a case, and the rejected cases, both sorted by key.

    Cases that an earlier run predicted are read from the output.

    Args:
        run: whose stage and ledger this is.
        request: model, data and split.
        counts: where the cases are counted.
        surveyed: whether the task's survey is made too, which may take longer than the network.
        quiet: no progress.
    """
    weights_sha256 = read_model_json(request.model)["weights_sha256"]
    ledger = Ledger(run.state("ledger", "rows"))
    raw = dict(request.recipe.learning.sweep.raw)
    settings = {**request.actor_settings(ledger), "surveyed": surveyed}
    plan = ExamplePlan(
        stage="predict",
        uri=request.prepared.uri,
        pool=Pool(actor=CollectActor, settings=settings, use_gpu=request.use_gpu),
        ledger=ledger,
        key_of=lambda row: content_key(
            _FORMAT, row["key"], row["sha256"], weights_sha256, raw, surveyed
        ),
        counts=counts,
    )
    return rows_of_examples(run, plan, request.prepared.split(request.split), quiet=quiet)
