"""What becomes of a series of the index before any of its pixels is read."""

from typing import Any

_SKIPPED_VERDICTS = frozenset({"no_pixels", "localizer"})


def series_refusal(row: dict[str, Any]) -> tuple[str, str, str] | None:
    """Return why a series gives no volume: skipped or rejected, reason, sentence."""
    verdict = row["verdict"]
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
