import math

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut

from medray.dicom.header import InstanceHeader, Plane
from medray.dicom.tables import LutTable, LutTables
from medray.dicom.voi import apply_voi, padding_mask, to_modality_values, window
from medray.errors import DataError


def header(**changes: object) -> InstanceHeader:
    plain: dict = {
        "transfer_syntax_uid": "", "sop_class_uid": "", "sop_uid": "", "study_uid": "",
        "series_uid": "", "patient_id": "", "modality": "CT", "image_type": "", "rows": 4,
        "columns": 4, "num_frames": 1, "samples_per_pixel": 1, "bits_allocated": 16,
        "bits_stored": 16, "signed": True, "photometric": "MONOCHROME2", "has_pixels": True,
        "instance_number": 1, "acquisition": "", "echo": "", "planes": (Plane(),),
    }  # fmt: skip
    return InstanceHeader(**{**plain, **changes})


def test_hounsfield_values_are_exact_for_whole_slopes() -> None:
    stored = np.array([[[0, 1024, 4095, -2000]]], np.int16)
    found = to_modality_values(stored, [Plane(slope=1, intercept=-1024)])
    assert found.dtype == np.float32
    assert found.ravel().tolist() == [-1024, 0, 3071, -3024]
    same = to_modality_values(stored, [Plane()])
    assert same.ravel().tolist() == [0, 1024, 4095, -2000]


def test_each_frame_has_its_own_slope_in_double_precision() -> None:
    rng = np.random.default_rng(5)
    stored = rng.integers(0, 32767, (10, 6, 7)).astype(np.uint16)
    planes = [Plane(slope=0.75 + k * 0.123456789, intercept=-0.1 * k) for k in range(10)]
    found = to_modality_values(stored, planes)
    for k, plane in enumerate(planes):
        expected = (stored[k].astype(np.float64) * plane.slope + plane.intercept).astype(np.float32)
        np.testing.assert_array_equal(found[k], expected)


def test_large_stored_values_do_not_lose_bits_inside() -> None:
    stored = np.array([[[4294967295, 16777217]]], np.uint32)
    found = to_modality_values(stored, [Plane(slope=1.0, intercept=-16777216.0)])
    assert found.ravel().tolist() == [float(np.float32(4294967295 - 16777216)), 1.0]


def test_the_modality_table_replaces_slope_and_intercept() -> None:
    table = LutTable(10, 16, np.array([5, 50, 500], np.uint16))
    stored = np.array([[[0, 10, 11, 12, 99]]], np.int16)
    found = to_modality_values(stored, [Plane(slope=9)], LutTables(modality=table))
    assert found.ravel().tolist() == [5, 5, 50, 500, 500]


def test_planes_and_frames_must_agree_and_colour_has_no_modality_values() -> None:
    stored = np.zeros((3, 2, 2), np.int16)
    with pytest.raises(DataError, match="as many planes as frames"):
        to_modality_values(stored, [Plane()] * 2)
    with pytest.raises(DataError, match="colour"):
        to_modality_values(np.zeros((1, 2, 2, 3), np.uint8), [Plane()])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"padding_value": -2000}, [1, 0, 0, 0]),
        ({"padding_value": 63536}, [1, 0, 0, 0]),  # the same bits, written as US
        ({"padding_value": -2000, "padding_limit": -1000}, [1, 1, 0, 0]),
        ({"padding_value": -1000, "padding_limit": -2000}, [1, 1, 0, 0]),
    ],
)
def test_padding_is_found_in_the_signedness_of_the_pixels(
    changes: dict, expected: list | None
) -> None:
    found = padding_mask(np.array([-2000, -1500, 0, 7], np.int16), header(**changes))
    assert (None if found is None else found.astype(int).tolist()) == expected


