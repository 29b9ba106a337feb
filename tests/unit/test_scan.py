import io
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medray.dicom.dataset import open_dataset
from medray.dicom.header import HEADER_TAGS, parse_header
from medray.dicom.scan import scan_header
from medray.errors import DataError
from tests.unit.decode_fixtures import decode_here, make_dicom


def both(data: bytes) -> tuple[object, object]:
    quick = scan_header(data)
    assert quick is not None
    stream = io.BytesIO(data)
    slow, met = open_dataset(stream, stop_before_pixels=True, tags=HEADER_TAGS)
    assert met
    assert stream.tell() == quick[1]
    return _facts(quick[0]), _facts(slow)


def _facts(dataset: Dataset) -> object:
    try:
        return parse_header(dataset, has_pixels=True)
    except DataError as error:
        return error.reason, error.detail


def nested(depth: int) -> Dataset:
    item = Dataset()
    item.CodeValue = "1"
    if depth:
        item.ReferencedImageSequence = [nested(depth - 1)]
    item.is_undefined_length_sequence_item = True
    return item


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_ordinary_headers_agree_with_the_full_parser(syntax: str) -> None:
    tags = {
        "SpecificCharacterSet": "ISO_IR 100", "PatientID": "Jürgen", "WindowCenter": [40, 50],
        "WindowWidth": [400, 500], "ImagePositionPatient": [1.5, -2, 3], "PixelSpacing": [0.5, 0.2],
        "RescaleSlope": "2", "RescaleIntercept": "-1024", "ReferencedStudySequence": [nested(3)],
    }  # fmt: skip
    data = make_dicom(np.zeros((4, 5), np.int16), syntax=syntax, **tags)
    quick, slow = both(data)
    assert quick == slow
    assert quick.patient_id == "Jürgen"


def test_what_is_out_of_the_ordinary_is_left_to_the_full_parser() -> None:
    pixels = np.zeros((4, 5), np.int16)
    plain = make_dicom(pixels)
    assert scan_header(plain) is not None
    assert scan_header(plain[132:]) is None
    assert scan_header(plain[:300]) is None
    assert scan_header(make_dicom(None)) is None
    for syntax in ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"):
        assert scan_header(make_dicom(pixels, syntax=syntax)) is None
    odd = plain.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00ZZ")
    assert scan_header(odd) is None
    sequence = b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    ends = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    rows = plain.index(b"\x28\x00\x02\x00US")
    for depth, quick in ((3, True), (60, False)):
        deep = plain[:rows] + sequence * depth + ends * depth + plain[rows:]
        assert (scan_header(deep) is not None) is quick
        assert decode_here(deep).frames.shape == (1, 4, 5)


def test_every_real_header_agrees_with_the_full_parser(real_data: Path) -> None:
    quick_ones = differing = 0
    for path in sorted(real_data.rglob("*")):
        if not path.is_file() or path.stat().st_size > 4 << 20:
            continue
        data = path.read_bytes()
        quick = scan_header(data[: 64 << 10])
        if quick is None:
            continue
        quick_ones += 1
        stream = io.BytesIO(data)
        slow, met = open_dataset(stream, stop_before_pixels=True)
        same = met and stream.tell() == quick[1] and _facts(quick[0]) == _facts(slow)
        for tag in ("HighBit", "PlanarConfiguration", "RedPaletteColorLookupTableDescriptor"):
            same = same and quick[0].get(tag) == slow.get(tag)
        differing += not same
    assert differing == 0
    assert quick_ones >= 400
