"""What index tasks do: read the headers of a shard, judge the series of a bucket. No Ray."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medray import storage
from medray.dicom.dataset import has_dicom_mark, looks_like_dicom, open_dataset
from medray.dicom.header import HEADER_TAGS, InstanceHeader, parse_header
from medray.dicom.scan import scan_header
from medray.dicom.series import Instance, Stack, folder_of, split_series
from medray.engine.schemas import INSTANCES, SERIES
from medray.errors import DataError

NUM_BUCKETS = 4096
_REMOTE_READERS = 16
# One range holds the header of nearly every image; the few longer ones are read again, whole.
_REMOTE_HEADER_BYTES = 128 << 10
# An ordinary header ends well before; a longer one takes pydicom's way.
_HEAD_BYTES = 32 << 10
_DICOMDIR = "1.2.840.10008.1.3.10"


def crawl_shard(payload: dict[str, Any], *, out: str) -> dict[str, Any]:
    """Bring one shard of the instances table up to date; read only new and changed files."""
    where = storage.join(out, "instances", f"{payload['name']}.parquet")
    known = _known_rows(where)
    files: list[dict[str, Any]] = payload["files"]
    fresh = [item for item in files if _identity(item) not in known]
    read = dict(zip((item["uri"] for item in fresh), _read_all(fresh), strict=True))
    rows = [read.get(item["uri"]) or known[_identity(item)] for item in files]
    rows.sort(key=lambda row: (row["bucket"], row["uri"]))
    if fresh or len(rows) != len(known):
        storage.write_parquet(where, pa.Table.from_pylist(rows, schema=INSTANCES))
    outcomes: dict[str, int] = {}
    for row in rows:
        old = row["uri"] not in read and row["status"] == "done"
        name = "skipped:already_done" if old else f"{row['status']}:{row['reason']}"
        outcomes[name] = outcomes.get(name, 0) + 1
    return {
        "outcomes": outcomes,
        "num_read": len(fresh),
        "digest": _digest(rows),
        "cost": {"bytes": sum(item["bytes"] for item in fresh)},
    }


def _identity(item: dict[str, Any]) -> tuple[str, int, str]:
    return item["uri"], item["bytes"], item.get("stamp", item.get("mtime_or_etag", ""))


def _known_rows(where: str) -> dict[tuple[str, int, str], dict[str, Any]]:
    if not storage.exists(where):
        return {}
    rows = storage.read_parquet(where).to_pylist()
    return {(row["uri"], row["bytes"], row["mtime_or_etag"]): row for row in rows}


def _digest(rows: Iterable[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row['uri']}\0{row['bytes']}\0{row['mtime_or_etag']}\n".encode())
    return digest.hexdigest()


def _read_all(files: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Read headers; remote stores hide their latency behind threads, local ones need none."""
    if not files or storage.is_local(files[0]["uri"]):
        return [_row(item) for item in files]
    with ThreadPoolExecutor(_REMOTE_READERS) as pool:
        return list(pool.map(_row, files))


def _row(item: dict[str, Any]) -> dict[str, Any]:
    """Return the instances row of one file, whatever it is."""
    row: dict[str, Any] = {
        "uri": item["uri"],
        "bytes": item["bytes"],
        "mtime_or_etag": item["stamp"],
        "bucket": 0,
        "header": "",
        "reason": "",
        "detail": "",
        "status": "done",
    }
    try:
        if item["error"]:
            raise DataError(*item["error"])
        header = read_header(item["uri"], item["bytes"])
    except DataError as error:
        row.update(reason=error.reason, detail=error.detail)
        row["status"] = "rejected" if _counts_as_input(item, error) else "skipped"
        return row
    if not header.has_pixels or header.sop_class_uid == _DICOMDIR:
        row.update(status="skipped", reason="no_pixels", detail="the object has no pixel data")
    elif "LOCALIZER" in header.image_type.upper().split("\\"):
        row.update(status="skipped", reason="localizer", detail="the instance is a scout view")
    row.update(_columns(header), header=header.to_json(), bucket=_bucket(header, item["uri"]))
    return row


def _counts_as_input(item: dict[str, Any], error: DataError) -> bool:
    """Tell rejected from skipped: named, marked or suffixed as DICOM, or gone while we looked."""
    marked = bool(getattr(error, "marked", False))
    return (
        bool(item.get("named"))
        or marked
        or str(item["uri"]).lower().endswith(".dcm")
        or error.reason in {"source_unavailable", "unsafe_archive", "bomb_suspected"}
    )


class _MarkedError(DataError):
    """A refusal of a file that carries the DICM mark."""

    marked = True