def test_padding_of_unsigned_pixels_written_as_signed() -> None:
    values = np.array([0, 63536], np.uint16)
    found = padding_mask(values, header(padding_value=-2000, signed=False))
    assert found is not None
    assert found.tolist() == [False, True]


def slow_window(x: float, c: float, w: float, function: str) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 with ymin 0 and ymax 1."""
    if function == "LINEAR":
        if x <= c - 0.5 - (w - 1) / 2:
            return 0.0
        if x > c - 0.5 + (w - 1) / 2:
            return 1.0
        return (x - (c - 0.5)) / (w - 1) + 0.5
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        if x > c + w / 2:
            return 1.0
        return (x - c) / w + 0.5
    return 1 / (1 + math.exp(min(700.0, -4 * (x - c) / w)))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(
    ("center", "width"), [(40, 400), (-600, 1500), (0, 1), (12.5, 2), (0.5, 7.25)]
)
def test_windows_follow_the_formulas_of_the_standard(
    function: str, center: float, width: float
) -> None:
    values = np.linspace(-1200, 1200, 481)
    found = window(values, center=center, width=width, function=function)
    expected = [slow_window(x, center, width, function) if not (function == "LINEAR" and width == 1)
                else float(x > center - 0.5) for x in values]  # fmt: skip
    assert found.dtype == np.float32
    if function == "SIGMOID":
        np.testing.assert_allclose(found, expected, atol=1e-6)
    else:
        np.testing.assert_allclose(found, expected, atol=2e-7)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(function: str) -> None:
    values = np.arange(-1000, 1000, 3, dtype=np.int16)
    dataset = Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelRepresentation, dataset.BitsStored, dataset.BitsAllocated = 1, 16, 16
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 40, 350, function
    theirs = (apply_voi_lut(values, dataset) + 32768) / 65535
    ours = apply_voi(
        values, header(window_center=(40.0,), window_width=(350.0,), voi_function=function)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_voi_table_goes_before_the_window_and_agrees_with_pydicom() -> None:
    item = Dataset()
    item.LUTDescriptor = [512, 100, 12]
    item.LUTData = [min(4095, n * n // 60) for n in range(512)]
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    dataset = Dataset()
    dataset.VOILUTSequence = [item]
    values = np.arange(0, 1000, dtype=np.int32)
    table = LutTable(100, 12, np.array(item.LUTData, np.uint16))
    facts = header(window_center=(40.0,), window_width=(350.0,))
    found = apply_voi(values.astype(np.float32), facts, LutTables(voi=(table,)))
    np.testing.assert_allclose(found, apply_voi_lut(values, dataset) / 4095, atol=1e-6)


def test_monochrome1_is_inverted_and_several_windows_are_told_apart() -> None:
    values = np.array([0.0, 50.0, 100.0], np.float32)
    facts = {
        "window_center": (50.0, 25.0),
        "window_width": (100.0, 50.0),
        "voi_function": "LINEAR_EXACT",
    }
    up = apply_voi(values, header(**facts))
    assert up.tolist() == [0, 0.5, 1]
    down = apply_voi(values, header(photometric="MONOCHROME1", **facts))
    assert down.tolist() == [1, 0.5, 0]
    assert apply_voi(values, header(**facts), index=1).tolist() == [0, 1, 1]
    assert apply_voi(values, header(**facts), index=9).tolist() == [0, 1, 1]


def test_without_window_the_range_of_the_values_is_shown() -> None:
    assert apply_voi(np.array([-5.0, 0.0, 5.0]), header()).tolist() == [0, 0.5, 1]
    assert apply_voi(np.zeros(3), header()).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("width", "function"), [(0.5, "LINEAR"), (0, "LINEAR_EXACT"), (-1, "SIGMOID"), (10, "CUBIC")]
)
def test_windows_that_the_standard_does_not_know_are_refused(width: float, function: str) -> None:
    with pytest.raises(DataError, match="bad_tag_value"):
        window(np.zeros(3), center=0, width=width, function=function)
