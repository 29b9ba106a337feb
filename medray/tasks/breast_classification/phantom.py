"""Synthetic RSNA mammography: spiculated masses among round ones of equal area and brightness."""

from pathlib import Path
from typing import Any

import numpy as np

from medray.phantoms import blobs, score
from medray.phantoms.breast_layout import write_breast_layout
from medray.phantoms.truth import Case, Truth, check_size, read_truth


def write_phantom(
    root: Path, *, num_patients: int, seed: int, defects: bool, size: str = "small"
) -> dict[str, Any]:
    """Write the data set; each image is a case, its label is that of the breast.

    Args:
        root: folder to fill.
        num_patients: number of patients, four images each; half of them have one sick breast.
        seed: everything depends on it.
        defects: whether the dirty zoo is added.
        size: `tiny`, `small` or `full` matrices.

    Returns:
        The content of `truth.json`.
    """
    check_size(size, num_patients)
    truth = Truth(task="breast_classification", layout="rsna_breast", seed=seed, size=size)
    written = write_breast_layout(root, num_patients=num_patients, seed=seed, size=size)
    for one, path in written:
        rows = np.flatnonzero(one.mammogram.breast.any(axis=1))
        truth.cases.append(
            Case(
                path=path.relative_to(root).as_posix(),
                patient_id=one.patient_id,
                label=one.cancer,
                boxes_xyxy_px=[one.mammogram.mass_box],
                facts={
                    "laterality": one.row["laterality"],
                    "view": one.row["view"],
                    "monochrome1": one.monochrome1,
                    "breast_rows": [int(rows[0]), int(rows[-1]) + 1],
                    "chest_wall": "left" if one.mammogram.breast[:, 0].any() else "right",
                },
            )
        )
    if defects:
        from medray.phantoms.zoo_images import add_breast_defects

        add_breast_defects(root, truth)
    return truth.write(root)


def baseline(root: Path) -> dict[str, float]:
    """Return the best AUROC of the bright blobs' number, largest area and brightness."""
    cases = read_truth(root)["cases"]
    features = np.array([_features(root, case) for case in cases])
    labels = np.array([case["label"] == 1 for case in cases])
    return {"auroc": score.best_auroc(features, labels)}


def _features(root: Path, case: dict[str, Any]) -> tuple[float, ...]:
    values, _ = blobs.read_values(root / case["path"])
    if case["monochrome1"]:
        values = values.max() - values
    values = (values - values.min()) / max(float(np.ptp(values)), 1)
    bright = (values > 0.6) & (values < 0.97)
    pixel_area = values.size / (640 * 512)
    _, found = blobs.blobs(bright, least=max(4, int(150 * pixel_area)))
    sizes = sorted((blob.size / pixel_area for blob in found), reverse=True)
    largest = float(sizes[0]) if sizes else 0.0
    mean = float(values[bright].mean()) if bright.any() else 0.0
    return float(bright.sum()) / pixel_area, largest, float(len(sizes)), mean
