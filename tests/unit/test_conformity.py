"""Conformity: shifted phantoms are told from unseen ones, by limits of the training images."""

import json
import math

import numpy as np
import pytest

from medray.datasets.conformity import FLAGS, Conformity, compare, conformity, pooled
from medray.datasets.fingerprint import merge_fingerprints, partial_fingerprint
from medray.datasets.profile import image_profile
from medray.datasets.profile_reference import ASPECTS, make_reference
from medray.datasets.record import Sample
from medray.phantoms.abdomen import abdomen, make_belly
from medray.phantoms.fields import Grid
from medray.phantoms.score import auroc
from medray.volume import Image2D, Volume
from tests import conformity_cases as cases

COARSE = Grid(shape=(16, 40, 48), spacing_zyx_mm=(10.0, 7.2, 7.4))
NUM_LEARNED, NUM_UNSEEN = 24, 12


def coarse_abdomen(seed, number):
    found = abdomen(COARSE, make_belly(seed, number))
    return cases.volume_sample(found.hu, COARSE.spacing_zyx_mm, contrast=True)


@pytest.fixture(scope="module")
def abdomens():
    learned = [coarse_abdomen(0, n) for n in range(NUM_LEARNED)]
    unseen = [coarse_abdomen(1, n) for n in range(NUM_UNSEEN)]
    return merge_fingerprints(map(partial_fingerprint, learned)), unseen


@pytest.fixture(scope="module")
def films():
    learned = [cases.radiograph_sample(0, n) for n in range(NUM_LEARNED)]
    unseen = [cases.radiograph_sample(1, n) for n in range(NUM_UNSEEN)]
    return merge_fingerprints(map(partial_fingerprint, learned)), unseen


def test_unseen_cases_conform(abdomens, films):
    for fingerprint, unseen in (abdomens, films):
        found = [conformity(sample, fingerprint) for sample in unseen]
        assert sum(item.is_out_of_distribution for item in found) <= 0.1 * NUM_UNSEEN
        assert all((item.score < 0.5) == bool(item.flags) for item in found)
        assert np.median([item.score for item in found]) > 0.8


CT_SHIFTS = cases.abdomen_shifts("tiny")
FILM_SHIFTS = cases.radiograph_shifts("tiny")
EXPECTED = {
    "without contrast, by HU": "contrast_differs",
    "without contrast, header": "contrast_differs",
    "thorax": "anatomy_differs",
    "PET (Bq/ml) as CT": "intensity_differs",
    "PET (SUV) as CT": "intensity_differs",
    "modality MR": "modality_differs",
    "stored values (+1024)": "intensity_differs",
    "values x10": "intensity_differs",
    "values /10": "intensity_differs",
    "sign": "intensity_differs",
    "thick slices x3": "slice_thickness_differs",
    "white noise": "noise_differs",
    "voxels shuffled": "noise_differs",
    "left-right flip": "anatomy_differs",
    "head-feet flip": "anatomy_differs",
    "front-back flip": "anatomy_differs",
    "half of the slices": "field_of_view_differs",
    "modality MG": "modality_differs",
    "CT slice as CR": "intensity_differs",
    "12 bit (x16)": "intensity_differs",
    "0..1 floats": "intensity_differs",
    "inverted": "intensity_differs",
    "pixels shuffled": "noise_differs",
    "upside down": "anatomy_differs",
    "upper half": "field_of_view_differs",
    "quarter of the pixels": "field_of_view_differs",
}


def told_apart(shift, flag, fingerprint, unseen):
    inside = [conformity(sample, fingerprint).score for sample in unseen]
    found = [conformity(shift(sample, n), fingerprint) for n, sample in enumerate(unseen)]
    scores = np.array([*inside, *(item.score for item in found)])
    labels = np.arange(len(scores)) >= len(inside)
    assert auroc(-scores, labels) >= 0.95
    assert all(item.is_out_of_distribution for item in found)
    assert all(flag in item.flags for item in found)


@pytest.mark.parametrize("name", CT_SHIFTS)
def test_shifted_abdomens_are_flagged(name, abdomens):
    fingerprint, unseen = abdomens
    told_apart(CT_SHIFTS[name], EXPECTED[name], fingerprint, unseen[:6])


@pytest.mark.parametrize("name", FILM_SHIFTS)
def test_shifted_radiographs_are_flagged(name, films):
    fingerprint, unseen = films
    told_apart(FILM_SHIFTS[name], EXPECTED[name], fingerprint, unseen[:6])


