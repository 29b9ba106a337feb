"""Synthetic Lung-PET-CT-Dx with tumour boxes: tumours among blobs of equal HU and size."""

from pathlib import Path
from typing import Any

import numpy as np

from medray.phantoms import blobs, score
from medray.phantoms.lesions import DEVIATION_HU, MEAN_HU
from medray.phantoms.lung_layout import LungPatient, WrittenSeries, write_lung_layout
from medray.phantoms.truth import Case, Truth, check_size, read_truth


def write_phantom(
    root: Path, *, num_patients: int, seed: int, defects: bool, size: str = "small"
) -> dict[str, Any]:
    """Write the data set; each annotated slice, grey or fused, is a case.

    Args:
        root: folder to fill.
        num_patients: number of patients; the histology letters cycle.
        seed: everything depends on it.
        defects: whether the dirty zoo is added.
        size: `tiny`, `small` or `full` matrices.

    Returns:
        The content of `truth.json`.
    """
    check_size(size, num_patients)
    truth = Truth(task="lung_detection", layout="lung_pet_ct_dx", seed=seed, size=size)
    written = write_lung_layout(root, num_patients=num_patients, seed=seed, size=size)
    for patient, series in written:
        for one in series:
            truth.cases.extend(_cases(root, patient, one))
    if defects:
        from medray.phantoms.zoo_lung import add_lung_defects

        add_lung_defects(root, truth)
    return truth.write(root)


def _cases(root: Path, patient: LungPatient, series: WrittenSeries) -> list[Case]:
    focus = patient.chest.foci[0]
    z, y, x = focus.center_zyx_mm
    center = np.array([x, y, z]) + patient.offset_xyz_mm
    return [
        Case(
            path=series.files[k].relative_to(root).as_posix(),
            patient_id=patient.patient_id,
            label=patient.letter,
            boxes_xyxy_px=[box],
            lesion_center_mm=center.tolist(),
            facts={"kind": series.kind, "sop_uid": series.sop_uids[k]},
        )
        for k, box in series.boxes
    ]


def baseline(root: Path) -> dict[str, float]:
    """Return AP at IoU 0.5 of blobs within the tumours' HU, on the annotated CT slices.

    Two windows are tried, wide and narrow, and the better one counts.
    """
    cases = [c for c in read_truth(root)["cases"] if str(c.get("kind", "")).startswith("ct")]
    truth = [case["boxes_xyxy_px"] for case in cases]
    images = [blobs.read_values(root / case["path"])[0] for case in cases]
    areas = [(b[2] - b[0]) * (b[3] - b[1]) * np.pi / 4 for boxes in truth for b in boxes]
    typical = float(np.median(areas)) if areas else 1.0
    results = []
    for low, high in ((-350, 3000), (MEAN_HU - 2 * DEVIATION_HU, MEAN_HU + 2 * DEVIATION_HU)):
        found = [
            blobs.scored_boxes(image, low=low, high=high, typical_px=typical) for image in images
        ]
        results.append(score.average_precision(found, truth, 0.5))
    return {"ap50": max(results)}
