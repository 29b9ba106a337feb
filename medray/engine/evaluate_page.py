"""report.html of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from medray import storage
from medray.learning import Row


def write_page(
    out: str,
    tiles: str,
    report: Mapping[str, Any],
    facts: Mapping[str, Any],
    rows: Sequence[Row],
    model: str,
) -> None:
    """Write the page; one self-contained file."""
    storage.write_atomic(storage.join(out, "report.html"), b"")
