"""The dirty zoo of Lung-PET-CT-Dx: damaged, foreign and misplaced annotations."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from medray.phantoms.lung_layout import ANNOTATIONS, IMAGES, voc_xml, write_voc
from medray.phantoms.naming import uid
from medray.phantoms.pet import SUV_CASES, write_pet_series
from medray.phantoms.series import SeriesSpec, known_volume, sop_uid, write_ct_series
from medray.phantoms.truth import Truth
from medray.phantoms.zoo import Zoo
from medray.phantoms.zoo_archives import add_archive_defects
from medray.phantoms.zoo_files import add_file_defects
from medray.phantoms.zoo_stacks import add_stack_defects
from medray.volume import Volume

_PATIENT = "Lung_Dx-A9001"
_SHAPE = (20, 48, 56)
_ENTITY_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lollollollol">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]><annotation><filename>&j;</filename></annotation>"
)


def add_lung_defects(root: Path, truth: Truth) -> None:
    """Plant everything: files, archives, series and annotations."""
    zoo = Zoo(root, truth)
    add_file_defects(zoo)
    add_archive_defects(zoo)
    add_stack_defects(zoo)
    _add_annotation_defects(zoo)
    if truth.task == "lung_classification":
        _add_pet_defect(zoo)


def _add_annotation_defects(zoo: Zoo) -> None:
    """Annotate slices of a patient of their own; every annotation is bad, but two."""
    spec = SeriesSpec(
        seed=zoo.seed,
        name="annotated",
        study_uid=uid("zoo-lung-study", zoo.seed),
        tags={"PatientID": _PATIENT},
    )
    study = zoo.root / IMAGES / _PATIENT / f"01-01-2006-NA-Chest-{spec.study_uid[-5:]}"
    write_ct_series(study / "2.000000-5mm-00001", known_volume(_SHAPE), spec)
    height, width = _SHAPE[1:]

    def text(box: tuple[int, int, int, int], name: str = "A") -> str:
        return voc_xml("1-01.dcm", width=width, height=height, depth=1, objects=[(name, box)])

    good = text((20, 12, 34, 26))
    annotations = (
        (good.replace("</annotation>", "</annot"), "annotation_invalid"),
        (_ENTITY_BOMB, "annotation_invalid"),
        (good.replace("<annotation>", '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation>'),
         "annotation_invalid"),
        (good.replace("<xmin>20</xmin>", "<xmin>twenty</xmin>"), "annotation_invalid"),
        (good.replace("<ymax>26</ymax>", ""), "annotation_invalid"),
        (text((40, 12, 400, 26)), "box_out_of_image"),
        (text((-30, -12, 4, 6)), "box_out_of_image"),
        (text((34, 12, 20, 26)), "box_out_of_image"),
        (text((20, 12, 20, 26)), "box_out_of_image"),
        ("", "annotation_invalid"),
    )  # fmt: skip
    for k, (content, reason) in enumerate(annotations):
        path = write_voc(zoo.root, _PATIENT, sop_uid(spec, k), content)
        zoo.defect(path, reason, scope="label", stage="prepare")
    path = write_voc(zoo.root, _PATIENT, uid("zoo-lost-slice", zoo.seed), good)
    zoo.defect(path, "annotation_unmatched", scope="label", stage="prepare")
    for k, name in ((12, ""), (13, "Q")):
        path = write_voc(zoo.root, _PATIENT, sop_uid(spec, k), text((20, 12, 34, 26), name))
        zoo.oddity(path, "an object without a known name: the class is the patient's letter")
    stray = zoo.root / ANNOTATIONS / "A9001" / "classes.txt"
    stray.write_text("A\nB\n")
    zoo.defect(stray, "not_dicom", scope="skip", stage="prepare")


def _add_pet_defect(zoo: Zoo) -> None:
    """Plant a good CT whose study has a PET without the patient's weight."""
    name, day = "Lung_Dx-B9002", "05-05-2006"
    spec = SeriesSpec(
        seed=zoo.seed,
        name="with-pet",
        study_uid=uid("zoo-pet-study", zoo.seed),
        tags={"PatientID": name},
    )
    study = zoo.root / IMAGES / name / f"{day}-NA-Chest-{spec.study_uid[-5:]}"
    folder = study / "2.000000-5mm-00002"
    volume = known_volume(_SHAPE)
    write_ct_series(folder, volume, spec)
    pet = Volume(array=np.maximum(volume.array, 0) * 20.0, affine_lps=volume.affine_lps)
    base = replace(spec, name="pet-no-weight")
    write_pet_series(study / "3.000000-PET-00003", pet, replace(SUV_CASES["no_weight"], base=base))
    height, width = _SHAPE[1:]
    text = voc_xml(
        "1-01.dcm", width=width, height=height, depth=1, objects=[("B", (20, 12, 34, 26))]
    )
    for k in (8, 9, 10):
        write_voc(zoo.root, name, sop_uid(spec, k), text)
    needs = "pet_channel=true"
    zoo.defect(folder, "suv_not_computable", scope="series", stage="prepare", needs=needs)
