"""One DICOM instance: its header, its pixels, its bytes."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydicom import config as pydicom_config
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian

from medray.phantoms.encode import encode_frame
from medray.phantoms.naming import uid

# Fixed, so that no byte depends on the version of the library that writes.
_IMPLEMENTATION_UID = uid("medray", "phantom", "implementation")
_IMPLEMENTATION_NAME = "MEDRAY_PHANTOM"

SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "ECT": "1.2.840.10008.5.1.4.1.1.2.1",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "SC": "1.2.840.10008.5.1.4.1.1.7",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "MG": "1.2.840.10008.5.1.4.1.1.1.2",
    "SR": "1.2.840.10008.5.1.4.1.1.88.11",
}


def new_dataset(tags: Mapping[str, object]) -> Dataset:
    """Return a data set of these keywords; values are not checked against their VR."""
    dataset = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
    return dataset


def set_pixels(
    dataset: Dataset, frames: np.ndarray, *, syntax: str, bits_stored: int, rgb: bool = False
) -> None:
    """Put stored values and their description into a data set, encoded in a transfer syntax.

    Args:
        dataset: changed in place; it is under construction.
        frames: (num_frames, rows, columns) or with a last axis of 3 for RGB; native dtype.
        syntax: transfer syntax UID.
        bits_stored: number of bits that carry values.
        rgb: whether the last axis is colour.
    """
    dataset.SamplesPerPixel = 3 if rgb else 1
    if rgb:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = frames.shape[1:3]
    dataset.BitsAllocated = frames.dtype.itemsize * 8
    dataset.BitsStored = bits_stored
    dataset.HighBit = bits_stored - 1
    dataset.PixelRepresentation = int(frames.dtype.kind == "i")
    dataset.file_meta = _file_meta(dataset, syntax)
    vr = "OW" if dataset.BitsAllocated > 8 else "OB"
    if UID(syntax).is_encapsulated:
        coded = [encode_frame(frame, syntax=syntax, bits_stored=bits_stored) for frame in frames]
        dataset.add_new("PixelData", "OB", encapsulate(coded, has_bot=False))
        dataset["PixelData"].is_undefined_length = True
        return
    little = frames.dtype.newbyteorder("<")
    stored_as = little if UID(syntax).is_little_endian else frames.dtype.newbyteorder(">")
    raw = frames.astype(stored_as).tobytes()
    dataset.add_new("PixelData", vr, raw + b"\0" * (len(raw) % 2))


def _file_meta(dataset: Dataset, syntax: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "")
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "")
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = UID(_IMPLEMENTATION_UID)
    meta.ImplementationVersionName = _IMPLEMENTATION_NAME
    return meta


def instance_bytes(dataset: Dataset) -> bytes:
    """Return the DICOM file (PS3.10) of a data set; the same data set gives the same bytes."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = _file_meta(dataset, ExplicitVRLittleEndian)
    out = io.BytesIO()
    before = pydicom_config.settings.writing_validation_mode
    pydicom_config.settings.writing_validation_mode = pydicom_config.IGNORE
    try:
        dcmwrite(out, dataset, enforce_file_format=True)
    finally:
        pydicom_config.settings.writing_validation_mode = before
    return out.getvalue()


def write_instance(path: Path, dataset: Dataset) -> Path:
    """Write a data set as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(instance_bytes(dataset))
    return path
