"""Synthetic Pancreas-CT: an organ among bowel and veins of its own HU."""

from pathlib import Path
from typing import Any

import numpy as np

from medray.phantoms import blobs, score
from medray.phantoms.abdomen import ORGAN_DEVIATION_HU, ORGAN_HU
from medray.phantoms.abdomen_layout import write_segmentation_layout
from medray.phantoms.truth import Case, Truth, check_size, read_truth

_NIFTI_DATA_OFFSET = 352


def write_phantom(
    root: Path, *, num_patients: int, seed: int, defects: bool, size: str = "small"
) -> dict[str, Any]:
    """Write the data set; each CT series with its label file is a case.

    Args:
        root: folder to fill.
        num_patients: number of patients.
        seed: everything depends on it.
        defects: whether the dirty zoo is added.
        size: `tiny`, `small` or `full` matrices.

    Returns:
        The content of `truth.json`.
    """
    check_size(size, num_patients)
    truth = Truth(task="pancreas_segmentation", layout="pancreas_ct", seed=seed, size=size)
    written = write_segmentation_layout(root, num_patients=num_patients, seed=seed, size=size)
    for patient, folder, label in written:
        mask = patient.image.mask
        middle = np.argwhere(mask).mean(axis=0)
        truth.cases.append(
            Case(
                path=folder.relative_to(root).as_posix(),
                patient_id=patient.patient_id,
                label=1,
                mask=label.relative_to(root).as_posix(),
                lesion_center_mm=(patient.affine_lps @ [*middle, 1])[:3].tolist(),
                facts={"num_mask_voxels": int(mask.sum())},
            )
        )
    if defects:
        from medray.phantoms.zoo_pancreas import add_segmentation_defects

        add_segmentation_defects(root, truth)
    return truth.write(root)


def baseline(root: Path) -> dict[str, float]:
    """Return the mean Dice of the best of three blob rules within the organ's HU.

    All voxels in the window; the component whose size is nearest to the truth's mean; the three
    such components. The image is smoothed first.
    """
    cases = read_truth(root)["cases"]
    typical = float(np.mean([case["num_mask_voxels"] for case in cases]))
    scores = [_scores(root, case, typical) for case in cases]
    return {"dice": float(np.mean(scores, axis=0).max())}


def _scores(root: Path, case: dict[str, Any], typical: float) -> list[float]:
    volume, _ = blobs.read_stack(root / case["path"])
    truth = _collection_mask(root / case["mask"], volume.shape)
    smooth = (volume[:, :-2, :-2] + volume[:, 1:-1, 1:-1] + volume[:, 2:, 2:]) / 3
    smooth = np.pad(smooth, ((0, 0), (1, 1), (1, 1)), constant_values=-1000)
    inside = np.abs(smooth - ORGAN_HU) < 1.5 * ORGAN_DEVIATION_HU
    labels, found = blobs.blobs(inside, least=20)
    found.sort(key=lambda blob: abs(float(np.log(blob.size / typical))))
    results = [score.dice(inside, truth)]
    for count in (1, 3):
        chosen = np.isin(labels, [blob.number for blob in found[:count]])
        results.append(score.dice(chosen, truth))
    return results


def _collection_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return a label written by the phantom as (depth, height, width)."""
    import gzip

    raw = gzip.decompress(path.read_bytes())[_NIFTI_DATA_OFFSET:]
    return np.frombuffer(raw, np.uint8).reshape(shape) > 0
