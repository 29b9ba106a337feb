"""SUVbw against values worked out by hand (body weight 70 kg, dose 350 MBq, F-18: 6586.2 s)."""

import math

import pytest
from pydicom.dataset import Dataset

from medray.dicom.pet import pet_facts, suv_factor
from medray.errors import DataError

HALF_LIFE_S = 6586.2


def pet(**changes):
    drug = Dataset()
    drug.RadionuclideTotalDose = changes.pop("dose", 350e6)
    drug.RadionuclideHalfLife = changes.pop("half_life", HALF_LIFE_S)
    drug.RadiopharmaceuticalStartTime = changes.pop("injected", "090000")
    dataset = Dataset()
    dataset.Modality = "PT"
    dataset.Units = "BQML"
    dataset.DecayCorrection = "START"
    dataset.PatientWeight = 70
    dataset.SeriesDate = dataset.AcquisitionDate = "20200101"
    dataset.SeriesTime = "100000"
    dataset.AcquisitionTime = "100000"
    for name, value in changes.items():
        if isinstance(name, str) and name.startswith("x"):
            group, element = int(name[1:5], 16), int(name[5:9], 16)
            dataset.add_new((group, element), "DS", value)
        elif value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.RadiopharmaceuticalInformationSequence = [drug]
    return dataset


DECAYED = 70_000 / (350e6 * 0.5 ** (3600 / HALF_LIFE_S))


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, DECAYED),
        ({"DecayCorrection": "ADMIN"}, 70_000 / 350e6),
        ({"Units": "GML"}, 1.0),
        ({"Units": "CNTS", "x70531000": "0.000551"}, 0.000551),
        ({"Units": "CNTS", "x70531009": "2.5"}, 2.5 * DECAYED),
        ({"injected": "233000", "SeriesTime": "003000", "AcquisitionTime": "003000"}, DECAYED),
        ({"SeriesTime": "120000"}, DECAYED),
        ({"AcquisitionTime": "103000"}, DECAYED),
    ],
)
def test_suv_factor_equals_hand_computed_values(changes, factor):
    assert suv_factor([pet_facts(pet(**changes))] * 3) == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientWeight": None},
        {"PatientWeight": 0},
        {"dose": 0},
        {"dose": None},
        {"half_life": 0},
        {"half_life": None},
        {"injected": ""},
        {"injected": "nonsense"},
        {"DecayCorrection": "NONE"},
        {"DecayCorrection": None},
        {"Units": "CNTS"},
        {"Units": "PROPCNTS"},
    ],
)
def test_incomplete_headers_are_refused_never_guessed(changes):
    with pytest.raises(DataError, match="^suv_not_computable: "):
        suv_factor([pet_facts(pet(**changes))] * 3)


def test_a_dose_that_is_not_finite_is_a_bad_tag_value():
    with pytest.raises(DataError, match="^bad_tag_value: "):
        pet_facts(pet(dose=math.inf))


def test_slices_of_different_units_are_refused():
    with pytest.raises(DataError, match="slices differ in their units"):
        suv_factor([pet_facts(pet()), pet_facts(pet(Units="GML"))])
