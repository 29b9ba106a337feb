"""Records as JSON: how they travel to workers and what an example's identity is made of."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from medray.datasets.record import FileRef, ImageSource, Record


def record_to_json(record: Record) -> dict[str, Any]:
    """Return a record as plain JSON values."""
    return asdict(record)


def record_from_json(raw: Mapping[str, Any]) -> Record:
    """Return the record that `record_to_json` wrote."""
    plain = dict(raw)
    boxes = plain["boxes_xyxy_px"]
    plain["image"] = _source(plain["image"])
    plain["mask"] = None if plain["mask"] is None else _source(plain["mask"])
    plain["extra_images"] = {name: _source(item) for name, item in plain["extra_images"].items()}
    plain["boxes_xyxy_px"] = None if boxes is None else tuple(tuple(box) for box in boxes)
    plain["box_labels"] = tuple(plain["box_labels"])
    return Record(**plain)


def _source(raw: Mapping[str, Any]) -> ImageSource:
    files = tuple(_file(item) for item in raw["files"])
    return ImageSource(**{**raw, "files": files})


def _file(raw: Mapping[str, Any]) -> FileRef:
    return FileRef(uri=raw["uri"], bytes=raw["bytes"], stamp=raw["stamp"])
