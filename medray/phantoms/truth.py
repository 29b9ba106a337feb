"""What is true of a phantom data set: `truth.json`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medray.errors import REASONS

SIZES = ("tiny", "small", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One example of a data set.

    Attributes:
        path: of the image or series folder, relative to the root, with slashes.
        patient_id: as the layout names it.
        label: class name or index; None where the task has none.
        boxes_xyxy_px: boxes in pixel edges of the stored matrix; empty for a healthy image.
        mask: path of the mask, relative to the root; empty if the task has none.
        lesion_center_mm: LPS position of the lesion, or None.
        facts: further facts for tests.
    """

    path: str
    patient_id: str
    label: str | int | None = None
    boxes_xyxy_px: Sequence[Sequence[float]] = ()
    mask: str = ""
    lesion_center_mm: Sequence[float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        center = self.lesion_center_mm
        return {
            "path": self.path,
            "patient_id": self.patient_id,
            "label": self.label,
            "boxes_xyxy_px": [[float(v) for v in box] for box in self.boxes_xyxy_px],
            "mask": self.mask or None,
            "lesion_center_mm": None if center is None else [round(float(v), 3) for v in center],
            **self.facts,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One planted defect and the verdict that the contract implies.

    Attributes:
        path: of the file or series folder, relative to the root, with slashes.
        reason: expected reason code.
        scope: `file`, `series`, `label`, or `skip` for what is counted but not rejected.
        stage: verb that finds it first: `index`, `convert` or `prepare`.
        row: which row of a table is meant, else empty.
        needs: the setting without which it is no defect, e.g. `pet_channel=true`.
    """

    path: str
    reason: str
    scope: str
    stage: str = "index"
    row: str = ""
    needs: str = ""

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"reason must be one of REASONS, got {self.reason!r}")
        if self.scope not in ("file", "series", "label", "skip"):
            raise ValueError(f"scope must be file, series, label or skip, got {self.scope!r}")

    def as_json(self) -> dict[str, str]:
        """Return plain values."""
        found = {"path": self.path, "reason": self.reason, "scope": self.scope, "stage": self.stage}
        more = {"row": self.row, "needs": self.needs}
        return found | {key: value for key, value in more.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddity:
    """Something strange that index and convert must bring through: it is no defect."""

    path: str
    why: str


@dataclass(slots=True, kw_only=True)
class Truth:
    """Collects what is written; `write` makes the file."""

    task: str
    layout: str
    seed: int
    size: str
    cases: list[Case] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    oddities: list[Oddity] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain values in a stable order."""
        return {
            "task": self.task,
            "layout": self.layout,
            "seed": self.seed,
            "size": self.size,
            "cases": [case.as_json() for case in self.cases],
            "defects": [defect.as_json() for defect in self.defects],
            "oddities": [{"path": odd.path, "why": odd.why} for odd in self.oddities],
        }

    def write(self, root: Path) -> dict[str, Any]:
        """Write `truth.json` under the root and return its content."""
        content = self.as_json()
        root.mkdir(parents=True, exist_ok=True)
        (root / "truth.json").write_text(json.dumps(content, indent=1) + "\n")
        return content


def read_truth(root: Path) -> dict[str, Any]:
    """Return the content of `truth.json`."""
    content: dict[str, Any] = json.loads((root / "truth.json").read_text())
    return content


def check_size(size: str, num_patients: int) -> None:
    """Refuse sizes that do not exist.

    Raises:
        ValueError: naming the rule.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    if num_patients < 1:
        raise ValueError(f"num_patients must be >= 1, got {num_patients}")
