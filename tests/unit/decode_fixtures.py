"""Small DICOM files in memory, and the decoding of one without a child process."""

import io

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ImplicitVRLittleEndian

from medray.dicom.decode_worker import DecodedFile, decode_file
from medray.dicom.pixels import PixelLimits

EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
LIMITS = PixelLimits(max_frame_bytes=64 << 20, max_pixels_bytes=256 << 20)


def make_dicom(
    pixels: np.ndarray | bytes | list[bytes] | None,
    *,
    syntax: str = EXPLICIT,
    cut: int = 0,
    **tags: object,
) -> bytes:
    """Write a file; a list of byte strings is encapsulated, `cut` drops bytes at the end."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Modality = "CT"
    if isinstance(pixels, np.ndarray):
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
        dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
        if pixels.ndim == 3:
            dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = 8 * pixels.dtype.itemsize
        dataset.BitsStored = dataset.BitsAllocated
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    big = syntax == ExplicitVRBigEndian
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    if isinstance(pixels, list):
        dataset.PixelData = encapsulate(pixels)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    elif pixels is not None:
        raw = pixels if isinstance(pixels, bytes) else _bytes(pixels, big=big)
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
        dataset["PixelData"].VR = "OW" if dataset.get("BitsAllocated", 8) > 8 else "OB"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    out = io.BytesIO()
    dataset.save_as(
        out,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=not big,
        enforce_file_format=True,
    ) if syntax in _KNOWN else _save_private(dataset, out)
    data = out.getvalue()
    return data[: len(data) - cut]


_KNOWN = {
    EXPLICIT,
    DEFLATED,
    str(ImplicitVRLittleEndian),
    str(ExplicitVRBigEndian),
    RLE,
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
}


# Newer than pydicom's list of transfer syntaxes; its stand-in is as long.
_DEFLATED_FRAMES, _STAND_IN = "1.2.840.10008.1.2.8.1", "1.2.3.4.5.6.7.8.9.0.1"


def _save_private(dataset: Dataset, out: io.BytesIO) -> None:
    if dataset.file_meta.TransferSyntaxUID == _DEFLATED_FRAMES:
        dataset.file_meta.TransferSyntaxUID = _STAND_IN
    dcmwrite(out, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)
    data = out.getvalue().replace(_STAND_IN.encode(), _DEFLATED_FRAMES.encode())
    out.seek(0)
    out.write(data)


def _bytes(pixels: np.ndarray, *, big: bool) -> bytes:
    return pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()


def like(pixels: np.ndarray, **changes: object) -> dict[str, object]:
    """Return the pixel description of an array, for files whose pixels are given encoded."""
    colour = pixels.ndim == 3
    return {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "HighBit": 8 * pixels.dtype.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **({"PlanarConfiguration": 0} if colour else {}),
        **changes,
    }


def decode_here(data: bytes, limits: PixelLimits = LIMITS) -> DecodedFile:
    """Decode in this process; only for files that are known to be harmless."""
    return decode_file(memoryview(data), limits)
