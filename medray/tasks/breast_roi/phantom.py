"""Synthetic mammograms with the breast boxed: frames, plates and tables are as bright as it is."""

from pathlib import Path
from typing import Any

import numpy as np

from medray.phantoms import blobs, score
from medray.phantoms.roi_layout import write_roi_layout
from medray.phantoms.truth import Case, Truth, check_size, read_truth


def write_phantom(
    root: Path, *, num_patients: int, seed: int, defects: bool, size: str = "small"
) -> dict[str, Any]:
    """Write the data set; each image is a case.

    Args:
        root: folder to fill.
        num_patients: number of patients, four images each.
        seed: everything depends on it.
        defects: whether the dirty zoo is added.
        size: `tiny`, `small` or `full` matrices.

    Returns:
        The content of `truth.json`.
    """
    check_size(size, num_patients)
    truth = Truth(task="breast_roi", layout="yolo_folder", seed=seed, size=size)
    for one in write_roi_layout(root, num_patients=num_patients, seed=seed, size=size):
        truth.cases.append(
            Case(
                path=one.path.relative_to(root).as_posix(),
                patient_id=one.patient_id,
                label="breast",
                boxes_xyxy_px=[one.box],
            )
        )
    if defects:
        from medray.phantoms.zoo_images import add_roi_defects

        add_roi_defects(root, truth)
    return truth.write(root)


def baseline(root: Path) -> dict[str, float]:
    """Return AP at IoU 0.5 of the largest blob above a threshold; the best of three."""
    cases = [case for case in read_truth(root)["cases"] if case["path"].endswith(".png")]
    truth = [case["boxes_xyxy_px"] for case in cases]
    images = [_read_png(root / case["path"]) for case in cases]
    results = []
    for low in (0.1, 0.2, 0.3):
        found = [_largest(image > low) for image in images]
        results.append(score.average_precision(found, truth, 0.5))
    return {"ap50": max(results)}


def _largest(mask: np.ndarray) -> list[tuple[float, tuple[float, float, float, float]]]:
    _, found = blobs.blobs(mask, least=50)
    if not found:
        return []
    best = max(found, key=lambda blob: blob.size)
    return [(best.size / mask.size, best.box_xyxy_px)]


def _read_png(path: Path) -> np.ndarray:
    import imagecodecs

    return np.asarray(imagecodecs.png_decode(path.read_bytes()), dtype=np.float32) / 255
