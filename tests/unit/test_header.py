import io
import zlib
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medray.dicom.dataset import open_dataset
from medray.dicom.header import HEADER_TAGS, parse_header
from medray.engine.crawl import read_header
from medray.errors import REASONS, ConfigError, DataError, GateError
from medray.phantoms.series import SeriesSpec, known_volume, write_ct_series
from medray.phantoms.zoo import find_element

NUMBERS = {
    "ImagePositionPatient": ["0", "0", "{}"],
    "ImageOrientationPatient": ["1", "0", "0", "0", "{}", "0"],
    "PixelSpacing": ["1", "{}"],
    "RescaleSlope": ["{}"],
    "RescaleIntercept": ["{}"],
    "GantryDetectorTilt": ["{}"],
    "WindowCenter": ["{}"],
    "WindowWidth": ["{}"],
}
NONSENSE = ["nan", "inf", "-inf", "1e308", "word"]


def slice_file(folder: Path, edit=None) -> Path:
    return write_ct_series(folder, known_volume((3, 10, 8)), SeriesSpec(edit=edit))[0]


def parse(path: Path):
    with path.open("rb") as stream:
        dataset, has_pixels = open_dataset(stream, stop_before_pixels=True, tags=HEADER_TAGS)
    return parse_header(dataset, has_pixels=has_pixels)


@pytest.mark.parametrize("keyword", NUMBERS)
@pytest.mark.parametrize("value", NONSENSE)
def test_numbers_that_are_legal_text_and_no_numbers_are_refused(tmp_path, keyword, value):
    path = slice_file(tmp_path)
    raw = pydicom.dcmread(path)
    text = "\\".join(NUMBERS[keyword]).format(value)
    raw[keyword] = pydicom.DataElement(keyword, "LO", text)
    raw[keyword].VR = "LO"
    raw.save_as(path)
    with pytest.raises(DataError, match=f"^bad_tag_value: {keyword}"):
        parse(path)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("RescaleSlope", 0),
        ("PixelSpacing", [0, 1]),
        ("PixelSpacing", [-1, 1]),
        ("PixelSpacing", [1, 1, 1]),
        ("ImagePositionPatient", [1, 2]),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("ImageOrientationPatient", [0.9, 0, 0, 0, 1, 0]),
        ("RescaleSlope", [1, 2]),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, keyword, value):
    def edit(dataset, k):
        setattr(dataset, keyword, value)

    with pytest.raises(DataError, match="^bad_tag_value: "):
        parse(slice_file(tmp_path, edit))


def test_empty_geometry_is_absence(tmp_path):
    def edit(dataset, k):
        dataset.ImagePositionPatient = None
        dataset.PixelSpacing = None

    plane = parse(slice_file(tmp_path, edit)).planes[0]
    assert plane.position_mm is None
    assert plane.spacing_yx_mm is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"just a text file that is no image at all" * 10, "not_dicom"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 200, "not_dicom"),
        (b"\x1f\x8b" + b"\0" * 200, "not_dicom"),
    ],
)
def test_foreign_bytes_are_named(data, reason):
    with pytest.raises(DataError, match=f"^{reason}: "):
        open_dataset(io.BytesIO(data), stop_before_pixels=True)


def deflated(body: bytes) -> bytes:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    out = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(out, meta, enforce_standard=True)
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"\0" * 128 + b"DICM" + out.getvalue() + engine.compress(body) + engine.flush()


def test_a_header_cut_inside_an_element_is_truncated(tmp_path):
    data = slice_file(tmp_path).read_bytes()
    elements = [
        find_element(data, tag) for tag in ((0x0008, 0x0018), (0x0020, 0x0032), (0x0028, 0x0100))
    ]
    for start, header, (_, stop) in elements:
        for end in {start + 1, start + header - 1, start + header + 1, stop - 1}:
            with pytest.raises(DataError, match="truncated: the file ends inside its header"):
                open_dataset(io.BytesIO(data[:end]), stop_before_pixels=True, tags=HEADER_TAGS)
        for whole in (data[:start], data[:start] + bytes(6)):  # nothing is missing, or padding
            _, has_pixels = open_dataset(io.BytesIO(whole), stop_before_pixels=True)
            assert not has_pixels


def test_a_deflate_bomb_is_refused_before_it_unfolds():
    bomb = deflated(b"\0" * (200 << 20))
    assert len(bomb) < 1 << 20
    with pytest.raises(DataError, match="^bomb_suspected: "):
        open_dataset(io.BytesIO(bomb), stop_before_pixels=True)


def test_a_deflated_header_reads_like_any_other(tmp_path):
    path = slice_file(tmp_path)
    plain = parse(path)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    again = parse(path)
    assert again.planes == plain.planes
    assert again.transfer_syntax_uid == DeflatedExplicitVRLittleEndian


def test_errors_survive_a_process_boundary():
    import copy

    for error in (DataError("truncated", "x"), GateError((("split_leak", "y"),))):
        again = copy.copy(error)
        assert type(again) is type(error)
        assert str(again) == str(error)
    with pytest.raises(ValueError, match="reason must be one of"):
        DataError("because", "x")
    assert issubclass(ConfigError, Exception)


def test_reason_codes_are_those_of_the_contract():
    assert len(REASONS) == 54
    assert {reason.stage for reason in REASONS.values()} == {
        "read", "decode", "volume", "label", "gate", "store", "model",
    }  # fmt: skip


def test_broken_files_are_results(real_data):
    for path in sorted((real_data / "broken").rglob("*")):
        if path.is_file():
            try:
                parse(path)
            except DataError as error:
                assert error.reason in REASONS


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_cut_inside_its_header_is_truncated_and_not_an_object_without_pixels(
    tmp_path, share
):
    path = slice_file(tmp_path)
    whole = path.read_bytes()
    header_bytes = len(whole) - 10 * 8 * 2 - 12
    path.write_bytes(whole[: 140 + int((header_bytes - 140) * share)])
    with pytest.raises(DataError, match="^truncated: |^unreadable: "):
        read_header(str(path), path.stat().st_size)


def test_an_object_without_pixels_is_not_cut(tmp_path):
    path = slice_file(tmp_path)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    assert not read_header(str(path), path.stat().st_size).has_pixels