def read_header(uri: str, num_bytes: int) -> InstanceHeader:
    """Read the header of one file: streamed locally, by one range where it is remote.

    Raises:
        DataError: a `read` reason.
    """
    handle = storage.open_local(uri)
    if handle is not None:
        with handle:
            return _parse(handle)
    if num_bytes <= _REMOTE_HEADER_BYTES or uri.startswith("zip://"):
        return _parse(io.BytesIO(storage.read_bytes(uri, expected_bytes=num_bytes)))
    head = storage.read_range(uri, 0, _REMOTE_HEADER_BYTES)
    if not has_dicom_mark(head) and not looks_like_dicom(head):
        raise DataError("not_dicom", "the file has no DICM mark and no DICOM elements")
    try:
        header = _parse(io.BytesIO(head))
        if header.has_pixels:
            return header
    except DataError:
        pass  # the header may be longer than the range: the whole file decides
    return _parse(io.BytesIO(storage.read_bytes(uri, expected_bytes=num_bytes)))


def _parse(stream: Any) -> InstanceHeader:
    head = stream.read(_HEAD_BYTES)
    try:
        quick = scan_header(head)
        if quick is not None:
            return parse_header(quick[0], has_pixels=True)
    except DataError as error:
        raise _MarkedError(error.reason, error.detail) from None
    stream.seek(0)
    try:
        dataset, has_pixels = open_dataset(stream, stop_before_pixels=True, tags=HEADER_TAGS)
        header = parse_header(dataset, has_pixels=has_pixels)
    except DataError as error:
        if has_dicom_mark(head):
            raise _MarkedError(error.reason, error.detail) from None
        raise
    if has_dicom_mark(head) and not has_pixels and not header.sop_class_uid:
        raise _MarkedError("missing_tag", "the file says neither what it is nor shows pixels")
    if not has_dicom_mark(head) and not (header.sop_class_uid or header.rows):
        raise DataError("not_dicom", "the file has no DICM mark and no image elements")
    return header


def _columns(header: InstanceHeader) -> dict[str, Any]:
    position = header.planes[0].position_mm
    return {
        "study_uid": header.study_uid,
        "series_uid": header.series_uid,
        "sop_uid": header.sop_uid,
        "sop_class_uid": header.sop_class_uid,
        "modality": header.modality,
        "transfer_syntax_uid": header.transfer_syntax_uid,
        "rows": header.rows,
        "columns": header.columns,
        "num_frames": header.num_frames,
        "instance_number": header.instance_number,
        "position_mm": None if position is None else list(position),
    }


def _bucket(header: InstanceHeader, uri: str) -> int:
    """Place a file where all of its series come together; without a UID, its folder's files."""
    group = header.series_uid or f"folder:{folder_of(uri)}"
    digest = hashlib.blake2b(group.encode("utf-8", "surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest, "big") % NUM_BUCKETS


def group_bucket(payload: dict[str, Any], *, out: str) -> dict[str, Any]:
    """Judge every series whose bucket lies in a range; write one part of the series table."""
    low, high = payload["low"], payload["high"]
    instances: list[Instance] = []
    for name in payload["shards"]:
        uri = storage.join(out, "instances", f"{name}.parquet")
        table = storage.read_parquet(
            uri, columns=["uri", "bytes", "mtime_or_etag", "bucket", "header"]
        )
        here = pc.and_(pc.greater_equal(table["bucket"], low), pc.less(table["bucket"], high))
        here = pc.and_(here, pc.not_equal(table["header"], ""))
        instances.extend(_instance(row) for row in table.filter(here).to_pylist())
    stacks = split_series(instances)
    where = storage.join(out, "series", f"{payload['name']}.parquet")
    storage.write_parquet(
        where, pa.Table.from_pylist([series_row(s) for s in stacks], schema=SERIES)
    )
    verdicts: dict[str, int] = {}
    for stack in stacks:
        verdicts[stack.verdict] = verdicts.get(stack.verdict, 0) + 1
    return {"verdicts": verdicts}


def _instance(row: dict[str, Any]) -> Instance:
    return Instance(
        uri=row["uri"],
        bytes=row["bytes"],
        stamp=row["mtime_or_etag"],
        header=InstanceHeader.from_json(row["header"]),
    )


def series_row(stack: Stack) -> dict[str, Any]:
    """Return the row of the series table that a stack is."""
    header = stack.header
    geometry = stack.geometry
    return {
        "series_key": stack.series_key,
        "kind": stack.kind,
        "patient_id": header.patient_id,
        "study_uid": header.study_uid,
        "series_uid": header.series_uid,
        "modality": header.modality,
        "num_instances": len(stack.instances),
        "rows": header.rows,
        "columns": header.columns,
        "num_slices": stack.num_slices,
        "spacing_zyx_mm": list(geometry.spacing_zyx_mm) if geometry else [],
        "affine_lps": geometry.affine_lps.ravel().tolist() if geometry else [],
        "transfer_syntax_uid": header.transfer_syntax_uid,
        "pixel_layout": header.pixel_layout,
        "bytes": sum(item.bytes for item in stack.instances),
        "predicted_peak_bytes": stack.predicted_peak_bytes,
        "verdict": stack.verdict,
        "detail": stack.detail,
        "flags": list(stack.flags),
        "instances": [
            {
                "uri": item.uri,
                "bytes": item.bytes,
                "stamp": item.stamp,
                "header": item.header.to_json(),
            }
            for item in stack.instances
        ],
    }
