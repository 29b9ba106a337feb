"""DICOM Segmentation: planted voxels are where another reader finds them, whatever the header."""

import io
import itertools
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medray.dicom.seg import mask_on_slices, write_seg
from medray.dicom.seg_proof import proven_seg, verify_seg
from medray.dicom.seg_source import seg_source, source_header
from medray.dicom.seg_terms import SegmentTerm, segment_term
from medray.dicom.series import split_series
from medray.dicom.volume import assemble_volume
from medray.errors import ConfigError, DataError
from tests.unit.dicom_fixtures import PlainDecoded, decode_plainly, read_header, read_instances
from tests.unit.seg_fixtures import (
    NOTICE,
    ct_stack,
    enhanced_ct,
    file_bytes,
    highdicom_places_mm,
    places_mm,
    planted,
    read_source,
    seg_facts,
    slice_dataset,
    sort_places,
    stack_positions,
)

SIGNED_AXES = [
    tuple(sign * np.eye(3)[axis] for sign, axis in zip(signs, axes, strict=True))
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def encode(dataset: Dataset) -> bytes:
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset)
    return out.getvalue()


# Where voxels lie


@pytest.mark.parametrize("axes", SIGNED_AXES, ids=range(48))
def test_voxels_lie_right_in_all_48_orientations(axes: tuple[np.ndarray, ...]) -> None:
    row, column, step = axes
    normal = np.cross(row, column)
    datasets = [
        slice_dataset(position, 9 - k, ImageOrientationPatient=[*row, *column])
        for k, position in enumerate(stack_positions(5, step * 2.5))
    ]
    source = read_source(datasets)
    mask = planted((5, 6, 8))
    data = proven_seg(mask, source.geometry.affine_lps, source, seg_facts())
    # The truth is not the module's affine: slices ascend along the normal from whichever end.
    first = datasets[0 if step @ normal > 0 else -1]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = normal * 2.5, column * 0.75, row * 0.5
    affine[:3, 3] = first.ImagePositionPatient
    assert np.array_equal(highdicom_places_mm(data), places_mm(mask, affine))
    by_position = {str(d.ImagePositionPatient): d.SOPInstanceUID for d in datasets}
    frames = read(data).PerFrameFunctionalGroupsSequence
    assert len(frames) == 3
    for frame in frames:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == by_position[str(position)]


def test_oblique_and_rounded_cosines() -> None:
    turn = np.radians(33)
    row = np.array([np.cos(turn), np.sin(turn), 0])
    column = np.array([0, 0, -1.0])
    normal = np.cross(row, column)
    for digits in (16, 6, 3):
        cosines = [round(value, digits) for value in (*row, *column)]
        datasets = ct_stack(5, normal * 2.5, ImageOrientationPatient=cosines)
        source = read_source(datasets)
        mask = planted((5, 6, 8))
        data = proven_seg(mask, source.geometry.affine_lps, source, seg_facts())
        expected = places_mm(mask, source.geometry.affine_lps)
        assert np.abs(highdicom_places_mm(data) - expected).max() < 0.01, digits
        shared = read(data).SharedFunctionalGroupsSequence[0]
        written = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        if digits == 3:  # as stored they are no unit vectors, and would scale the frame
            assert abs(np.linalg.norm(cosines[:3]) - 1) > 1e-4
            assert np.allclose(np.linalg.norm(written.reshape(2, 3), axis=1), 1, atol=1e-9)
        else:
            assert np.allclose(written, cosines, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (1, 3), (3, 11)], ids=str)
def test_frames_that_end_off_a_byte(shape: tuple[int, int]) -> None:
    source = read_source(ct_stack(Rows=shape[0], Columns=shape[1]))
    mask = planted((5, *shape))
    data = proven_seg(mask, source.geometry.affine_lps, source, seg_facts())
    assert np.array_equal(highdicom_places_mm(data), places_mm(mask, source.geometry.affine_lps))
    frames = read(data).pixel_array
    assert np.array_equal(frames, mask[1:-1])


