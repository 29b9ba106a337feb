"""What a convert task does with one series: load, resample, write, prove, record. No Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray import storage
from medray.dicom.decoder import process_decoder
from medray.dicom.loading import decode_instances, joint_sha256, load_volume
from medray.dicom.series import Instance
from medray.dicom.volume import StackReader
from medray.engine.ledger import Ledger
from medray.engine.series_table import unpack_instances
from medray.errors import DataError
from medray.formats.nifti import nifti_pieces, verify_nifti
from medray.preprocess.spatial import (
    GridPlan,
    GridReducer,
    apply_plan,
    grid_plan,
    resize_plan,
    spacing_grid,
)
from medray.volume import Volume

_RETRIED_REASONS = frozenset({"source_unavailable", "sink_full", "sink_denied", "decode_memory"})


def convert_series(
    payload: dict[str, Any], *, out: str, ledger: str, **options: Any
) -> dict[str, Any]:
    """Convert one series and record its end; a refusal of the data is recorded too.

    Raises:
        DataError: `sink_full` or `sink_denied`: the output, not the input, is at fault.
    """
    known = Ledger(ledger).find(payload["work_key"])
    if known is not None:  # finished by an attempt whose worker died before it could say so
        return {"record": known}
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
    grid = Grid(tuple(options["spacing_zyx_mm"]), tuple(options["size_zyx"]))
    volume, source_sha256 = load_on_grid(instances, grid)
    name = payload["series_key"] + options["suffix"]
    where = storage.join(out, name)
    gz = options["suffix"].endswith(".gz")
    sha256 = write_volume(where, volume, gz=gz, proof=options["proof"])
    return {
        "outputs": [name],
        "sha256": sha256,
        "source_sha256": source_sha256,
        "flags": sorted({*payload["flags"], *volume.flags}),
    }


def write_volume(where: str, volume: Volume, *, gz: bool, proof: bool) -> str:
    """Write a NIfTI atomically, read it back with another reader, and return its sha256.

    Raises:
        DataError: `output_mismatch` (the file is removed), `sink_full`, `sink_denied`.
    """
    receipt = storage.write_atomic(where, nifti_pieces(volume, gz=gz))
    if proof:
        try:
            verify_nifti(where, volume)
        except DataError:
            storage.remove(where)
            raise
    return receipt.sha256


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid that the user asked for; both empty: the native one."""

    spacing_zyx_mm: tuple[float, ...] = ()
    size_zyx: tuple[int, ...] = ()
    antialias: bool = True

    def plan(self, shape_zyx: Sequence[int], affine_lps: np.ndarray) -> GridPlan | None:
        """Return how a volume is sampled on this grid, None for the native one."""
        if self.size_zyx:
            return resize_plan(shape_zyx, affine_lps, self.size_zyx, antialias=self.antialias)
        if not self.spacing_zyx_mm:
            return None
        affine, shape = spacing_grid(shape_zyx, affine_lps, self.spacing_zyx_mm)
        return grid_plan((shape_zyx, affine_lps), (shape, affine), antialias=self.antialias)


def load_on_grid(instances: Sequence[Instance], grid: Grid) -> tuple[Volume, str]:
    """Load one stack on a grid; slices are reduced as they come, the native volume never exists.

    Returns:
        The volume and the sha256 over its instances.

    Raises:
        DataError: a read, decode or volume reason.
    """
    decoder = process_decoder()
    reader = StackReader([item.header for item in instances])
    plan = grid.plan(reader.shape_zyx, reader.geometry.affine_lps)
    if plan is None:
        return load_volume(instances, decoder)
    if reader.geometry.is_tilted:  # slices must be moved in their plane first
        volume, sha256 = load_volume(instances, decoder)
        straight = grid.plan(volume.array.shape, volume.affine_lps)
        assert straight is not None
        return apply_plan(volume, straight), sha256
    reducer = GridReducer(plan, np.dtype(np.float32))
    hashes = []
    for decoded in decode_instances(instances, decoder):
        hashes.append(decoded.sha256)
        for k, values in reader.slices_of(decoded):
            reducer.add(k, values)
    reader.require_all()
    return reducer.finish(), joint_sha256(hashes)
