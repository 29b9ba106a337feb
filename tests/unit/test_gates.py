import numpy as np
import pytest

from medray.datasets.fingerprint import merge_fingerprints, partial_fingerprint
from medray.datasets.gates import GateRules, find_failures
from medray.datasets.record import Sample
from medray.volume import Image2D, Volume

CLASSES = GateRules(num_classes=2)
THREE = GateRules(num_classes=3)
LESIONS = GateRules(lesion_in_each=True)
BOXES = GateRules(lesion_in_each=True, lesion_boxes=True)


def row(n, **facts):
    return {
        "key": f"k{n}", "patient_id": f"patient-{n}", "split": "train", "label": n % 2,
        "num_boxes": 1,
        "max_box_share": 0.1, "num_mask_voxels": -1, "value_min": 0.0, "value_max": 1.0,
        "pixel_sha256": f"h{n}", **facts,
    }  # fmt: skip


def rows(count=40, **facts):
    return [row(n, **facts) for n in range(count)]


@pytest.mark.parametrize("rules", [CLASSES, BOXES, GateRules()])
def test_good_examples_pass(rules):
    assert find_failures(rows(), rules) == ()


@pytest.mark.parametrize(
    ("examples", "rules", "reason", "sentence"),
    [
        (rows(label=1), CLASSES, "labels_constant", "all 40 examples have label 1: k0, k1, k10"),
        (
            [*rows(), row(50, split="val", label=1)],
            CLASSES,
            "class_missing",
            "split val has no example of class 0; it has k50",
        ),
        (rows(), THREE, "class_missing", "split train has no example of class 2; it has k0, k1"),
        (
            [*rows(), row(50, split="none", patient_id="patient-3")],
            BOXES,
            "split_leak",
            "1 patients are in two splits: k3, k50",
        ),
        (
            [*rows(), row(50, split="test", pixel_sha256="h4")],
            BOXES,
            "duplicate_image",
            "1 images with equal pixels are in two splits: k4, k50",
        ),
        (
            [*rows(17), *(row(n, num_boxes=0) for n in (17, 18, 19))],
            BOXES,
            "mask_empty",
            "3 of 20 cases have no lesion: k17, k18, k19",
        ),
        (rows(num_boxes=0, num_mask_voxels=0), LESIONS, "mask_empty", "40 of 40 cases"),
        (
            [*rows(18), *(row(n, max_box_share=0.99) for n in (18, 19))],
            BOXES,
            "box_whole_image",
            "2 of 20 images have a box over all of it: k18, k19",
        ),
        (
            [*rows(), row(50, value_min=3.0, value_max=3.0)],
            GateRules(),
            "image_constant",
            "1 images have one value only: k50",
        ),
    ],
)
def test_each_gate_stops_and_names_the_offenders(examples, rules, reason, sentence):
    ((found, text),) = find_failures(examples, rules)
    assert found == reason
    assert text.startswith(sentence)
    assert "patient-" not in text


def test_a_few_bad_cases_pass():
    examples = [*rows(39), row(39, num_boxes=0)]
    assert find_failures(examples, BOXES) == ()
    assert find_failures([*rows(39), row(39, max_box_share=1.0)], BOXES) == ()
    assert find_failures(rows(num_boxes=0, num_mask_voxels=7), GateRules(lesion_in_each=True)) == ()


def test_boxes_over_the_image_pass_where_they_are_no_lesions():
    assert find_failures(rows(max_box_share=1.0), GateRules()) == ()


def test_no_examples_fail_no_gate():
    assert find_failures([], BOXES) == ()


def test_unlabelled_examples_have_no_classes():
    assert find_failures(rows(label=-1), CLASSES) == ()


def volume(value, modality="CT", *, dtype=np.int16, shape=(4, 5, 6)):
    array = np.full(shape, value, dtype=dtype)
    array.flat[0] = -2000 if modality == "CT" else 0
    meta = {"modality": modality, "contrast": modality == "CT"}
    return Sample(image=Volume(array=array, affine_lps=np.diag([3.0, 1, 1, 1])), meta=meta)


def test_fingerprints_merge_in_any_order():
    samples = [
        volume(40),
        volume(41.5, dtype=np.float32),
        volume(5000),
        volume(7, "PT", shape=(2, 5, 6)),
    ]
    image = Image2D(array=np.zeros((3, 4), np.uint8))
    parts = [partial_fingerprint(s) for s in [*samples, Sample(image=image)]]
    merged = merge_fingerprints(parts)
    assert merged == merge_fingerprints(parts[::-1])
    assert merged["num_examples"] == 5
    assert merged["modalities"] == {"CT": 3, "PT": 1, "unknown": 1}
    assert merged["contrast"] == {"no": 2, "yes": 3}
    counts = merged["hu_histogram"]["counts"]
    assert len(counts) == 256
    assert sum(counts) == 3 * 120
    assert (counts[0], counts[-1], counts[(40 + 1024) // 16]) == (3, 119, 238)
    assert merged["hu_percentiles"]["50"] == 32.0
    assert merged["spacing_quantiles_mm"]["0.5"] == [3.0, 1.0, 1.0]
    assert merged["size_quantiles"]["0"] == [2, 5, 6]
    assert merged["value_range"] == [-2000.0, 5000.0]


def test_fingerprint_of_nothing():
    merged = merge_fingerprints([])
    assert merged["hu_percentiles"] == {}
    assert merged["spacing_quantiles_mm"] == {}
    assert merged["value_range"] == []
