"""What a prediction actor does with one case: load, transform, predict, write, prove, record."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from medray.dicom.decoder import process_decoder
from medray.engine.actor_pool import answer_block
from medray.engine.case import answered
from medray.engine.case_answer import answer_steps, case_key
from medray.engine.ledger import Ledger
from medray.engine.predict_output import SUBMISSION, write_case
from medray.engine.predictor import Predictor
from medray.engine.prepare_task import CountingReader
from medray.engine.upstream import network_of
from medray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from medray.engine.predict import PredictRequest

STAGE = "predict_case"
_OUR_FAULT = frozenset({"sink_full", "sink_denied"})
_PASSING = frozenset({"source_unavailable", "decode_memory"})


class PredictActor:
    """Holds the model; Ray Data keeps a few of these and hands them cases."""

    def __init__(self, request: "PredictRequest", out: str, ledger: str, device: str) -> None:
        self.request = request
        self.predictor = Predictor(request.recipe, request.model, device=device)
        self.out = out
        self.ledger = Ledger(ledger)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Predict a block of cases; each result is a JSON text."""
        return answer_block(table, self._one, STAGE)

    def _one(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Predict one case and record its end; a refusal of the data is recorded too.

        Raises:
            DataError: `sink_full` or `sink_denied`: the output, not the input, is at fault.
        """
        known = None if payload.get("again") else self.ledger.find(payload["work_key"])
        if known is not None:  # finished by an attempt whose worker died before it could say so
            return {"record": known}
        record: dict[str, Any] = {
            "key": payload["name"],
            "uri": payload["source"]["files"][0]["uri"],
            "series_uid": payload["source"]["series_uid"],
            "stage": "predict",
            "reason": "",
            "detail": "",
        }
        wants_seg = "seg" in self.request.formats
        reader = CountingReader(process_decoder(), keeps_headers=wants_seg)
        try:
            chain = self.request.upstream
            policy = self.request.policy
            steps = answer_steps(self.predictor.interpreter, chain, payload, reader, policy=policy)
            answer = answered(steps, network_of(self.predictor, chain))
            row = write_case(
                self.out, answer, self.predictor.interpreter.facts, self.request.formats
            )
            record.update(key=row["key"], row=row)
            if SUBMISSION in self.request.formats:
                patient = {"patient_id": payload["patient_id"]}
                record["images"] = [{**image, **patient} for image in answer.images]
        except DataError as error:
            if error.reason in _OUR_FAULT:
                raise
            record.update(reason=error.reason, detail=error.detail)
        except MemoryError:
            record.update(reason="decode_memory", detail="the worker ran out of memory")
        except ConfigError as error:
            return {"stop": str(error)}
        if record["reason"]:
            record["key"] = case_key(payload, reader) or record["key"]
        if record["reason"] not in _PASSING:
            self.ledger.commit(payload["work_key"], record)
        return {"record": record, "cost": {"bytes": reader.num_bytes}}
