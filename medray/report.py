"""What a person sees of a finished run."""

import sys
from typing import Any


def print_summary(summary: dict[str, Any], out: str) -> None:
    """Print counts, verdicts and seconds as a plain table on stdout."""
    counts = summary["counts"]
    numbers = ", ".join(
        f"{counts[f'num_{name}']} {name}" for name in ("inputs", "done", "skipped", "rejected")
    )
    lines = [f"{summary['verb']}: {numbers}"]
    lines += _table("rejected", counts["rejected_by_reason"])
    lines += _table("skipped", counts["skipped_by_reason"])
    if summary.get("series"):
        lines += _table("series verdict", summary["series"])
    seconds = {name: stage["seconds"] for name, stage in summary["stages"].items()}
    lines.append("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    lines.append(f"output: {out}")
    sys.stdout.write("\n".join(lines) + "\n")


def _table(title: str, numbers: dict[str, int]) -> list[str]:
    if not numbers:
        return []
    width = max(len(name) for name in numbers)
    rows = [f"  {name.ljust(width)}  {number:>8}" for name, number in numbers.items()]
    return [f"{title}:", *rows]
