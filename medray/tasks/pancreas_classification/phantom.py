"""Synthetic abdominal CT with organ masks: a round mass against a dilated duct of equal volume."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from medray.phantoms import blobs, score
from medray.phantoms.abdomen import HYPODENSE_HU, ORGAN_HU
from medray.phantoms.abdomen_layout import write_classification_layout
from medray.phantoms.fields import eroded
from medray.phantoms.truth import Case, Truth, check_size, read_truth


def write_phantom(
    root: Path, *, num_patients: int, seed: int, defects: bool, size: str = "small"
) -> dict[str, Any]:
    """Write the data set; each patient's folder is a case.

    Args:
        root: folder to fill.
        num_patients: number of patients; half of them are sick.
        seed: everything depends on it.
        defects: whether the dirty zoo is added.
        size: `tiny`, `small` or `full` matrices.

    Returns:
        The content of `truth.json`.
    """
    check_size(size, num_patients)
    layout = "dicom_mask_folders"
    truth = Truth(task="pancreas_classification", layout=layout, seed=seed, size=size)
    written = write_classification_layout(root, num_patients=num_patients, seed=seed, size=size)
    for patient, folder, mask in written:
        sick = patient.belly.lesion == "mass"
        truth.cases.append(
            Case(
                path=folder.relative_to(root).as_posix(),
                patient_id=patient.patient_id,
                label=int(sick),
                mask=mask.relative_to(root).as_posix(),
                lesion_center_mm=patient.lesion_center_mm,
                facts={
                    "num_mask_voxels": int(patient.image.mask.sum()),
                    "num_lesion_voxels": patient.image.num_lesion_voxels,
                },
            )
        )
    if defects:
        from medray.phantoms.zoo_pancreas import add_classification_defects

        add_classification_defects(root, truth)
    return truth.write(root)


def baseline(root: Path) -> dict[str, float]:
    """Return the better AUROC of two features of the organ's dark voxels.

    Their number, and the size of their largest blob, away from the organ's surface.
    """
    cases = read_truth(root)["cases"]
    features = np.array([_features(root, case) for case in cases])
    labels = np.array([case["label"] == 1 for case in cases])
    return {"auroc": score.best_auroc(features, labels)}


def _features(root: Path, case: dict[str, Any]) -> tuple[float, float]:
    volume, affine = blobs.read_stack(root / case["path"])
    inner = eroded(_physical_mask(root / case["mask"], affine))
    dark = inner & (volume < (HYPODENSE_HU + ORGAN_HU) / 2 - 10)
    _, found = blobs.blobs(dark, least=1)
    return float(dark.sum()), float(max((blob.size for blob in found), default=0))


def _physical_mask(path: Path, affine: np.ndarray) -> np.ndarray:
    """Return a phantom's mask file on the image's index order (k, j, i)."""
    data = path.read_bytes()
    if path.suffix == ".nrrd":
        head, body = data.split(b"\n\n", 1)
        sizes = next(line for line in head.decode().splitlines() if line.startswith("sizes"))
        width, height, depth = (int(v) for v in sizes.split()[1:])
        return np.frombuffer(gzip.decompress(body), np.uint8).reshape(depth, height, width) > 0
    raw = gzip.decompress(data)
    width, height, depth = np.frombuffer(raw, "<i2", 3, 42).tolist()
    rows = np.frombuffer(raw, "<f4", 12, 280).reshape(3, 4)
    mask = np.frombuffer(raw[352:], np.uint8).reshape(depth, height, width)
    lps = np.diag([-1.0, -1.0, 1.0]) @ rows[:, :3]
    flips = [np.sign(lps[n, n]) for n in range(3)]
    steps = [np.sign(affine[n, 2 - n]) for n in range(3)]
    turned = [flip != step for flip, step in zip(flips, steps, strict=True)]
    axes = [2 - n for n in range(3) if turned[n]]
    return np.asarray(np.flip(mask, tuple(axes)) > 0)