def test_parts_merge_in_any_order_and_stay_small(abdomens):
    samples = [*abdomens[1], *(cases.radiograph_sample(2, n) for n in range(3))]
    parts = [partial_fingerprint(sample) for sample in samples]
    groups = [f"patient {n // 2}" for n in range(len(parts))]
    merged = merge_fingerprints(parts, groups=groups)
    assert merged == merge_fingerprints(parts[::-1], groups=groups[::-1])
    text = json.dumps(merged, allow_nan=False)
    assert merged == json.loads(text)
    assert len(text) < 20_000
    assert "patient 0" not in text
    assert set(merged["conformity"]["kinds"]) == {"CT", "CR/2d"}


def test_many_examples_are_sampled_in_any_order():
    rng = np.random.default_rng(0)
    images = [Image2D(array=rng.integers(0, 255, (12, 12))) for _ in range(310)]
    profiles = [image_profile(Sample(image=image)) for image in images]
    reference = make_reference(profiles, [""] * 310)
    assert reference == make_reference(profiles[::-1], [""] * 310)
    kind = reference["kinds"]["unknown/2d"]
    assert (kind["num_examples"], kind["num_compared"]) == (310, 300)
    assert set(kind["limits"]) == set(ASPECTS)


def test_images_of_one_patient_are_no_spread_between_patients(films):
    rng = np.random.default_rng(0)
    parts = []
    for number in range(8):
        sample = cases.radiograph_sample(3, number)
        parts += [partial_fingerprint(cases.varied(sample, rng)) for _ in range(2)]
    twins = [part for part in parts for _ in range(2)]
    patients = [str(n // 4) for n in range(len(twins))]
    alone = merge_fingerprints(twins)["conformity"]["kinds"]["CR/2d"]["limits"]
    grouped = merge_fingerprints(twins, groups=patients)["conformity"]["kinds"]["CR/2d"]["limits"]
    assert grouped["layout"] > 1.2 * alone["layout"]


@pytest.mark.parametrize("old", [{}, {"modalities": {"CT": 3}}])
def test_packages_without_a_reference_say_unknown(old, abdomens):
    sample = abdomens[1][0]
    assert conformity(sample, old) == Conformity(None, ())
    assert not conformity(sample, old).is_out_of_distribution
    empty = cases.with_values(sample, np.zeros_like(sample.image.array))
    assert conformity(empty, old) == Conformity(0.0, ("content_empty",))


def test_a_reference_of_another_version_is_not_read(abdomens):
    fingerprint, unseen = abdomens
    other = {"conformity": fingerprint["conformity"] | {"version": 99}}
    assert conformity(unseen[0], other) == Conformity(None, ())


def test_old_parts_without_a_profile_still_merge(abdomens):
    parts = [partial_fingerprint(sample) for sample in abdomens[1][:3]]
    del parts[0]["profile"]
    merged = merge_fingerprints(parts)
    assert merged["num_examples"] == 3
    assert merged["conformity"]["kinds"]["CT"]["num_examples"] == 2
    assert merge_fingerprints(parts[:1])["conformity"]["kinds"] == {}


def test_nothing_trained_on_is_unknown(abdomens):
    assert conformity(abdomens[1][0], merge_fingerprints([])) == Conformity(None, ())


def test_one_training_case_flags_other_kinds_alone(abdomens):
    _, unseen = abdomens
    fingerprint = merge_fingerprints([partial_fingerprint(unseen[0])])
    assert conformity(unseen[1], fingerprint).flags == ()
    thick = cases.thicker(unseen[1], factor=4)
    assert "slice_thickness_differs" in conformity(thick, fingerprint).flags
    shifted = cases.with_values(unseen[1], unseen[1].image.array + 1024)
    assert "intensity_differs" in conformity(shifted, fingerprint).flags


def test_a_file_without_modality_is_marked_but_not_refused(abdomens):
    fingerprint, unseen = abdomens
    found = conformity(cases.without_header(unseen[0]), fingerprint)
    assert found.flags == ("image_kind_unknown",)
    assert not found.is_out_of_distribution
    learned = [partial_fingerprint(cases.without_header(sample)) for sample in unseen[:8]]
    nifti = merge_fingerprints(learned)
    assert conformity(cases.without_header(unseen[9]), nifti).flags == ()
    assert conformity(unseen[9], nifti).flags == ()


def test_two_names_of_a_digital_radiograph_are_one(films):
    fingerprint, unseen = films
    assert (
        "modality_differs"
        not in conformity(cases.with_meta(unseen[0], modality="DX"), fingerprint).flags
    )


def test_colour_is_told_from_grey_written_as_colour(films):
    fingerprint, unseen = films
    grey = unseen[0].image.array.astype(np.uint8)
    image = Image2D(
        array=np.stack([grey] * 3, axis=-1), spacing_yx_mm=unseen[0].image.spacing_yx_mm
    )
    assert conformity(Sample(image=image, meta=unseen[0].meta), fingerprint).flags == ()
    tinted = image.array.copy()
    tinted[..., 0] = 255 - tinted[..., 0]
    found = conformity(Sample(image=Image2D(array=tinted), meta=unseen[0].meta), fingerprint)
    assert found.score == 0
    assert "colour_differs" in found.flags


def test_training_headers_of_both_contrast_states_allow_either(abdomens):
    _, unseen = abdomens
    half = [cases.with_meta(s, contrast=n % 2 == 0) for n, s in enumerate(unseen)]
    fingerprint = merge_fingerprints(map(partial_fingerprint, half))
    assert conformity(cases.with_meta(unseen[0], contrast=False), fingerprint).flags == ()
    silent = merge_fingerprints(
        partial_fingerprint(cases.with_meta(s, modality="CT", contrast=True)) for s in unseen
    )
    found = conformity(cases.with_meta(unseen[0], contrast=False), silent)
    assert found.flags == ("contrast_differs",)
    assert found.is_out_of_distribution


def test_the_axis_order_of_a_file_does_not_matter(abdomens):
    _, unseen = abdomens
    image = unseen[0].image
    turned = Volume(
        array=np.ascontiguousarray(image.array.transpose(2, 0, 1)[::-1]),
        affine_lps=image.affine_lps[:, [2, 0, 1, 3]] @ np.diag([-1.0, 1, 1, 1]),
    )
    one, other = (image_profile(Sample(image=i, meta=unseen[0].meta)) for i in (image, turned))
    for name in ("slice_mm", "pixel_mm", "extent_x_mm"):
        assert one["numbers"][name] == pytest.approx(other["numbers"][name])
    assert one["layout"] == other["layout"]
    assert one["levels"] == other["levels"]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 1, 1), np.int16),
        np.full((2, 3, 4), np.nan, np.float32),
        np.array([[[np.inf, -np.inf, 1e300]]]),
        np.zeros((5, 6, 7), np.uint8),
        np.random.default_rng(0).normal(0, 1e-9, (3, 9, 9)),
        np.iinfo(np.int64).max * np.ones((2, 2, 2), np.int64),
    ],
)
def test_odd_volumes_are_scored_without_an_error(array, abdomens):
    image = Volume(array=array, affine_lps=np.diag([3.0, 1, 1, 1]))
    sample = Sample(image=image, meta={"modality": "CT"})
    found = conformity(sample, abdomens[0])
    assert found.score < 0.01
    assert json.dumps(image_profile(sample), allow_nan=False)


