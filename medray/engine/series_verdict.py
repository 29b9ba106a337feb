"""What becomes of a series of the index before any of its pixels is read."""

from typing import Any

_SKIPPED_VERDICTS = frozenset({"no_pixels", "localizer"})


# What keeps slices from being one volume is nothing to a task that takes them one by one.
_OF_VOLUMES_ALONE = frozenset(
    {
        "no_geometry",
        "too_few_slices",
        "mixed_size",
        "mixed_orientation",
        "slice_increment_inconsistent",
        "missing_slices",
        "duplicate_positions",
    }
)


def series_refusal(row: dict[str, Any], *, planar: bool = False) -> tuple[str, str, str] | None:
    """Return why a series gives no volume: skipped or rejected, reason, sentence.

    Args:
        planar: its images are taken one by one; no volume is wanted.
    """
    verdict = row["verdict"]
    if planar and (verdict in _OF_VOLUMES_ALONE or verdict == "ok"):
        return None
    if verdict in _SKIPPED_VERDICTS or (row["kind"] == "other" and verdict == "wrong_modality"):
        return "skipped", verdict, row["detail"]
    if verdict != "ok":
        return "rejected", verdict, row["detail"]
    if row["kind"] != "volume":
        return "rejected", "wrong_modality", "a projection image is no volume"
    if row["pixel_layout"] != "mono":
        return "rejected", "unsupported_pixels", "colour slices do not make a volume of values"
    return None


def refused_series(row: dict[str, Any], reason: str, detail: str) -> dict[str, Any]:
    """Return the rejected row of a series."""
    return {
        "key": row["series_key"],
        "uri": row["instances"][0]["uri"] if row["instances"] else "",
        "series_uid": row["series_uid"],
        "stage": "volume",
        "reason": reason,
        "detail": detail,
    }
