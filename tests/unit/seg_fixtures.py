"""Source series of a few small slices as file bytes, and what other readers make of a SEG."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset

from medray.dicom.seg import SegFacts
from medray.dicom.seg_source import SegSource, seg_source, source_header
from medray.dicom.seg_terms import segment_term

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
NOTICE = "For research use only. Not a medical device, not for clinical decisions."
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def seg_facts(**changes: Any) -> SegFacts:
    given: dict[str, Any] = {
        "term": segment_term("pancreas"),
        "algorithm": "organ_model",
        "algorithm_version": "3",
        "software_version": "0.1.0",
        "weights_sha256": "ab" * 32,
        "notice": NOTICE,
        "run_id": "run-7",
        "source_sha256": "cd" * 32,
    }
    return SegFacts(**(given | changes))


def stack_positions(
    num: int, step_mm: Sequence[float], origin_mm: Sequence[float] = (-20.5, 10.25, 300.0)
) -> list[list[float]]:
    return [list(np.asarray(origin_mm) + k * np.asarray(step_mm)) for k in range(num)]


def slice_dataset(position_mm: Sequence[float], number: int, **changes: Any) -> Dataset:
    """Return one CT slice; a change to None takes the attribute away."""
    dataset = Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": CT_IMAGE, "SOPInstanceUID": f"1.2.3.4.{number}",
        "StudyInstanceUID": "1.2.3.1", "SeriesInstanceUID": "1.2.3.2",
        "FrameOfReferenceUID": "1.2.3.3", "PatientName": "Doe^Jane", "PatientID": "P-17",
        "PatientBirthDate": "19500102", "PatientSex": "F", "StudyDate": "20190304",
        "StudyTime": "112233", "SeriesDate": "20190305", "SeriesTime": "101112.5",
        "StudyID": "S1", "AccessionNumber": "A1", "ReferringPhysicianName": "Roe^R",
        "StudyDescription": "Abdomen", "PatientAge": "069Y", "Modality": "CT",
        "Manufacturer": "Acme", "ManufacturerModelName": "Scan 1", "SeriesNumber": "4",
        "InstanceNumber": str(number), "Rows": 6, "Columns": 8, "BitsAllocated": 16,
        "BitsStored": 16, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "PixelRepresentation": 1, "PixelSpacing": [0.75, 0.5], "SliceThickness": "2.5",
        "ImageOrientationPatient": list(AXIAL), "ImagePositionPatient": list(position_mm),
    }  # fmt: skip
    for name, value in (values | changes).items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def file_bytes(dataset: Dataset, *, meta: bool = True) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID") or CT_IMAGE
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or "1.2.3.4.99"
    if "PixelData" not in dataset:
        dataset.PixelData = b"\0" * 96
        dataset["PixelData"].VR = "OW"
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=meta)
    return out.getvalue()


def read_source(datasets: Sequence[Dataset]) -> SegSource:
    return seg_source([source_header(file_bytes(dataset)) for dataset in datasets])


def ct_stack(num: int = 5, step_mm: Sequence[float] = (0, 0, 2.5), **changes: Any) -> list[Dataset]:
    """Return single-frame slices; their InstanceNumber descends along the stack."""
    return [
        slice_dataset(position, num - k, **changes)
        for k, position in enumerate(stack_positions(num, step_mm))
    ]


def enhanced_ct(positions: Sequence[Sequence[float]], **changes: Any) -> Dataset:
    """Return one multi-frame object with its frames in the order given."""
    lost = ("PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient")
    dataset = slice_dataset(
        (0, 0, 0), 1, SOPClassUID=ENHANCED_CT, NumberOfFrames=str(len(positions)),
        **dict.fromkeys(lost), **changes,
    )  # fmt: skip
    measures, turned, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.75, 0.5], "2.5"
    turned.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turned]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for position in positions:
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = list(position)
        group.PlanePositionSequence = [place]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def planted(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Return a mask without symmetry whose first and last slices are empty."""
    mask = (np.random.default_rng(seed).random(tuple(shape)) < 0.3).astype(np.uint8)
    mask[[0, -1]] = 0
    mask[1:-1, 0, 0] = mask[-2, -1, -1] = 1
    return mask


def places_mm(mask: np.ndarray, affine_lps: np.ndarray) -> np.ndarray:
    """Return the (n, 3) places of set voxels, sorted, to the thousandth of a millimetre."""
    index = np.argwhere(mask)
    found = index @ affine_lps[:3, :3].T + affine_lps[:3, 3]
    return sort_places(found)


def sort_places(places: np.ndarray) -> np.ndarray:
    rounded = np.round(places, 3) + 0.0
    return rounded[np.lexsort(rounded.T)]


def highdicom_places_mm(data: bytes) -> np.ndarray:
    """Return the places of all set voxels as highdicom's volume reader has them."""
    from highdicom.seg import segread

    volume = segread(io.BytesIO(data)).get_volume(
        combine_segments=True, allow_missing_positions=True
    )
    index = np.argwhere(volume.array)
    return sort_places(index @ volume.affine[:3, :3].T + volume.affine[:3, 3])
