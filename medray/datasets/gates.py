"""Checks on examples.parquet that stop a run before it wastes GPU time (docs/DESIGN section 8)."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Finding = tuple[str, str]
Row = Mapping[str, Any]
# Real tables hold a few misread cases; more is a broken reader.
_MAX_SHARE = 0.05
_WHOLE_IMAGE_SHARE = 0.95
_NUM_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRules:
    """What the task promises of its examples.

    Attributes:
        num_classes: classes of `label`; below 2 there is nothing to compare.
        lesion_in_each: every case must hold a mask or a box.
        lesion_boxes: boxes mark lesions, so they do not cover an image; off under `compat`.
    """

    num_classes: int = 0
    lesion_in_each: bool = False
    lesion_boxes: bool = False


def find_failures(rows: Sequence[Row], rules: GateRules) -> tuple[Finding, ...]:
    """Return (reason, sentence) of every gate that the examples fail, offenders named by key."""
    checks: tuple[Callable[[Sequence[Row], GateRules], list[Finding]], ...] = (
        _labels_constant,
        _class_missing,
        _split_leak,
        _duplicate_image,
        _mask_empty,
        _box_whole_image,
        _image_constant,
    )
    return tuple(finding for check in checks for finding in check(rows, rules))


def _name(rows: Sequence[Row]) -> str:
    keys = sorted({str(row["key"]) for row in rows})
    more = f" and {len(keys) - _NUM_NAMED} more" if len(keys) > _NUM_NAMED else ""
    return ", ".join(keys[:_NUM_NAMED]) + more


def _labelled(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("label") is not None and row["label"] >= 0]


def _labels_constant(rows: Sequence[Row], rules: GateRules) -> list[Finding]:
    labelled = _labelled(rows)
    if rules.num_classes < 2 or not labelled or len({row["label"] for row in labelled}) > 1:
        return []
    sentence = f"all {len(labelled)} examples have label {labelled[0]['label']}: {_name(labelled)}"
    return [("labels_constant", sentence)]


def _class_missing(rows: Sequence[Row], rules: GateRules) -> list[Finding]:
    labelled = _labelled(rows)
    if rules.num_classes < 2 or len({row["label"] for row in labelled}) < 2:
        return []
    wanted = set(range(rules.num_classes)) | {int(row["label"]) for row in labelled}
    findings = []
    for split in sorted({str(row["split"]) for row in labelled}):
        members = [row for row in labelled if row["split"] == split]
        missing = sorted(wanted - {int(row["label"]) for row in members})
        if missing:
            classes = ", ".join(str(label) for label in missing)
            sentence = f"split {split} has no example of class {classes}; it has {_name(members)}"
            findings.append(("class_missing", sentence))
    return findings


def _split_leak(rows: Sequence[Row], rules: GateRules) -> list[Finding]:
    del rules
    return _shared(rows, "patient_id", "split_leak", "patients are in two splits")


def _duplicate_image(rows: Sequence[Row], rules: GateRules) -> list[Finding]:
    del rules
    return _shared(
        rows, "pixel_sha256", "duplicate_image", "images with equal pixels are in two splits"
    )


def _shared(rows: Sequence[Row], column: str, reason: str, what: str) -> list[Finding]:
    """Find values of a column that occur in several splits."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.get(column):
            groups[str(row[column])].append(row)
    torn = [group for group in groups.values() if len({row["split"] for row in group}) > 1]
    if not torn:
        return []
    return [(reason, f"{len(torn)} {what}: {_name([row for group in torn for row in group])}")]


def _mask_empty(rows: Sequence[Row], rules: GateRules) -> list[Finding]:
    if not rules.lesion_in_each or not rows:
        return []
    empty = [row for row in rows if _is_empty(row)]
    if len(empty) <= _MAX_SHARE * len(rows):
        return []
    return [("mask_empty", f"{len(empty)} of {len(rows)} cases have no lesion: {_name(empty)}")]


def _is_empty(row: Row) -> bool:
    voxels, boxes = row.get("num_mask_voxels"), row.get("num_boxes")
    known = [int(count) for count in (voxels, boxes) if count is not None and count >= 0]
    return not any(known)


def _box_whole_image(rows: Sequence[Row], rules: GateRules) -> list[Finding]:
    boxed = [row for row in rows if (row.get("num_boxes") or 0) > 0]
    if not rules.lesion_boxes or not boxed:
        return []
    whole = [row for row in boxed if (row.get("max_box_share") or 0.0) >= _WHOLE_IMAGE_SHARE]
    if len(whole) <= _MAX_SHARE * len(boxed):
        return []
    sentence = f"{len(whole)} of {len(boxed)} images have a box over all of it: {_name(whole)}"
    return [("box_whole_image", sentence)]


def _image_constant(rows: Sequence[Row], rules: GateRules) -> list[Finding]:
    del rules
    flat = [
        row
        for row in rows
        if row.get("value_min") is not None and row["value_min"] == row["value_max"]
    ]
    if not flat:
        return []
    return [("image_constant", f"{len(flat)} images have one value only: {_name(flat)}")]
