"""What the decoder and its child agree on: setup, lines on pipes, memory files. Imports nothing."""

import os
from dataclasses import dataclass

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


def send_line(descriptor: int, line: bytes) -> None:
    """Write a line; the newline before it ends what a dead worker may have left half-written."""
    view = memoryview(b"\n" + line + b"\n")
    while view:
        view = view[os.write(descriptor, view) :]
