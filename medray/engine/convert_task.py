"""What a convert task does with one series: load, resample, write, prove, record. No Ray."""

from typing import Any

from medray import storage
from medray.dicom.decoder import process_decoder
from medray.dicom.loading import load_volume
from medray.engine.ledger import Ledger
from medray.engine.series_table import unpack_instances
from medray.errors import DataError
from medray.formats.nifti import verify_nifti, write_nifti
from medray.preprocess.spatial import resample_spacing, resize_volume
from medray.volume import Volume

_RETRIED_REASONS = frozenset({"source_unavailable", "sink_full", "sink_denied", "decode_memory"})


def convert_series(payload: dict[str, Any], *, out: str, ledger: str, **options: Any) -> dict[str, Any]:
    """Convert one series and record its end; a refusal of the data is recorded too.

    Raises:
        DataError: `sink_full` or `sink_denied`: the output, not the input, is at fault.
    """
    record = {
        "key": payload["series_key"],
        "series_uid": payload["series_uid"],
        "uri": payload["instances"][0]["uri"],
        "stage": "convert",
        "reason": "",
        "detail": "",
    }
    try:
        record.update(_convert(payload, out, options))
    except DataError as error:
        if error.reason in {"sink_full", "sink_denied"}:
            raise
        record.update(reason=error.reason, detail=error.detail)
    if record["reason"] not in _RETRIED_REASONS:
        Ledger(ledger).commit(payload["work_key"], record)
    num_bytes = sum(item["bytes"] for item in payload["instances"])
    return {"record": record, "cost": {"bytes": num_bytes}}


def _convert(payload: dict[str, Any], out: str, options: dict[str, Any]) -> dict[str, Any]:
    instances = unpack_instances(payload["instances"])
    volume, source_sha256 = load_volume(instances, process_decoder())
    volume = regrid(volume, options["spacing_zyx_mm"], options["size_zyx"])
    name = payload["series_key"] + options["suffix"]
    where = storage.join(out, name)
    gz = options["suffix"].endswith(".gz")
    receipt = storage.write_atomic(where, lambda file: write_nifti(file, volume, gz=gz))
    if options["proof"]:
        _prove(where, volume)
    return {
        "outputs": [name],
        "sha256": receipt.sha256,
        "source_sha256": source_sha256,
        "flags": sorted({*payload["flags"], *volume.flags}),
    }


def _prove(where: str, volume: Volume) -> None:
    try:
        verify_nifti(where, volume)
    except DataError:
        storage.remove(where)
        raise


def regrid(volume: Volume, spacing_zyx_mm: list[float], size_zyx: list[int]) -> Volume:
    """Return the volume on the grid that the user asked for."""
    if spacing_zyx_mm:
        z, y, x = spacing_zyx_mm
        return resample_spacing(volume, (z, y, x))
    if size_zyx:
        depth, height, width = size_zyx
        return resize_volume(volume, (depth, height, width))
    return volume
