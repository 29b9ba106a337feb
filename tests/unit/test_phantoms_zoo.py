"""The dirty zoo: enough defects, each there, each with a reason of the closed list."""

import hashlib
import importlib
import resource
import time
import zlib

import pydicom
import pytest
from pydicom.dataset import Dataset

from medray.errors import REASONS
from medray.phantoms.pet import SUV_CASES, PetSpec, suv_per_modality_unit
from medray.phantoms.truth import Defect, Truth
from medray.phantoms.zoo import Zoo, find_element, with_element
from medray.phantoms.zoo_archives import nifti_bomb

pytestmark = pytest.mark.slow

TASKS = (
    "lung_detection", "lung_classification", "breast_roi", "breast_classification",
    "pneumonia_detection", "pancreas_segmentation", "pancreas_classification",
)  # fmt: skip


@pytest.fixture(scope="session")
def zoo_of(tmp_path_factory):
    """Return a function that writes the smallest dirty data set once per task."""
    made = {}

    def of(task):
        if task not in made:
            root = tmp_path_factory.mktemp(f"zoo-{task}")
            made[task] = root, write(task, root)
        return made[task]

    return of


def write(task, root, seed=5):
    module = importlib.import_module(f"medray.tasks.{task}.phantom")
    return module.write_phantom(root, num_patients=1, seed=seed, defects=True, size="tiny")


@pytest.mark.parametrize("task", TASKS)
def test_zoo_has_every_defect_on_disk_with_a_reason(task, zoo_of):
    root, truth = zoo_of(task)
    rejected = [defect for defect in truth["defects"] if defect["scope"] != "skip"]
    assert len(rejected) >= 40
    assert {defect["reason"] for defect in truth["defects"]} <= set(REASONS)
    for entry in [*truth["defects"], *truth["oddities"]]:
        assert (root / entry["path"]).exists(), entry
    seen = [(d["path"], d.get("row", "")) for d in truth["defects"]]
    assert len(seen) == len(set(seen))
    stages = {defect["stage"] for defect in truth["defects"]}
    assert stages == {"index", "convert", "prepare"}


def test_zoo_covers_the_reasons_that_files_and_series_can_have(zoo_of):
    reasons = set()
    for task in ("lung_classification", "breast_classification", "pancreas_segmentation"):
        reasons |= {d["reason"] for d in zoo_of(task)[1]["defects"]}
    assert reasons >= {
        "not_dicom", "empty_file", "truncated", "bomb_suspected", "nesting_too_deep",
        "unsupported_transfer_syntax", "missing_tag", "bad_tag_value", "duplicate_conflict",
        "unsafe_archive", "no_pixels", "unsupported_pixels", "decode_error",
        "pixel_length_mismatch", "non_finite_pixels", "no_geometry", "too_few_slices", "localizer",
        "mixed_orientation", "slice_increment_inconsistent", "missing_slices",
        "duplicate_positions", "suv_not_computable", "wrong_modality", "no_label",
        "annotation_invalid", "annotation_unmatched", "box_out_of_image", "label_unknown",
        "label_geometry_mismatch",
    }  # fmt: skip


def test_zoo_is_the_same_twice(tmp_path, zoo_of):
    def digests(root):
        return {
            path.relative_to(root): hashlib.sha256(path.read_bytes()).digest()
            for path in root.rglob("*")
            if path.is_file()
        }

    write("pneumonia_detection", tmp_path)
    assert digests(tmp_path) == digests(zoo_of("pneumonia_detection")[0])


def test_bombs_are_small_and_explode(zoo_of):
    root, _ = zoo_of("pneumonia_detection")
    bomb = (root / "zz-defects/deflate_bomb/1-1.dcm").read_bytes()
    assert len(bomb) < 2 << 20
    engine = zlib.decompressobj(-15)
    size = 144 + int.from_bytes(bomb[140:144], "little")
    total, rest = 0, bomb[size:]
    while rest and total <= 1 << 30:
        total += len(engine.decompress(rest, 1 << 24))
        rest = engine.unconsumed_tail
    assert total > 1 << 30
    assert len(nifti_bomb()) < 2 << 20


def test_cases_without_defects_are_untouched_by_the_zoo(tmp_path, zoo_of):
    module = importlib.import_module("medray.tasks.breast_classification.phantom")
    root, dirty = zoo_of("breast_classification")
    clean = module.write_phantom(tmp_path, num_patients=1, seed=5, defects=False, size="tiny")
    assert dirty["cases"] == clean["cases"]
    for case in clean["cases"]:
        assert (root / case["path"]).read_bytes() == (tmp_path / case["path"]).read_bytes()


def test_with_element_changes_one_value_only(tmp_path):
    zoo = Zoo(tmp_path, Truth(task="t", layout="l", seed=0, size="tiny"))
    plain = zoo.image("x")
    changed = with_element(plain, (0x0028, 0x1053), b"12.5")
    (tmp_path / "x.dcm").write_bytes(changed)
    ds = pydicom.dcmread(tmp_path / "x.dcm")
    assert ds.RescaleSlope == 12.5
    assert ds.PixelData == plain[slice(*find_element(plain, (0x7FE0, 0x0010))[2])]
    with pytest.raises(ValueError, match="must hold the element"):
        find_element(plain, (0x0028, 0x9999))


def test_defect_refuses_unknown_words():
    with pytest.raises(ValueError, match="reason must be one of REASONS"):
        Defect(path="x", reason="tired", scope="file")
    with pytest.raises(ValueError, match="scope must be file, series, label or skip"):
        Defect(path="x", reason="not_dicom", scope="folder")


def test_suv_factors_follow_the_formula_by_hand():
    # 72 kg, 370 MBq, injected an hour before the scan, half life 6586.2 s.
    decayed = 370e6 * 2 ** (-3600 / 6586.2)
    assert suv_per_modality_unit(PetSpec()) == pytest.approx(72000 / decayed)
    assert suv_per_modality_unit(SUV_CASES["administration"]) == pytest.approx(72000 / 370e6)
    late = suv_per_modality_unit(SUV_CASES["series_after_acquisition"])
    assert late == pytest.approx(72000 / decayed)
    night = 370e6 * 2 ** (-3900 / 6586.2)
    for name in ("across_midnight", "across_midnight_no_date"):
        assert suv_per_modality_unit(SUV_CASES[name]) == pytest.approx(72000 / night)
    unknown = ("counts_only", "not_corrected", "no_weight", "zero_weight", "no_dose", "zero_dose",
               "no_half_life", "no_injection_time")  # fmt: skip
    assert all(suv_per_modality_unit(SUV_CASES[name]) is None for name in unknown)


def test_zoo_is_quick_and_small(tmp_path):
    started = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write("pneumonia_detection", tmp_path)
    assert time.process_time() - started < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 20 << 20
    assert isinstance(pydicom.dcmread(next(tmp_path.rglob("ok_report/*.dcm"))), Dataset)
