"""Counters that a Ray cluster exports to Prometheus; tags are few and bounded."""

from functools import lru_cache

from ray.util.metrics import Counter


@lru_cache(maxsize=1)
def _counters() -> tuple[Counter, Counter, Counter]:
    return (
        Counter("medray_items_done_total", "Items finished, by stage.", tag_keys=("stage",)),
        Counter(
            "medray_items_rejected_total",
            "Items refused, by stage and reason code.",
            tag_keys=("stage", "reason"),
        ),
        Counter(
            "medray_bytes_read_total", "Bytes read from storage, by stage.", tag_keys=("stage",)
        ),
    )


def count_outcome(stage: str, reason: str, num_bytes: int) -> None:
    """Count one item of a stage."""
    done, rejected, read = _counters()
    if reason:
        rejected.inc(1, tags={"stage": stage, "reason": reason})
    else:
        done.inc(1, tags={"stage": stage})
    if num_bytes > 0:
        read.inc(num_bytes, tags={"stage": stage})
