"""What a prepare task does with one record: load, transform, write, record. No Ray."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray import storage
from medray.datasets.fingerprint import partial_fingerprint
from medray.datasets.loading import load_sample
from medray.datasets.record import FileRef, Record
from medray.datasets.record_json import record_from_json
from medray.dicom.decoder import DecodedInstance, PixelDecoder, process_decoder
from medray.engine.examples import encode_example, example_row
from medray.engine.ledger import Ledger, content_key
from medray.engine.upstream import Upstream, with_upstream
from medray.errors import DataError
from medray.recipe import Recipe

_OUR_FAULT = frozenset({"sink_full", "sink_denied"})
_PASSING = frozenset({"source_unavailable", "decode_memory"})


class CountingReader:
    """Reads and decodes for one record; knows the hash of every byte that went into it.

    Args:
        decoder: of this process.
        keeps_headers: of DICOM files, as segmentations of them need.
    """

    def __init__(self, decoder: PixelDecoder, *, keeps_headers: bool = False) -> None:
        self.decoder = decoder
        self.headers: list[Any] = []
        self._keeps_headers = keeps_headers
        self.sha256s: list[str] = []
        self.num_bytes = 0
        self.last_uri = ""

    def read(self, file: FileRef) -> bytes:
        """Return a whole file.

        Raises:
            DataError: a read or store reason.
        """
        self.last_uri = file.uri
        data = storage.read_bytes(file.uri, expected_bytes=file.bytes)
        self.sha256s.append(hashlib.sha256(data).hexdigest())
        self.num_bytes += len(data)
        return data

    def decode_many(self, blobs: Iterable[bytes]) -> Iterator[DecodedInstance | DataError]:
        """Decode DICOM files in order."""
        return self.decoder.decode_many(map(self._kept, blobs) if self._keeps_headers else blobs)

    def _kept(self, blob: bytes) -> bytes:
        """Keep a file's header; one that cannot be read is the decoder's to refuse."""
        from medray.dicom.seg_source import source_header

        with contextlib.suppress(DataError):
            self.headers.append(source_header(blob))
        return blob


def prepare_example(
    payload: Mapping[str, Any],
    *,
    recipe: Recipe[Any],
    hparams: Any,
    out: str,
    ledger: str,
    upstream: Sequence[Upstream] = (),
) -> dict[str, Any]:
    """Prepare one record and record its end; a refusal of the data is recorded too.

    Raises:
        DataError: `sink_full` or `sink_denied`: the output, not the input, is at fault.
    """
    known = Ledger(ledger).find(payload["work_key"])
    if known is not None:  # finished by an attempt whose worker died before it could say so
        return {"record": known}
    found: dict[str, Any] = {
        "key": payload["work_key"],
        "uri": payload["uri"],
        "series_uid": payload["series_uid"],
        "stage": "prepare",
        "reason": "",
        "detail": "",
    }
    reader = CountingReader(process_decoder())
    record = record_from_json(payload["record"])
    try:
        found.update(_prepare(record, reader, Transform(recipe, hparams, tuple(upstream)), out))
    except DataError as error:
        if error.reason in _OUR_FAULT:
            raise
        found.update(reason=error.reason, detail=error.detail)
        if record.mask is not None and reader.last_uri == record.mask.files[0].uri:
            found.update(uri=reader.last_uri)  # the image was read: its mask is at fault
    if found["reason"] not in _PASSING:
        Ledger(ledger).commit(payload["work_key"], found)
    return {"record": found, "cost": {"bytes": reader.num_bytes}}


@dataclass(frozen=True, slots=True)
class Transform:
    """What turns a sample into an example: the task's own transform and the models before it."""

    recipe: Recipe[Any]
    hparams: Any
    upstream: tuple[Upstream, ...] = ()

    def identity(self) -> tuple[Any, ...]:
        """Return what decides about the output beside the input."""
        chosen = {name: getattr(self.hparams, name) for name in self.recipe.prepare_fields}
        hashes = [model.weights_sha256 for model in self.upstream]
        # Keys of data sets without upstream models stay as they were.
        return (
            self.recipe.name,
            self.recipe.transform_version,
            chosen,
            *([hashes] if hashes else []),
        )


def _prepare(
    record: Record, reader: CountingReader, transform: Transform, out: str
) -> dict[str, Any]:
    sample = load_sample(record, reader)
    if transform.upstream:
        sample = with_upstream(sample, transform.upstream)
    prepared = transform.recipe.prepare(sample, transform.hparams)
    key = example_key(transform, record, reader.sha256s)
    data = encode_example(prepared, key=key)
    receipt = storage.write_atomic(storage.join(out, "examples", f"{key}.safetensors"), data)
    row = example_row(record, prepared, key=key, sha256=receipt.sha256)
    return {"row": row, "facts": partial_fingerprint(sample)}


def example_key(transform: Transform, record: Record, source_sha256s: list[str]) -> str:
    """Return the key of an example: the bytes read, its labels, the transform and what sets it."""
    labels = (record.label, record.boxes_xyxy_px, record.box_labels, dict(record.meta))
    return content_key(*transform.identity(), sorted(source_sha256s), labels)