def test_slices_without_a_voxel_between_others_are_left_out() -> None:
    source = read_source(ct_stack(6))
    mask = np.zeros((6, 6, 8), np.uint8)
    mask[1, 2, 3] = mask[4, 5, 6] = 1
    data = proven_seg(mask, source.geometry.affine_lps, source, seg_facts())
    dataset = read(data)
    assert dataset.NumberOfFrames == 2
    assert "DimensionOrganizationType" not in dataset  # 7.5 mm apart, and not the slices' spacing
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == 2.5
    assert len(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6
    assert np.array_equal(highdicom_places_mm(data), places_mm(mask, source.geometry.affine_lps))


def test_an_empty_mask_says_of_every_slice_that_nothing_was_found() -> None:
    source = read_source(ct_stack())
    mask = np.zeros((5, 6, 8), np.uint8)
    data = write_seg(mask, source, seg_facts())
    found = verify_seg(data, mask, source.geometry.affine_lps, source)
    assert (found.num_frames, found.num_voxels, found.centroid_mm) == (5, 0, None)
    assert read(data).NumberOfFrames == 5
    assert not read(data).pixel_array.any()
    assert len(highdicom_places_mm(data)) == 0


def test_slice_spacing_is_measured_and_not_believed() -> None:
    source = read_source(ct_stack(SliceThickness="5", SpacingBetweenSlices="9"))
    data = write_seg(planted((5, 6, 8)), source, seg_facts())
    measures = read(data).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == 2.5
    assert float(measures.SliceThickness) == 5
    assert [float(v) for v in measures.PixelSpacing] == [0.75, 0.5]
    assert read(data).DimensionOrganizationType == "3D"


def test_uneven_slices_keep_their_own_positions() -> None:
    heights = [0.0, 2.5, 5.08, 7.5, 10.0]  # within what passes for a regular stack
    datasets = [slice_dataset((0, 0, z), k) for k, z in enumerate(heights, start=1)]
    source = read_source(datasets)
    mask = planted((5, 6, 8))
    data = proven_seg(mask, source.geometry.affine_lps, source, seg_facts())
    found = [
        float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        for group in read(data).PerFrameFunctionalGroupsSequence
    ]
    assert found == heights[1:4]


# Other kinds of source


def test_enhanced_multi_frame_refers_to_frames() -> None:
    positions = stack_positions(5, (0, 0, 2.5))
    shuffled = [positions[k] for k in (3, 0, 4, 2, 1)]
    source = read_source([enhanced_ct(shuffled)])
    mask = planted((5, 6, 8))
    data = proven_seg(mask, source.geometry.affine_lps, source, seg_facts())
    assert np.array_equal(highdicom_places_mm(data), places_mm(mask, source.geometry.affine_lps))
    numbers = {}
    for group in read(data).PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == "1.2.3.4.1"
        height = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        numbers[height] = int(image.ReferencedFrameNumber)
    assert numbers == {302.5: 5, 305.0: 4, 307.5: 1}
    assert len(read(data).ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1


def _tilted(tilt_deg: float, num: int = 7) -> list[Dataset]:
    shear = 2.5 * np.tan(np.radians(tilt_deg))
    return ct_stack(num, (0, shear, 2.5), Rows=12, Columns=9, GantryDetectorTilt=str(tilt_deg))


def _straightened(tmp_path: Path, datasets: list[Dataset], frames: np.ndarray) -> Any:
    decoded = []
    for dataset, pixels in zip(datasets, frames, strict=True):
        dataset.PixelData = pixels.astype("<i2").tobytes()
        dataset["PixelData"].VR = "OW"
        path = tmp_path / f"{dataset.InstanceNumber}.dcm"
        path.write_bytes(file_bytes(dataset))
        decoded.append(PlainDecoded(read_header(path), pixels[None], str(path)))
    return assemble_volume(decoded)


@pytest.mark.parametrize("tilt_deg", [18.5, -18.5, 40.0, -7.0])
def test_tilted_slices_get_the_mask_on_their_own_planes(tmp_path: Path, tilt_deg: float) -> None:
    datasets = _tilted(tilt_deg)
    frames = np.zeros((7, 12, 9), np.int16)
    frames[1:6, 3:9, 2:7] = 100
    volume = _straightened(tmp_path, datasets, frames)
    assert volume.flags == ("tilt_resampled",)
    source = read_source(datasets)
    assert source.mask_shape_zyx == volume.array.shape
    assert np.allclose(source.mask_affine_lps, volume.affine_lps, atol=1e-9)
    mask = (volume.array >= 50).astype(np.uint8)
    data = proven_seg(mask, volume.affine_lps, source, seg_facts())
    dataset = read(data)
    assert (dataset.Rows, dataset.Columns) == (12, 9)
    # Half a pixel may be lost on the way to the straight grid and back, no more.
    inside, around = np.zeros((2, 7, 12, 9), bool)
    inside[1:6, 4:8, 2:7], around[1:6, 2:10, 2:7] = True, True
    found = dataset.pixel_array.astype(bool)
    assert dataset.NumberOfFrames == 5
    assert (found >= inside[1:6]).all()
    assert (found <= around[1:6]).all()
    for k, group in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        plane = group.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(plane, datasets[k].ImagePositionPatient, atol=1e-6)
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == datasets[k].SOPInstanceUID


def test_tilt_by_whole_pixels_returns_every_voxel(tmp_path: Path) -> None:
    datasets = ct_stack(5, (0, 0.75, 2.5), Rows=12, Columns=9)
    frames = np.zeros((5, 12, 9), np.int16)
    frames[1:4] = 100 * planted((5, 12, 9), seed=3)[1:4]
    volume = _straightened(tmp_path, datasets, frames)
    source = read_source(datasets)
    mask = (volume.array >= 50).astype(np.uint8)
    data = proven_seg(mask, volume.affine_lps, source, seg_facts())
    assert np.array_equal(read(data).pixel_array, frames[1:4] // 100)
    x, y = np.array([0.5, 0, 0]), np.array([0, 0.75, 0])
    truth = [
        np.array(datasets[k].ImagePositionPatient, float) + i * x + j * y
        for k, j, i in np.argwhere(frames)
    ]
    assert np.array_equal(places_mm(mask, volume.affine_lps), sort_places(np.array(truth)))


def test_tilted_mask_beyond_the_acquired_slices_has_no_slice_to_lie_on(tmp_path: Path) -> None:
    datasets = _tilted(18.5)
    volume = _straightened(tmp_path, datasets, np.zeros((7, 12, 9), np.int16))
    mask = np.ones(volume.array.shape, np.uint8)
    source = read_source(datasets)
    data = write_seg(mask, source, seg_facts())
    found = verify_seg(data, mask, volume.affine_lps, source)
    assert found.num_voxels == 7 * 12 * 9


# What the object says


def test_it_says_how_it_came_about() -> None:
    source = read_source(ct_stack())
    dataset = read(write_seg(planted((5, 6, 8)), source, seg_facts()))
    segment = dataset.SegmentSequence[0]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "15776009"
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("organ_model", "3")
    assert algorithm.AlgorithmSource == "medray"
    assert f"weights_sha256={'ab' * 32},run_id=run-7" in algorithm.AlgorithmParameters
    assert f"source_sha256={'cd' * 32}" in algorithm.AlgorithmParameters
    assert (dataset.Manufacturer, dataset.SoftwareVersions) == ("medray", "0.1.0")
    makers = [item.Manufacturer for item in dataset.ContributingEquipmentSequence]
    assert makers[:2] == ["Acme", "medray"]
    assert dataset.SeriesDescription == "Pancreas: For research use only."
    assert dataset.ImageComments == segment.SegmentDescription == NOTICE
    assert dataset.ContentLabel == "PANCREAS"


def test_it_files_under_the_study_of_its_source() -> None:
    source = read_source(ct_stack())
    dataset = read(write_seg(planted((5, 6, 8)), source, seg_facts()))
    assert dataset.StudyInstanceUID == "1.2.3.1"
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.2"
    assert dataset.FrameOfReferenceUID == "1.2.3.3"
    assert (dataset.PatientName, dataset.PatientID) == ("Doe^Jane", "P-17")
    assert (dataset.PatientBirthDate, dataset.PatientSex) == ("19500102", "F")
    assert (dataset.StudyDescription, dataset.PatientAge) == ("Abdomen", "069Y")
    assert (dataset.StudyID, dataset.AccessionNumber) == ("S1", "A1")
    assert dataset.SeriesInstanceUID.startswith("2.25.")
    assert dataset.SeriesNumber == 1004
    assert source.is_identified


def test_equal_input_gives_equal_bytes_and_nothing_of_the_clock() -> None:
    mask = planted((5, 6, 8))
    first = write_seg(mask, read_source(ct_stack()), seg_facts())
    again = write_seg(mask, read_source(ct_stack()[::-1]), seg_facts())
    assert first == again
    assert first[:128] == bytes(128)
    dataset = read(first)
    assert "InstanceCreationDate" not in dataset
    assert (dataset.ContentDate, dataset.SeriesDate) == ("20190305", "20190305")
    assert (dataset.ContentTime, dataset.SeriesTime) == ("101112.5", "101112.5")
    own = {"SOPInstanceUID", "SeriesInstanceUID", "DimensionOrganizationUID"}
    uids = [e.value for e in dataset.iterall() if e.keyword in own and e.value != "1.2.3.2"]
    assert len(uids) == 5
    assert all(str(uid).startswith("2.25.") and len(uid) <= 64 for uid in uids)
    assert not [e for e in dataset.iterall() if e.VR == "DT"]


def test_the_order_of_an_array_in_memory_does_not_matter() -> None:
    source, mask = read_source(ct_stack()), planted((5, 6, 8))
    plain = write_seg(mask, source, seg_facts())
    for turned in (np.asfortranarray(mask), mask[::-1].copy()[::-1], mask.astype(bool)):
        data = proven_seg(turned, source.geometry.affine_lps, source, seg_facts())
        assert data == plain


@pytest.mark.parametrize(
    "change", [{"weights_sha256": "ef" * 32}, {"software_version": "0.2.0"}, {"run_id": "run-8"}]
)
def test_another_origin_gives_another_instance(change: dict[str, str]) -> None:
    source, mask = read_source(ct_stack()), planted((5, 6, 8))
    first = read(write_seg(mask, source, seg_facts()))
    other = read(write_seg(mask, source, seg_facts(**change)))
    assert first.SOPInstanceUID != other.SOPInstanceUID
    assert first.SeriesInstanceUID != other.SeriesInstanceUID
    moved = read(write_seg(np.roll(mask, 1, axis=2), source, seg_facts()))
    assert moved.SOPInstanceUID not in (first.SOPInstanceUID, other.SOPInstanceUID)


def test_required_attributes_are_there() -> None:
    from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map

    source = read_source(ct_stack(PatientID=None, StudyDate=None, Manufacturer=None))
    dataset = read(write_seg(planted((5, 6, 8)), source, seg_facts()))
    modules = [
        module["key"]
        for module in get_iod_module_map()["segmentation"]
        if module["usage"] == "M" or module["key"] in ("common-instance-reference",
                                                       "frame-of-reference")
    ]  # fmt: skip
    attributes = [
        item
        for module in modules
        for item in get_module_attribute_map()[module]
        if item["type"] in ("1", "2")
    ]
    assert len(attributes) > 60
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for item in attributes:
        groups = item["path"] in (["SharedFunctionalGroupsSequence"],
                                  ["PerFrameFunctionalGroupsSequence"])  # fmt: skip
        for holder in [] if groups else _holders(dataset, item["path"]):
            assert item["keyword"] in holder, (item["path"], item["keyword"])
            if item["type"] == "1":
                assert not holder[item["keyword"]].is_empty, item["keyword"]
    for macro in ("PixelMeasuresSequence", "PlaneOrientationSequence",
                  "SegmentIdentificationSequence"):  # fmt: skip
        assert len(shared[macro].value) == 1
    for group in dataset.PerFrameFunctionalGroupsSequence:
        assert {e.keyword for e in group} == {
            "DerivationImageSequence", "FrameContentSequence", "PlanePositionSequence",
        }  # fmt: skip


def _holders(dataset: Dataset, path: list[str]) -> list[Dataset]:
    found = [dataset]
    for keyword in path:
        found = [item for holder in found for item in holder.get(keyword, [])]
    return found


def test_frames_are_those_of_highdicom() -> None:
    """The functional groups are put together by hand; highdicom's own are the yardstick."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    datasets, mask = ct_stack(), planted((5, 6, 8))
    source = read_source(datasets)
    ours = read(write_seg(mask, source, seg_facts()))
    algorithm = AlgorithmIdentificationSequence("a", codes.DCM.ArtificialIntelligence, "1")
    segment = SegmentDescription(
        1, "x", codes.SCT.Organ, codes.SCT.Pancreas, "AUTOMATIC", algorithm
    )
    theirs = read(encode(Segmentation(
        datasets, mask, "BINARY", [segment], "1.2.9", 1, "1.2.10", 1, "m", "n", "1", "s"
    )))  # fmt: skip
    assert ours.SharedFunctionalGroupsSequence == theirs.SharedFunctionalGroupsSequence
    # highdicom's frames descend along the normal, ours ascend.
    pairs = [
        list(ours.PerFrameFunctionalGroupsSequence),
        list(theirs.PerFrameFunctionalGroupsSequence)[::-1],
    ]
    for place, (group, other) in enumerate(zip(*pairs, strict=True), start=1):
        assert list(group.FrameContentSequence[0].DimensionIndexValues) == [1, place]
        other.FrameContentSequence = group.FrameContentSequence
        assert group == other
    assert np.array_equal(ours.pixel_array, theirs.pixel_array[::-1])
    names = {element.keyword for element in theirs} - {element.keyword for element in ours}
    assert names == {"InstanceCreationDate", "InstanceCreationTime", "SourceImageSequence"}


# Headers of the wild


@pytest.mark.parametrize(
    "change",
    [
        {"PatientID": None, "PatientName": None, "PatientSex": None, "PatientBirthDate": None},
        {"StudyID": None, "StudyDate": None, "StudyTime": None, "AccessionNumber": None},
        {"StudyID": "", "StudyDate": "", "PatientSex": "", "SeriesDate": ""},
        {"PatientSex": "X"}, {"PatientSex": "female and more than sixteen"},
        {"PatientBirthDate": "unknown"}, {"StudyDate": "20191332", "SeriesDate": "yesterday"},
        {"StudyTime": "noon", "SeriesTime": "25"}, {"StudyDate": "2019.03.04"},
        {"Manufacturer": None, "Modality": None, "SeriesNumber": None},
        {"SliceThickness": None}, {"SliceThickness": "0"}, {"SeriesNumber": "-3"},
        {"PatientName": "x" * 300}, {"StudyDescription": "d" * 300, "PatientID": "i" * 100},
        {"PatientID": "a\\b"}, {"SpecificCharacterSet": "FOO"}, {"PatientAge": "69"},
        {"SOPClassUID": "1.2.3.99"}, {"Manufacturer": "m" * 200},
        {"PatientWeight": "75"}, {"LossyImageCompression": "01"}, {"SeriesNumber": "99999999"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom.*")
def test_odd_headers_are_no_obstacle(change: dict[str, Any]) -> None:
    with pydicom.config.disable_value_validation():
        blobs = [file_bytes(dataset) for dataset in ct_stack(**change)]
    source = seg_source([source_header(blob) for blob in blobs])
    mask = planted((5, 6, 8))
    data = proven_seg(mask, source.geometry.affine_lps, source, seg_facts())
    dataset = read(data)
    type_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate",
              "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
    assert not [keyword for keyword in type_2 if keyword not in dataset]
    with pydicom.config.strict_reading():
        for element in read(data).iterall():  # a value that is not legal raises here
            assert element.value is not NotImplemented
    assert np.array_equal(highdicom_places_mm(data), places_mm(mask, source.geometry.affine_lps))


def test_what_can_be_kept_of_an_odd_header_is_kept() -> None:
    change = {"StudyDate": "2019.03.04", "StudyTime": "11:22:33", "PatientSex": "f",
              "SOPClassUID": "1.2.3.99", "SeriesDate": None, "StudyID": "12345678901234567890",
              "LossyImageCompression": "01"}  # fmt: skip
    with pydicom.config.disable_value_validation():
        source = read_source(ct_stack(**change))
    dataset = read(write_seg(planted((5, 6, 8)), source, seg_facts()))
    assert (dataset.StudyDate, dataset.StudyTime) == ("20190304", "112233")
    assert (dataset.PatientSex, dataset.StudyID) == ("F", "1234567890123456")
    assert (dataset.ContentDate, dataset.ContentTime) == ("20190304", "112233")
    assert dataset.LossyImageCompression == "01"
    image = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert image.ReferencedSOPClassUID == "1.2.3.99"


def test_without_any_date_the_content_has_one_that_nobody_believes() -> None:
    source = read_source(ct_stack(StudyDate=None, StudyTime=None, SeriesDate=None))
    dataset = read(write_seg(planted((5, 6, 8)), source, seg_facts()))
    assert (dataset.ContentDate, dataset.ContentTime) == ("19000101", "000000")
    assert dataset.StudyDate == ""
    assert "SeriesDate" not in dataset


def test_names_of_other_character_sets_arrive_in_utf8() -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    japanese = read_source(ct_stack(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name))
    dataset = read(write_seg(planted((5, 6, 8)), japanese, seg_facts()))
    assert (dataset.SpecificCharacterSet, str(dataset.PatientName)) == ("ISO_IR 192", name)
    latin = read_source(ct_stack(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg"))
    dataset = read(write_seg(planted((5, 6, 8)), latin, seg_facts()))
    assert str(dataset.PatientName) == "Müller^Jörg"


def test_sequences_of_the_study_are_kept_and_private_ones_are_not() -> None:
    datasets = ct_stack()
    for dataset in datasets:
        code, other, secret = Dataset(), Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "77477000", "SCT", "CT"
        secret.PatientID = "hidden"
        other.PatientID, other.TypeOfPatientID = "P-18", "TEXT"
        other.add_new(0x00111001, "LO", "private")
        dataset.ProcedureCodeSequence, dataset.OtherPatientIDsSequence = [code], [other]
        dataset.add_new(0x00110010, "LO", "vendor")
        dataset.add_new(0x00111002, "SQ", [secret])
    written = read(write_seg(planted((5, 6, 8)), read_source(datasets), seg_facts()))
    assert written.ProcedureCodeSequence[0].CodeMeaning == "CT"
    assert written.OtherPatientIDsSequence[0].PatientID == "P-18"
    assert not [e for e in written.iterall() if e.tag.is_private or e.value == "hidden"]


def test_a_patient_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pydicom.config.disable_value_validation():
        source = read_source(ct_stack(PatientName="Secret", PatientID="Hidden", PatientSex="Q?"))
    proven_seg(planted((5, 6, 8)), source.geometry.affine_lps, source, seg_facts())
    assert not [text for text in ("Secret", "Hidden", "Q?") if text in caplog.text]


def test_a_source_that_names_nothing_still_gets_its_segmentation() -> None:
    lost = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
                          "SOPClassUID"), "")  # fmt: skip
    source = read_source(ct_stack(**lost))
    assert not source.is_identified
    mask = planted((5, 6, 8))
    data = proven_seg(mask, source.geometry.affine_lps, source, seg_facts())
    dataset = read(data)
    assert dataset.StudyInstanceUID.startswith("2.25.")
    image = dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    named = image.SourceImageSequence[0].ReferencedSOPInstanceUID
    assert named == "1.2.3.4.99"  # of the file meta information
    again = read_source(ct_stack(**lost)[::-1])
    assert again.study_uid == source.study_uid


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"FrameOfReferenceUID": None}, "no_geometry", "no frame of reference"),
        ({"FrameOfReferenceUID": "x"}, "no_geometry", "no frame of reference"),
        ({"ImageOrientationPatient": None}, "no_geometry", "orientation"),
        ({"PixelSpacing": None}, "no_geometry", "spacing"),
        ({"ImagePositionPatient": None}, "no_geometry", "position"),
        ({"ImagePositionPatient": [0, 0, 0]}, "duplicate_positions", "another one lies"),
    ],
    ids=str,
)
def test_no_segmentation_without_geometry(change: dict[str, Any], reason: str, words: str) -> None:
    if change.get("ImagePositionPatient", 0) is None:
        datasets = ct_stack()
        for dataset in datasets:
            del dataset.ImagePositionPatient
    elif "ImagePositionPatient" in change:
        datasets = [slice_dataset((0, 0, 0), k) for k in range(1, 6)]
    else:
        with pydicom.config.disable_value_validation():
            datasets = ct_stack(**change)
    with pydicom.config.disable_value_validation():
        blobs = [file_bytes(dataset) for dataset in datasets]
    with pytest.raises(DataError, match=words) as caught:
        seg_source([source_header(blob) for blob in blobs])
    assert caught.value.reason == reason


def test_slices_that_do_not_belong_together_are_refused() -> None:
    for change, reason in (
        ({"FrameOfReferenceUID": "1.2.9"}, "no_geometry"),
        ({"Rows": 7}, "mixed_size"),
        ({"PixelSpacing": [0.75, 0.6]}, "mixed_size"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.9999, 0.01]}, "mixed_orientation"),
    ):
        datasets = ct_stack()
        for name, value in change.items():
            setattr(datasets[2], name, value)
        with pytest.raises(DataError) as caught:
            read_source(datasets)
        assert caught.value.reason == reason, change
    with pytest.raises(DataError, match="more than one multi-frame"):
        read_source([enhanced_ct(stack_positions(3, (0, 0, 1))),
                     enhanced_ct(stack_positions(3, (0, 0, 1)), SOPInstanceUID="1.9")])  # fmt: skip
    with pytest.raises(DataError, match="no source slice"):
        seg_source([])


def test_copies_of_one_instance_count_once() -> None:
    datasets = ct_stack()
    source = read_source([*datasets, datasets[1], datasets[3]])
    assert source.mask_shape_zyx == (5, 6, 8)
    mask = planted((5, 6, 8))
    assert proven_seg(mask, source.geometry.affine_lps, source, seg_facts()) == write_seg(
        mask, read_source(datasets), seg_facts()
    )


def test_a_header_is_read_with_guards() -> None:
    whole = file_bytes(ct_stack()[0])
    header = source_header(whole)
    assert "PixelData" not in header
    assert header.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4.5"
    bomb = Dataset()
    bomb.SOPClassUID, bomb.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    blob = file_bytes(bomb).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    start = blob.index(b"1.2.840.10008.1.2.1.99") - 2
    blob = blob[:start] + struct.pack("<H", 22) + blob[start + 2 : start + 24]
    packer = zlib.compressobj(wbits=-15)
    many = packer.compress(bytes(70 << 20)) + packer.flush()
    for data, reason in (
        (b"", "empty_file"), (b"no DICOM at all" * 20, "not_dicom"),
        (whole[: len(whole) // 2], "truncated"), (blob + many, "bomb_suspected"),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            source_header(data)
        assert caught.value.reason == reason


def test_masks_that_do_not_fit_are_refused() -> None:
    source = read_source(ct_stack())
    for mask in (np.zeros((5, 6, 9), np.uint8), np.full((5, 6, 8), 2, np.uint8),
                 np.zeros((5, 6, 8), np.float32)):  # fmt: skip
        with pytest.raises(DataError) as caught:
            write_seg(mask, source, seg_facts())
        assert caught.value.reason == "model_output_invalid"
    assert mask_on_slices(np.zeros((5, 6, 8), bool), source).shape == (5, 6, 8)


# The proof


def _frame(dataset: Dataset, index: int) -> Dataset:
    group: Dataset = dataset.PerFrameFunctionalGroupsSequence[index]
    return group


def _move(dataset: Dataset, mm: float, axis: int) -> None:
    place = _frame(dataset, 1).PlanePositionSequence[0]
    position = [float(value) for value in place.ImagePositionPatient]
    position[axis] += mm
    place.ImagePositionPatient = position


def _flip_bit(dataset: Dataset) -> None:
    pixels = bytearray(dataset.PixelData)
    pixels[3] ^= 1
    dataset.PixelData = bytes(pixels)


def _swap_references(dataset: Dataset) -> None:
    images = [_frame(dataset, k).DerivationImageSequence[0].SourceImageSequence[0] for k in (0, 1)]
    first, second = (image.ReferencedSOPInstanceUID for image in images)
    images[0].ReferencedSOPInstanceUID, images[1].ReferencedSOPInstanceUID = second, first


def _swap_positions(dataset: Dataset) -> None:
    places = [_frame(dataset, k).PlanePositionSequence for k in (0, 1)]
    _frame(dataset, 0).PlanePositionSequence, _frame(dataset, 1).PlanePositionSequence = (
        places[1], places[0],
    )  # fmt: skip


def _drop_frame(dataset: Dataset) -> None:
    dataset.NumberOfFrames = 2
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:2]
    dataset.PixelData = dataset.PixelData[:12]


def _double_frame(dataset: Dataset) -> None:
    groups = dataset.PerFrameFunctionalGroupsSequence
    groups[1] = groups[0]
    dataset.PixelData = dataset.PixelData[:6] * 2 + dataset.PixelData[12:]


def _set(path: str, value: Any) -> Any:
    def change(dataset: Dataset) -> None:
        *holders, keyword = path.split(".")
        for name in holders:
            dataset = dataset[name][0]
        setattr(dataset, keyword, value)

    return change


_SHARED = "SharedFunctionalGroupsSequence"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_flip_bit, "other voxels"),
        (lambda d: _move(d, 0.2, 0), "no slice"),
        (lambda d: _move(d, 0.2, 2), "no slice"),
        (_swap_references, "another slice than its own"),
        (_swap_positions, "another slice than its own"),
        (_drop_frame, "lacks a slice"),
        (_double_frame, "two frames on one slice"),
        (_set("FrameOfReferenceUID", "1.2.9"), "frame of reference"),
        (_set("StudyInstanceUID", "1.2.9"), "another study"),
        (_set("SegmentationType", "FRACTIONAL"), "another kind"),
        (_set("NumberOfFrames", 4), "as many frames"),
        (_set("Rows", 4), "another matrix"),
        (_set(f"{_SHARED}.PixelMeasuresSequence.PixelSpacing", [0.75, 0.55]), "scaled"),
        (_set(f"{_SHARED}.PixelMeasuresSequence.PixelSpacing", [0.5, 0.75]), "scaled"),
        (
            _set(f"{_SHARED}.PlaneOrientationSequence.ImageOrientationPatient",
                 [0, 1, 0, 1, 0, 0]), "turned",
        ),
        (
            _set(f"{_SHARED}.SegmentIdentificationSequence.ReferencedSegmentNumber", 2),
            "unknown segment",
        ),
        (_set("PixelData", b""), "as many frames"),
        (lambda d: d.__delitem__(_SHARED), "cannot be read back"),
    ],
)  # fmt: skip
def test_the_proof_notices(change: Any, words: str) -> None:
    source, mask = read_source(ct_stack()), planted((5, 6, 8))
    data = write_seg(mask, source, seg_facts())
    affine = source.geometry.affine_lps
    verify_seg(encode(read(data)), mask, affine, source)
    dataset = read(data)
    change(dataset)
    with pytest.raises(DataError, match=words) as caught:
        verify_seg(encode(dataset), mask, affine, source)
    assert caught.value.reason == "output_mismatch"


def test_the_proof_notices_another_grid() -> None:
    source, mask = read_source(ct_stack()), planted((5, 6, 8))
    data = write_seg(mask, source, seg_facts())
    shifted = source.geometry.affine_lps.copy()
    shifted[:3, 3] += (0, 0, 2.5)
    flipped = source.geometry.affine_lps @ np.diag([1.0, 1, -1, 1])
    nudged = source.geometry.affine_lps.copy()
    nudged[:3, 3] += (0.15, 0, 0)
    for affine in (shifted, flipped, nudged, np.full((4, 4), np.nan)):
        with pytest.raises(DataError, match="another grid than its source"):
            verify_seg(data, mask, affine, source)
    nudged[:3, 3] -= (0.1, 0, 0)
    verify_seg(data, mask, nudged, source)
    with pytest.raises(DataError, match="cannot be read back"):
        verify_seg(data[:-40], mask, source.geometry.affine_lps, source)
    with pytest.raises(DataError, match="another shape"):
        verify_seg(data, mask[:, :, 1:], source.geometry.affine_lps, source)
    more = mask.copy()
    more[0, 2, 2] = 1
    with pytest.raises(DataError, match="lacks a slice"):
        verify_seg(data, more, source.geometry.affine_lps, source)


def test_the_measure_is_that_of_the_mask() -> None:
    source, mask = read_source(ct_stack()), planted((5, 6, 8))
    found = verify_seg(
        write_seg(mask, source, seg_facts()), mask, source.geometry.affine_lps, source
    )
    assert found.num_voxels == mask.sum()
    truth = places_mm(mask, source.geometry.affine_lps).mean(axis=0)
    assert np.allclose(found.centroid_mm, truth, atol=1e-3)


# Terms


def test_codes_are_those_of_the_standard() -> None:
    from pydicom.sr._concepts_dict import concepts

    known = {
        (code, meaning.lower())
        for entry in concepts["SCT"].values() for code, (meaning, _) in entry.items()
    }  # fmt: skip
    words = ("adrenal_gland", "breast", "kidney", "liver", "lung", "pancreas", "spleen", "lesion",
             "mass", "neoplasm", "nodule")  # fmt: skip
    for word in words:
        term = segment_term(word)
        for code, meaning in (term.category, term.kind):
            assert (code, meaning.lower()) in known, word
    assert segment_term("pancreas").kind == ("15776009", "Pancreas")
    assert segment_term("pancreas").region is None


def test_a_finding_lies_in_a_region() -> None:
    term = segment_term("lesion", region="pancreas")
    assert term.label == "Lesion (Pancreas)"
    source = read_source(ct_stack())
    segment = read(write_seg(planted((5, 6, 8)), source, seg_facts(term=term))).SegmentSequence[0]
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    assert segment.AnatomicRegionSequence[0].CodeValue == "15776009"


def test_unknown_words_are_refused() -> None:
    for word, region, message in (
        ("soul", "", "unknown segment 'soul'; known: adrenal_gland"),
        ("lesion", "soul", "unknown region 'soul'"),
        ("liver", "lung", "'liver' is an organ"),
    ):
        with pytest.raises(ConfigError, match=message):
            segment_term(word, region=region)


def test_odd_labels_are_made_legal() -> None:
    code = ("52988006", "Lesion")
    term = SegmentTerm(label="läsion, sehr lang und bunt: " * 4, category=code, kind=code)
    source = read_source(ct_stack())
    dataset = read(write_seg(planted((5, 6, 8)), source, seg_facts(term=term)))
    assert len(dataset.SeriesDescription) <= 64
    assert dataset.SeriesDescription.endswith("For research use only.")
    assert dataset.ContentLabel == "L_SION__SEHR_LAN"


# Real files


def _real_source(paths: list[Path]) -> Any:
    return seg_source([source_header(path.read_bytes()) for path in paths])


def test_the_real_j2k_series_and_its_pancreas(real_data: Path) -> None:
    """Its headers name neither study nor series; the mask's truth is read by nibabel."""
    import nibabel

    folder = real_data / "masks" / "totalsegmentator_dicom"
    paths = sorted((folder / "dicom").iterdir())
    source = _real_source(paths)
    volume = assemble_volume([decode_plainly(path) for path in paths])
    assert source.mask_shape_zyx == volume.array.shape == (20, 512, 512)
    truth = nibabel.load(folder / "seg.nii.gz")
    index = np.argwhere(np.asarray(truth.dataobj) == 7)
    ras = index @ truth.affine[:3, :3].T + truth.affine[:3, 3]
    places = ras * (-1, -1, 1)
    inverse = np.linalg.inv(volume.affine_lps)
    found = np.rint(places @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    mask = np.zeros(volume.array.shape, np.uint8)
    mask[tuple(found.T)] = 1
    assert mask.sum() == 1327
    data = proven_seg(mask, volume.affine_lps, source, seg_facts())
    assert np.abs(highdicom_places_mm(data) - sort_places(places)).max() < 0.01
    dataset = read(data)
    assert not source.is_identified
    names = {path.name.removeprefix("CT.") for path in paths}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID in names
    assert len(data) < 512 * 512 // 8 * dataset.NumberOfFrames + 20_000


def test_a_real_lung_ct(real_data: Path) -> None:
    files = sorted((real_data / "ct_series" / "lung_pet_ct_dx_A0001").rglob("*.dcm"))
    stack = max(split_series(read_instances(files)), key=lambda stack: stack.num_slices)
    paths = [Path(item.uri) for item in stack.instances]
    source = _real_source(paths)
    assert stack.geometry is not None
    assert np.array_equal(source.geometry.affine_lps, stack.geometry.affine_lps)
    mask = np.zeros(source.mask_shape_zyx, np.uint8)
    mask[10:14, 100:120, 200:230] = 1
    mask[20, 400, 17] = 1
    data = proven_seg(mask, source.geometry.affine_lps, source, seg_facts())
    assert np.array_equal(highdicom_places_mm(data), places_mm(mask, source.geometry.affine_lps))
    by_uid = {uid: pydicom.dcmread(p, stop_before_pixels=True)
              for p in paths if (uid := read_header(p).sop_uid)}  # fmt: skip
    written = read(data)
    for group in written.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        origin = by_uid[image.ReferencedSOPInstanceUID]
        place = group.PlanePositionSequence[0].ImagePositionPatient
        assert [float(v) for v in place] == [float(v) for v in origin.ImagePositionPatient]
    first = next(iter(by_uid.values()))
    assert (written.StudyInstanceUID, written.PatientID) == (
        first.StudyInstanceUID, first.PatientID,
    )  # fmt: skip


def test_a_real_tilted_ct(real_data: Path) -> None:
    folder = real_data / "ct_series" / "ge_tilt_variable_spacing"
    paths = sorted(
        folder.glob("*.dcm"), key=lambda path: read_header(path).planes[0].position_mm[2]
    )
    paths = paths[:14] if _is_stack(paths[:14]) else paths[14:]
    source = _real_source(paths)
    assert source.geometry.is_tilted
    volume = assemble_volume([decode_plainly(path) for path in paths])
    mask = (volume.array > 300).astype(np.uint8)  # bone
    data = proven_seg(mask, volume.affine_lps, source, seg_facts())
    frames = read(data).pixel_array
    by_uid = {read_header(path).sop_uid: path for path in paths}
    for frame, group in zip(frames, read(data).PerFrameFunctionalGroupsSequence, strict=True):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        origin = pydicom.dcmread(by_uid[image.ReferencedSOPInstanceUID])
        bone = origin.pixel_array * float(origin.RescaleSlope) + float(origin.RescaleIntercept)
        overlap = (frame & (bone > 300)).sum() * 2 / (frame.sum() + (bone > 300).sum())
        assert overlap > 0.93


def _is_stack(paths: list[Path]) -> bool:
    try:
        _real_source(paths)
    except DataError:
        return False
    return True


@pytest.mark.parametrize("name", ["toy_23", "toy_24"])
def test_single_and_multi_frame_copies_of_one_series_agree(real_data: Path, name: str) -> None:
    folder = real_data / "masks" / "dcmqi_liver_seg" / name
    single = _real_source(sorted(folder.glob("image_*.dcm")))
    multi = _real_source([folder / "multiframe_mf.dcm"])
    assert single.mask_shape_zyx == multi.mask_shape_zyx
    mask = np.zeros(single.mask_shape_zyx, np.uint8)
    mask[1, 3:9, 5] = mask[2, 0, 0] = 1
    found = [
        highdicom_places_mm(proven_seg(mask, s.geometry.affine_lps, s, seg_facts()))
        for s in (single, multi)
    ]
    assert np.allclose(found[0], found[1], atol=0.01)


def test_the_mask_of_another_writer_comes_out_the_same(real_data: Path) -> None:
    folder = real_data / "masks" / "dcmqi_liver_seg"
    theirs = pydicom.dcmread(folder / "seg" / "liver.dcm")
    source = _real_source(sorted((folder / "ct").glob("*.dcm")))
    heights = [
        float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        for group in theirs.PerFrameFunctionalGroupsSequence
    ]
    order = [int(np.abs(source.positions_mm[:, 2] - z).argmin()) for z in heights]
    mask = np.zeros(source.mask_shape_zyx, np.uint8)
    mask[order] = theirs.pixel_array
    ours = read(proven_seg(mask, source.geometry.affine_lps, source, seg_facts()))
    named = {
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID: frame
        for group, frame in zip(
            ours.PerFrameFunctionalGroupsSequence, ours.pixel_array, strict=True
        )
    }
    assert len(named) == 3
    for group, frame in zip(
        theirs.PerFrameFunctionalGroupsSequence, theirs.pixel_array, strict=True
    ):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert np.array_equal(named[image.ReferencedSOPInstanceUID], frame)
