"""Headers and pixels of files on disk, decoded by pydicom itself: a second source."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from medray.dicom.dataset import open_dataset
from medray.dicom.header import HEADER_TAGS, InstanceHeader, parse_header
from medray.dicom.series import Instance


@dataclass
class PlainDecoded:
    header: InstanceHeader
    frames: np.ndarray
    sha256: str


def read_header(path: Path) -> InstanceHeader:
    with path.open("rb") as stream:
        dataset, has_pixels = open_dataset(stream, stop_before_pixels=True, tags=HEADER_TAGS)
        return parse_header(dataset, has_pixels=has_pixels)


def read_instances(paths: Iterable[Path]) -> list[Instance]:
    return [
        Instance(uri=str(path), bytes=path.stat().st_size, stamp="1", header=read_header(path))
        for path in paths
    ]


def decode_plainly(path: Path) -> PlainDecoded:
    pixels = pydicom.dcmread(path).pixel_array
    frames = pixels if pixels.ndim > 2 else pixels[None]
    return PlainDecoded(read_header(path), frames, hashlib.sha256(path.read_bytes()).hexdigest())
