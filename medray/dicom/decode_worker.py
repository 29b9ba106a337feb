"""The worker of the decoder's child: parses and decodes one foreign file after another."""

import io
import json
import mmap
import os
import signal
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medray.dicom.dataset import is_deflated, open_dataset
from medray.dicom.decode_wire import ChildSetup, grow_memory_file, send_line
from medray.dicom.header import InstanceHeader, parse_header
from medray.dicom.pixels import PixelElement, PixelLimits, decode_pixels, find_pixel_element
from medray.dicom.scan import scan_header
from medray.dicom.tables import LutTables, read_tables, tables_to_json
from medray.errors import DataError

_HEAD_BYTES = 64 << 10
_PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
# Deflated data may grow this much, or to a fixed size if that is more: empty masks are legal.
_MAX_DEFLATE_RATIO = 200
_MIN_DEFLATE_LIMIT = 256 << 20
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedFile:
    """One file as the worker sees it."""

    header: InstanceHeader
    frames: np.ndarray
    tables: LutTables


def decode_file(data: memoryview, limits: PixelLimits, **options: Any) -> DecodedFile:
    """Parse and decode one DICOM file.

    Args:
        data: the file.
        limits: what it may unpack to.
        options: `allocate` of `decode_pixels`.

    Raises:
        DataError: one of the read and decode reasons.
        MemoryError: It needs more memory than the process may have.
    """
    dataset, element = _parse(data, limits)
    header = parse_header(dataset, has_pixels=element is not None)
    if element is None:
        raise DataError("no_pixels", "the object has no pixel data")
    frames = decode_pixels(dataset, header, element, limits=limits, **options)
    return DecodedFile(header=header, frames=frames, tables=read_tables(dataset, header))


def _parse(data: memoryview, limits: PixelLimits) -> tuple[Dataset, PixelElement | None]:
    """Parse up to the pixel element; the parser gets the file's head before all of it."""
    head = bytes(data[:_HEAD_BYTES])
    quick = scan_header(head)
    if quick is not None:
        return quick[0], find_pixel_element(data, quick[1], quick[0])
    if is_deflated(io.BytesIO(head)):
        return _parse_deflated(data, limits)
    if len(data) > _HEAD_BYTES:
        try:
            found = _parse_part(data, _HEAD_BYTES)
        except DataError:
            found = None
        if found is not None and found[1] is not None:
            return found
    return _parse_part(data, len(data))


def _parse_part(data: memoryview, size: int) -> tuple[Dataset, PixelElement | None]:
    stream = io.BytesIO(data[:size])
    dataset, met = open_dataset(stream, stop_before_pixels=True)
    return dataset, find_pixel_element(data, stream.tell(), dataset) if met else None


def _parse_deflated(data: memoryview, limits: PixelLimits) -> tuple[Dataset, PixelElement | None]:
    limit = max(_MIN_DEFLATE_LIMIT, _MAX_DEFLATE_RATIO * len(data))
    dataset, _ = open_dataset(
        io.BytesIO(data),
        stop_before_pixels=False,
        max_inflated_bytes=min(limit, limits.max_pixels_bytes + _MAX_HEADER_BYTES),
    )
    for tag in _PIXEL_TAGS:
        if tag in dataset:
            value = dataset.get_item(tag).value
            if not isinstance(value, bytes):
                break
            return dataset, PixelElement(
                tag=tag, value=memoryview(value), declared_bytes=len(value), big_endian=False
            )
    return dataset, None


class Worker:
    """Takes jobs from the control pipe until it closes."""

    def __init__(self, setup: ChildSetup, epoch: int) -> None:
        self._setup = setup
        self._epoch = epoch
        self._limits = PixelLimits(
            max_frame_bytes=setup.max_frame_bytes, max_pixels_bytes=setup.max_pixels_bytes
        )
        self._inputs: dict[int, mmap.mmap] = {}
        self._outputs: dict[int, mmap.mmap] = {}

    def run(self) -> None:
        """Answer jobs of this worker's epoch; older ones were meant for one that died."""
        pending = b""
        while chunk := os.read(self._setup.control, 1 << 16):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                job = json.loads(line)
                if job["epoch"] == self._epoch and not self._answer(job):
                    return

    def _answer(self, job: dict[str, Any]) -> bool:
        """Decode one job and reply; False where this process should not go on."""
        reply: dict[str, Any] = {"job": job["job"]}
        header = b""
        # A parent that is gone or asleep does not leave a hung codec behind.
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        try:
            answer, header = self._decode(job["slot"], job["bytes"])
            reply |= answer
        except DataError as error:
            reply |= {"reason": error.reason, "detail": error.detail}
        except MemoryError:
            # After a failed allocation the heap and the codec's state are not to be trusted.
            reply |= {"reason": "decode_memory", "detail": "decoding needs more memory than the "
                      "limit", "last": True}  # fmt: skip
        except Exception as error:  # noqa: BLE001 - hostile headers raise anything
            reply |= {"reason": "unreadable", "detail": f"failed with {type(error).__name__}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        send_line(self._setup.reply, json.dumps(reply).encode() + b"\t" + header)
        return "last" not in reply

    def _decode(self, slot: int, size: int) -> tuple[dict[str, Any], bytes]:
        data = memoryview(self._input(slot, size))[:size]
        made: list[np.ndarray] = []

        def allocate(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
            made.append(self._output(slot, shape, dtype))
            return made[-1]

        found = decode_file(data, self._limits, allocate=allocate)
        frames, source = found.frames, np.frombuffer(data, np.uint8)
        # What the file holds as it is stays there: the parent reads it from its own bytes.
        native = frames.flags.c_contiguous and np.may_share_memory(frames, source)
        if not native and not (made and frames is made[-1]):
            target = allocate(frames.shape, frames.dtype.newbyteorder("="))
            target[...] = frames
            frames = target
        answer = {
            "native": native,
            "offset": frames.ctypes.data - source.ctypes.data if native else 0,
            "dtype": frames.dtype.str,
            "shape": frames.shape,
            "tables": tables_to_json(found.tables),
        }
        return answer, found.header.to_json().encode()

    def _input(self, slot: int, size: int) -> mmap.mmap:
        known = self._inputs.get(slot)
        if known is None or len(known) < size:
            descriptor = self._setup.inputs[slot]
            known = mmap.mmap(descriptor, os.fstat(descriptor).st_size, prot=mmap.PROT_READ)
            self._inputs[slot] = known
        return known

    def _output(self, slot: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        known = self._outputs.get(slot)
        if known is None or len(known) < size:
            self._outputs.pop(slot, None)
            descriptor = self._setup.outputs[slot]
            grow_memory_file(descriptor, size)
            try:
                known = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
            except OSError:
                raise MemoryError from None
            self._outputs[slot] = known
        return np.ndarray(shape, dtype, buffer=known)