def test_an_empty_image_is_named(abdomens, films):
    for fingerprint, unseen in (abdomens, films):
        blank = cases.with_values(unseen[0], np.full_like(unseen[0].image.array, 7))
        found = conformity(blank, fingerprint)
        assert found.score == 0
        assert "content_empty" in found.flags


def test_flags_are_a_closed_list_of_sentences(abdomens):
    fingerprint, unseen = abdomens
    seen = set()
    for name, shift in CT_SHIFTS.items():
        found = conformity(shift(unseen[0], 0), fingerprint)
        assert list(found.flags) == [flag for flag in FLAGS if flag in found.flags], name
        seen.update(found.flags)
    assert seen <= set(FLAGS)
    assert all(sentence.endswith(".") and sentence[0].isupper() for sentence in FLAGS.values())


def test_results_are_plain():
    assert Conformity(0.25, ("noise_differs",)).to_json() == {
        "score": 0.25, "flags": ["noise_differs"]
    }  # fmt: skip
    assert Conformity(None).to_json() == {"score": None, "flags": []}


def test_images_of_a_case_are_pooled():
    good, bad = Conformity(0.9), Conformity(0.1, ("noise_differs",))
    assert pooled([good, good, bad]) == Conformity(0.9, ())
    assert pooled([good, bad, bad]) == Conformity(0.1, ("noise_differs",))
    assert pooled([bad, Conformity(None)]) == Conformity(0.1, ("noise_differs",))
    assert pooled([]) == Conformity(None, ())


def test_a_volume_for_a_model_of_single_images_is_unknown(abdomens, films):
    assert conformity(abdomens[1][0], films[0]).score is None


def test_the_score_is_a_half_at_the_limit(abdomens):
    fingerprint, unseen = abdomens
    profile = image_profile(unseen[0])
    limits = fingerprint["conformity"]["kinds"]["CT"]["limits"]
    high = fingerprint["conformity"]["kinds"]["CT"]["numbers"]["slice_mm"][1]
    for factor, score in ((1.0, 0.5), (2.0, 1 / 17)):
        numbers = profile["numbers"] | {"slice_mm": math.exp(high + factor * limits["slice_mm"])}
        found = compare({**profile, "numbers": numbers}, fingerprint)
        assert found.score == pytest.approx(score, abs=1e-5)
