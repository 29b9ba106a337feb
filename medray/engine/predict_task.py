"""What a prediction actor does with one case: load, transform, predict, write, prove, record."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from medray.datasets.loading import load_sample
from medray.dicom.decoder import process_decoder
from medray.engine.actor_pool import answer_block
from medray.engine.case import predict_sample
from medray.engine.ledger import Ledger
from medray.engine.predict_output import SUBMISSION, Answer, write_case
from medray.engine.predict_planar import predict_images
from medray.engine.predict_sources import source_record
from medray.engine.predictor import Predictor
from medray.engine.prepare_task import CountingReader
from medray.errors import ConfigError, DataError
from medray.volume import Volume

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
        known = self.ledger.find(payload["work_key"])
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
        reader = CountingReader(process_decoder())
        try:
            find = self._on_images if self.predictor.recipe.is_planar else self._on_volume
            answer = find(payload, reader)
            row = write_case(self.out, answer, self.predictor.facts, self.request.formats)
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
            record["key"] = _case_key(payload, reader) or record["key"]
        if record["reason"] not in _PASSING:
            self.ledger.commit(payload["work_key"], record)
        return {"record": record, "cost": {"bytes": reader.num_bytes}}

    def _on_volume(self, payload: Mapping[str, Any], reader: CountingReader) -> Answer:
        sample = load_sample(source_record(payload["source"]), reader)
        prediction = predict_sample(self.predictor, sample, self.request.upstream)
        image = sample.image
        if not isinstance(image, Volume):
            raise DataError("wrong_modality", "the task takes volumes")
        return Answer(
            key=_case_key(payload, reader),
            series_uid=payload["source"]["series_uid"],
            image=image,
            prediction=prediction,
            flags=tuple(sorted({*payload["flags"], *image.flags})),
        )

    def _on_images(self, payload: Mapping[str, Any], reader: CountingReader) -> Answer:
        source = source_record(payload["source"]).image
        chain = self.request.upstream
        found = predict_images(self.predictor, source, payload["sop_uids"], reader, chain)
        assert found.best is not None
        assert found.image is not None
        return Answer(
            key=_case_key(payload, reader),
            series_uid=payload["source"]["series_uid"],
            image=found.image,
            prediction=found.best,
            flags=tuple(sorted({*payload["flags"], *found.refused})),
            status="partial" if found.refused else "complete",
            boxes=tuple(found.boxes),
            images=tuple(found.images),
        )


def _case_key(payload: Mapping[str, Any], reader: CountingReader) -> str:
    """Return the series_key; of another file 16 digits of its bytes' sha256, once it is read."""
    return str(payload["key"] or "".join(reader.sha256s[:1])[:16])
