"""Synthetic RSNA pneumonia films: fuzzy opacities among sharp shadows as bright and as large."""

from pathlib import Path
from typing import Any

import numpy as np

from medray.phantoms import blobs, score
from medray.phantoms.radiograph_layout import write_pneumonia_layout
from medray.phantoms.truth import Case, Truth, check_size, read_truth


def write_phantom(
    root: Path, *, num_patients: int, seed: int, defects: bool, size: str = "small"
) -> dict[str, Any]:
    """Write the data set; each image is a case.

    Args:
        root: folder to fill.
        num_patients: number of images: `patientId` names an image in this layout.
        seed: everything depends on it.
        defects: whether the dirty zoo is added.
        size: `tiny`, `small` or `full` matrices.

    Returns:
        The content of `truth.json`.
    """
    check_size(size, num_patients)
    truth = Truth(task="pneumonia_detection", layout="rsna_pneumonia", seed=seed, size=size)
    written = write_pneumonia_layout(root, num_patients=num_patients, seed=seed, size=size)
    for name, film, path in written:
        truth.cases.append(
            Case(
                path=path.relative_to(root).as_posix(),
                patient_id=name,
                label=int(bool(film.boxes)),
                boxes_xyxy_px=film.boxes,
                facts={"finding": film.finding},
            )
        )
    if defects:
        from medray.phantoms.zoo_images import add_pneumonia_defects

        add_pneumonia_defects(root, truth)
    return truth.write(root)


def baseline(root: Path) -> dict[str, float]:
    """Return AP at IoU 0.5 of bright blobs of a lesion's size; the best of three thresholds."""
    cases = read_truth(root)["cases"]
    truth = [case["boxes_xyxy_px"] for case in cases]
    images = [_local_contrast(blobs.read_frame(root / case["path"])) for case in cases]
    areas = [(b[2] - b[0]) * (b[3] - b[1]) * np.pi / 4 for boxes in truth for b in boxes]
    typical = float(np.median(areas)) if areas else 1.0
    results = []
    for low in (0.06, 0.12, 0.2):
        found = [blobs.scored_boxes(image, low=low, high=9, typical_px=typical) for image in images]
        results.append(score.average_precision(found, truth, 0.5))
    return {"ap50": max(results)}


def _local_contrast(image: np.ndarray) -> np.ndarray:
    """Return brightness above the mean of a window of a quarter of the side."""
    values = image.astype(np.float64) / 255
    reach = values.shape[0] // 8
    padded = np.pad(values, reach, mode="edge")
    total = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    width = 2 * reach + 1
    box = total[width:, width:] - total[:-width, width:] - total[width:, :-width]
    return np.asarray(values - (box + total[:-width, :-width]) / width**2)
