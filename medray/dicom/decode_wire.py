"""What the decoder and its child process agree on: setup, lines on pipes, memory files."""

import base64
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.dicom.tables import LutTable, LutTables

# One file is decoded while the next one is copied in.
NUM_SLOTS = 2
_MIN_FILE_BITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSetup:
    """What the parent hands over in one JSON argument; file descriptors are inherited.

    Attributes:
        control: jobs, parent to worker.
        reply: answers and deaths, worker and supervisor to parent.
        lifeline: orders to kill; its end is the parent's end.
        inputs, outputs: memory files, one of each per slot.
        plugins: modules to import, which may register codecs.
    """

    control: int
    reply: int
    lifeline: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    max_memory_bytes: int
    max_frame_bytes: int
    max_pixels_bytes: int
    plugins: tuple[str, ...] = ()


def grow_memory_file(descriptor: int, size: int) -> None:
    """Make a memory file hold `size` bytes; it grows in powers of two and never shrinks."""
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, 1 << max(_MIN_FILE_BITS, (size - 1).bit_length()))


def tables_to_json(tables: LutTables) -> list[list[Any]]:
    """Return `[kind, first, bits, base64 of little-endian uint16]` of each table."""
    kinds = [("modality", tables.modality)] if tables.modality else []
    kinds += [("voi", table) for table in tables.voi]
    return [
        [kind, table.first, table.bits, base64.b64encode(table.data.astype("<u2").tobytes()).decode()]
        for kind, table in kinds
    ]


def tables_from_json(raw: list[list[Any]]) -> LutTables:
    """Return the tables that `tables_to_json` wrote."""
    found = [
        (kind, LutTable(int(first), int(bits), np.frombuffer(base64.b64decode(data), "<u2")))
        for kind, first, bits, data in raw
    ]
    modality = [table for kind, table in found if kind == "modality"]
    voi = tuple(table for kind, table in found if kind == "voi")
    return LutTables(modality=modality[0] if modality else None, voi=voi)


def send_line(descriptor: int, line: bytes) -> None:
    """Write a line; the newline before it ends what a dead worker may have left half-written."""
    view = memoryview(b"\n" + line + b"\n")
    while view:
        view = view[os.write(descriptor, view) :]
