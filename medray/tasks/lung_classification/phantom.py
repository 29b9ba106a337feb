"""Synthetic Lung-PET-CT-Dx with histology: classes differ by shape and texture alone."""

from pathlib import Path
from typing import Any

import numpy as np

from medray.metrics.ranking import auroc
from medray.phantoms import blobs
from medray.phantoms.lung_layout import LungPatient, WrittenSeries, write_lung_layout
from medray.phantoms.truth import Case, Truth, check_size, read_truth


def write_phantom(
    root: Path, *, num_patients: int, seed: int, defects: bool, size: str = "small"
) -> dict[str, Any]:
    """Write the data set; each annotated CT series is a case.

    Args:
        root: folder to fill.
        num_patients: number of patients; the letters A, B, G cycle, every eighth is E.
        seed: everything depends on it.
        defects: whether the dirty zoo is added.
        size: `tiny`, `small` or `full` matrices.

    Returns:
        The content of `truth.json`.
    """
    check_size(size, num_patients)
    truth = Truth(task="lung_classification", layout="lung_pet_ct_dx", seed=seed, size=size)
    written = write_lung_layout(root, num_patients=num_patients, seed=seed, size=size)
    for patient, series in written:
        for one in series:
            if one.boxes and one.kind.startswith("ct"):
                truth.cases.append(_case(root, patient, one))
    if defects:
        from medray.phantoms.zoo_lung import add_lung_defects

        add_lung_defects(root, truth)
    return truth.write(root)


def _case(root: Path, patient: LungPatient, series: WrittenSeries) -> Case:
    focus = patient.chest.foci[0]
    z, y, x = focus.center_zyx_mm
    corners = np.array([box for _, box in series.boxes])
    around = [*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist()]
    return Case(
        path=series.folder.relative_to(root).as_posix(),
        patient_id=patient.patient_id,
        label=patient.letter,
        boxes_xyxy_px=[around],
        lesion_center_mm=(np.array([x, y, z]) + patient.offset_xyz_mm).tolist(),
        facts={"kind": series.kind},
    )


def baseline(root: Path) -> dict[str, float]:
    """Return the macro AUROC of a nearest-class-mean rule on blob features, one case left out.

    The features are those of the thresholded voxels around the lesion: their volume, mean HU and
    number of blobs; the best single feature and all three together are tried. A letter that one
    patient alone has cannot be learnt from the others. Below a dozen patients the value is mostly
    chance: 72 patients give 0.68, one seed in twelve with 6 patients gives more than 0.75.
    """
    cases = read_truth(root)["cases"]
    features = np.array([_features(root, case) for case in cases])
    letters = np.array([case["label"] for case in cases])
    patients = np.array([case["patient_id"] for case in cases])
    subsets = ([0], [1], [2], [0, 1, 2])
    return {"auroc": max(_left_out_auroc(features[:, s], letters, patients) for s in subsets)}


def _left_out_auroc(features: np.ndarray, letters: np.ndarray, patients: np.ndarray) -> float:
    """Score each case by its distance to class means of the other patients."""
    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    each = []
    for one in np.unique(letters):
        if len(set(patients[letters == one])) < 2 or (letters == one).all():
            continue
        scores = []
        for n in range(len(letters)):
            known = patients != patients[n]
            own, other = known & (letters == one), known & (letters != one)
            if not own.any() or not other.any():
                scores.append(0.0)
                continue
            near = np.abs(scaled[n] - scaled[own].mean(axis=0)).sum()
            far = np.abs(scaled[n] - scaled[other].mean(axis=0)).sum()
            scores.append(float(far - near))
        each.append(auroc(np.array(scores), letters == one))
    return float(np.mean(each)) if each else 0.5


def _features(root: Path, case: dict[str, Any]) -> tuple[float, float, float]:
    volume, affine = blobs.read_stack(root / case["path"])
    center = np.linalg.solve(affine, [*case["lesion_center_mm"], 1])[0]
    x1, y1, x2, y2 = (int(v) for v in case["boxes_xyxy_px"][0])
    reach = 24 / np.linalg.norm(affine[:3, 0])
    start = max(0, int(center - reach))
    part = volume[start : int(center + reach) + 1, y1:y2, x1:x2]
    mask = part > -350
    _, found = blobs.blobs(mask, least=8)
    voxel = float(abs(np.linalg.det(affine[:3, :3])))
    mean = float(part[mask].mean()) if mask.any() else 0.0
    return float(mask.sum()) * voxel, mean, float(len(found))
