"""The dirty zoo of the abdominal layouts: masks that do not lie on their images."""

from pathlib import Path

import numpy as np

from medray.phantoms.abdomen import abdomen, make_belly
from medray.phantoms.abdomen_layout import (
    GRIDS,
    SEGMENTATION_IMAGES,
    SEGMENTATION_LABELS,
    collection_label,
)
from medray.phantoms.fields import Grid
from medray.phantoms.masks import physical_nifti, write_gz
from medray.phantoms.series import SeriesSpec, write_ct_series
from medray.phantoms.truth import Truth
from medray.phantoms.zoo import Zoo
from medray.phantoms.zoo_archives import add_archive_defects, nifti_bomb
from medray.phantoms.zoo_files import add_file_defects
from medray.phantoms.zoo_stacks import add_stack_defects
from medray.volume import Volume

_FIRST_CASE = 9001


def _add_shared(root: Path, truth: Truth) -> Zoo:
    zoo = Zoo(root, truth)
    add_file_defects(zoo)
    add_archive_defects(zoo)
    add_stack_defects(zoo)
    return zoo


def _body(zoo: Zoo, number: int) -> tuple[np.ndarray, np.ndarray, Grid]:
    grid = GRIDS["tiny"]
    found = abdomen(grid, make_belly(zoo.seed, number))
    return found.hu, found.mask, grid


def _write_series(zoo: Zoo, folder: Path, hu: np.ndarray, patient_id: str, number: int) -> None:
    spec = SeriesSpec(seed=zoo.seed, name=f"zoo-{number}", tags={"PatientID": patient_id})
    spec = SeriesSpec(
        seed=zoo.seed,
        name=spec.name,
        study_uid=f"2.25.{number}{zoo.seed}",
        tags=spec.tags,
    )
    write_ct_series(folder, Volume(array=hu, affine_lps=GRIDS["tiny"].affine_lps()), spec)


def add_segmentation_defects(root: Path, truth: Truth) -> None:
    """Plant everything, and label files of a wrong shape, place or content."""
    zoo = _add_shared(root, truth)
    hu, mask, grid = _body(zoo, _FIRST_CASE)
    half = [size // 2 for size in mask.shape]
    cropped = mask[:, :-6, :-4]
    bomb = nifti_bomb()
    # None: no label file at all.
    cases: tuple[tuple[bytes | None, bool, str], ...] = (
        (collection_label(cropped, grid), True, "label_geometry_mismatch"),
        (collection_label(np.roll(mask, half, (0, 1, 2)), grid), True, "label_geometry_mismatch"),
        (b"this is no volume" * 30, True, "annotation_invalid"),
        (None, False, "no_label"),
    )
    for n, (label, packed, reason) in enumerate(cases):
        number = _FIRST_CASE + n
        name = f"PANCREAS_{number}"
        folder = root / SEGMENTATION_IMAGES / name / "study" / "series"
        _write_series(zoo, folder, hu, name, number)
        path = root / SEGMENTATION_LABELS / f"label{number}.nii.gz"
        if label is None:
            zoo.defect(folder, reason, scope="label", stage="prepare")
            continue
        write_gz(path, label) if packed else path.write_bytes(label)
        zoo.defect(path, reason, scope="label", stage="prepare")
    number = _FIRST_CASE + len(cases)
    name = f"PANCREAS_{number}"
    _write_series(zoo, root / SEGMENTATION_IMAGES / name / "study" / "series", hu, name, number)
    path = root / SEGMENTATION_LABELS / f"label{number}.nii.gz"
    path.write_bytes(bomb)
    zoo.defect(path, "bomb_suspected", scope="label", stage="prepare")
    path = root / SEGMENTATION_LABELS / f"label{number + 1}.nii.gz"
    write_gz(path, collection_label(mask, grid))
    zoo.defect(path, "annotation_unmatched", scope="label", stage="prepare")


def add_classification_defects(root: Path, truth: Truth) -> None:
    """Plant everything, and folders whose mask or label is wrong."""
    zoo = _add_shared(root, truth)
    hu, mask, grid = _body(zoo, _FIRST_CASE)
    affine = grid.affine_lps()
    away = affine.copy()
    away[:3, 3] += 700.0
    good = physical_nifti(mask, affine, flips=(False, False, False))
    cases: tuple[tuple[str, bytes | None, str | None, str], ...] = (
        ("away", physical_nifti(mask, away, flips=(False,) * 3), "1", "label_geometry_mismatch"),
        ("garbage", b"this is no volume" * 30, "1", "annotation_invalid"),
        ("label7", good, "7", "label_unknown"),
        ("labeltext", good, "maybe", "annotation_invalid"),
        ("labelempty", good, "", "no_label"),
        ("nolabel", good, None, "no_label"),
        ("nomask", None, "1", "no_label"),
    )
    for n, (name, data, label, reason) in enumerate(cases):
        folder = root / f"POMC-zoo-{name}"
        _write_series(zoo, folder, hu, f"POMC-zoo-{name}", _FIRST_CASE + n)
        if data is not None:
            write_gz(folder / "segmentation.nii.gz", data)
        if label is not None:
            (folder / "label").write_text(label)
        zoo.defect(folder, reason, scope="label", stage="prepare")
    folder = root / "POMC-zoo-bomb"
    _write_series(zoo, folder, hu, "POMC-zoo-bomb", _FIRST_CASE + len(cases))
    (folder / "segmentation.nii.gz").write_bytes(nifti_bomb())
    (folder / "label").write_text("1")
    zoo.defect(folder, "bomb_suspected", scope="label", stage="prepare")
