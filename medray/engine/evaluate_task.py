"""What an evaluation actor does with one example: predict, measure, draw."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from medray import storage
from medray.engine.actor_pool import answer_block
from medray.engine.examples import batch_arrays, decode_example
from medray.engine.ledger import Ledger
from medray.engine.predictor import Predictor
from medray.learning import Prediction, Row, mask_threshold
from medray.pictures import compared_tile
from medray.recipe import Recipe

STAGE = "evaluate_example"


class EvaluateActor:
    """Holds the model; Ray Data keeps a few of these and hands them examples."""

    def __init__(
        self, recipe: Recipe[Any], model: str, device: str, ledger: str, tiles: str
    ) -> None:
        self.predictor = Predictor(recipe, model, device=device)
        self.ledger = Ledger(ledger)
        self.tiles = tiles

    def __call__(self, table: pa.Table) -> pa.Table:
        """Evaluate a block of examples; each result is a JSON text."""
        return answer_block(table, self._one, STAGE)

    def _one(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate one example.

        Raises:
            DataError: checksum_mismatch, model_output_invalid, or what storage says.
        """
        known = self.ledger.find(payload["work_key"])
        if known is not None:
            return {"record": known}
        arrays, facts = decode_example(storage.read_bytes(payload["uri"], sha256=payload["sha256"]))
        found = self.predictor.probabilities([arrays])[0]
        prediction = self.predictor.interpreter.decode(found, facts)
        row = self._row(payload, arrays, facts, found, prediction)
        self._draw(payload["key"], arrays, found)
        self.ledger.commit(payload["work_key"], row)
        return {"record": row}

    def _row(
        self,
        payload: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        found: Mapping[str, np.ndarray],
        prediction: Prediction,
    ) -> Row:
        learning = self.predictor.interpreter.recipe.learning
        row = measured_row(self.predictor, payload["label"], arrays, found)
        if learning.compare is not None:
            row.update(learning.compare(prediction, arrays, facts))
        return {
            "key": payload["key"],
            "patient_id": payload["patient_id"],
            "split": payload["split"],
            "label": payload["label"],
            "scores": list(prediction.scores),
            "score": prediction.score,
            "predicted_label": prediction.label,
            "volume_ml": prediction.volume_ml,
            **row,
        }

    def _draw(
        self, key: str, arrays: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
    ) -> None:
        """Keep a small picture: truth and prediction on the telling slice."""
        from PIL import Image

        threshold = mask_threshold(self.predictor.interpreter.inference)
        mask = found["mask"] >= threshold if "mask" in found else None
        boxes = found["boxes"][found["scores"] >= threshold] if "boxes" in found else None
        tile = compared_tile(arrays, mask, found_boxes_xyxy_px=boxes)
        out = io.BytesIO()
        Image.fromarray(tile).save(out, format="PNG")
        storage.write_atomic(storage.join(self.tiles, f"{key}.png"), out.getvalue())


def measured_row(
    predictor: Predictor,
    label: int,
    arrays: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
) -> Row:
    """Return what the task measures of one example's probabilities."""
    learning = predictor.interpreter.recipe.learning
    collated = learning.collate([batch_arrays(arrays)])
    batch = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in collated.items()}
    batch["label"] = torch.tensor([label])
    probabilities = {name: torch.from_numpy(value)[None] for name, value in found.items()}
    return learning.measure(probabilities, batch, predictor.interpreter.hparams)[0]
