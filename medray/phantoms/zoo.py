"""The dirty zoo: where defects are planted, and the healthy files they are made from."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian

from medray.phantoms.instance import SOP_CLASSES, instance_bytes, new_dataset, set_pixels
from medray.phantoms.naming import patient_name, stream, uid
from medray.phantoms.truth import Defect, Oddity, Truth

FOLDER = "zz-defects"
_ROWS, _COLUMNS = 32, 40
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")
_META_START = 132


class Zoo:
    """Plants defects under one folder of a data set and enters them in its truth."""

    def __init__(self, root: Path, truth: Truth) -> None:
        self.root = root
        self.truth = truth
        self.seed = truth.seed

    def folder(self, name: str) -> Path:
        """Return the folder of a defect."""
        return self.root / FOLDER / name

    def file(
        self, name: str, data: bytes, reason: str, *, stage: str = "index", suffix: str = ".dcm"
    ) -> Path:
        """Plant one file."""
        path = self.folder(name) / f"1-1{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.defect(path, reason, scope="file", stage=stage)
        return path

    def defect(
        self, path: Path, reason: str, *, scope: str, stage: str = "index", **more: str
    ) -> None:
        """Enter a defect that lies at a path; `more` is `row` or `needs`."""
        place = path.relative_to(self.root).as_posix()
        self.truth.defects.append(
            Defect(path=place, reason=reason, scope=scope, stage=stage, **more)
        )

    def oddity(self, path: Path, why: str) -> None:
        """Enter something strange that must survive."""
        place = path.relative_to(self.root).as_posix()
        self.truth.oddities.append(Oddity(path=place, why=why))

    def tags(self, name: str) -> dict[str, object]:
        """Return a healthy header: a radiograph, so that one file is a whole image."""
        return {
            "SpecificCharacterSet": "ISO_IR 100",
            "ImageType": ["ORIGINAL", "PRIMARY"],
            "SOPClassUID": SOP_CLASSES["CR"],
            "SOPInstanceUID": uid("zoo", self.seed, name),
            "StudyDate": "20050312",
            "Modality": "CR",
            "PatientName": patient_name(9000),
            "PatientID": f"ZOO-{name}",
            "StudyInstanceUID": uid("zoo-study", self.seed, name),
            "SeriesInstanceUID": uid("zoo-series", self.seed, name),
            "InstanceNumber": 1,
            "ImagePositionPatient": ["-20", "-30", "40"],
            "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
            "PixelSpacing": ["0.75", "0.75"],
            "PhotometricInterpretation": "MONOCHROME2",
            "RescaleSlope": "1",
            "RescaleIntercept": "0",
        }

    def pixels(self, name: str) -> np.ndarray:
        """Return (1, rows, columns) stored values, 12 bits."""
        ramp = np.add.outer(np.arange(_ROWS) * 60, np.arange(_COLUMNS) * 25)
        noise = stream(self.seed, "zoo", name).integers(0, 200, ramp.shape)
        return (ramp + noise)[None].astype(np.uint16)

    def stack(
        self,
        name: str,
        spoil: Callable[[bytes], bytes],
        reason: str,
        *,
        syntax: str,
        spoilt: tuple[int, ...] = (2,),
    ) -> None:
        """Plant a CT series of five slices, some spoilt: it is found when decoding."""
        self._slices(name, spoil, syntax=syntax, spoilt=spoilt)
        self.defect(self.folder(name), reason, scope="series", stage="convert")

    def odd_stack(
        self, name: str, change: Callable[[bytes], bytes], why: str, *, syntax: str, suffix: str
    ) -> None:
        """Plant a CT series that only looks wrong."""
        self._slices(name, change, syntax=syntax, spoilt=tuple(range(5)), suffix=suffix)
        self.oddity(self.folder(name), why)

    def _slices(
        self,
        name: str,
        change: Callable[[bytes], bytes],
        *,
        syntax: str,
        spoilt: tuple[int, ...],
        suffix: str = ".dcm",
    ) -> None:
        for k in range(5):
            data = self.ct_slice(name, k, syntax=syntax)
            path = self.folder(name) / f"1-{k + 1}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(change(data) if k in spoilt else data)

    def ct_slice(self, name: str, k: int, *, syntax: str = ExplicitVRLittleEndian) -> bytes:
        """Return slice k of a healthy CT series."""
        tags = {
            "Modality": "CT",
            "SOPClassUID": SOP_CLASSES["CT"],
            "SOPInstanceUID": uid("zoo", self.seed, name, k),
            "InstanceNumber": k + 1,
            "ImagePositionPatient": ["-20", "-30", str(40 + 3 * k)],
            "RescaleIntercept": "-1024",
        }
        return self.image(name, tags=tags, syntax=syntax)

    def image(
        self,
        name: str,
        *,
        tags: Mapping[str, object] | None = None,
        syntax: str = ExplicitVRLittleEndian,
        drop: tuple[str, ...] = (),
    ) -> bytes:
        """Return a healthy file, some tags changed or left out."""
        wanted = self.tags(name) | dict(tags or {})
        dataset = new_dataset(wanted)
        set_pixels(dataset, self.pixels(name), syntax=syntax, bits_stored=12)
        for keyword in drop:
            delattr(dataset, keyword)
        return instance_bytes(dataset)


def with_element(
    data: bytes, tag: tuple[int, int], change: Callable[[bytes], bytes] | bytes
) -> bytes:
    """Return an explicit-VR little-endian file with one element's value replaced as raw bytes.

    A library would refuse to write such values.
    """
    start, header, value = find_element(data, tag)
    new = change if isinstance(change, bytes) else change(data[value[0] : value[1]])
    new += b" " * (len(new) % 2)
    size = struct.pack("<H", len(new)) if header == 8 else b"\0\0" + struct.pack("<I", len(new))
    return data[: start + 6] + size + new + data[value[1] :]


def find_element(data: bytes, tag: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
    """Return start, header length and value range of a top-level element.

    Raises:
        ValueError: if it is not there.
    """
    offset = _META_START
    while offset + 8 <= len(data):
        found = struct.unpack_from("<HH", data, offset)
        header = 12 if data[offset + 4 : offset + 6] in _LONG_VRS else 8
        form = "<I" if header == 12 else "<H"
        length = struct.unpack_from(form, data, offset + (8 if header == 12 else 6))[0]
        if found == tag:
            if length == 0xFFFFFFFF:
                length = len(data) - offset - header
            return offset, header, (offset + header, offset + header + length)
        offset += header + length
    raise ValueError(f"the file must hold the element {tag}")
