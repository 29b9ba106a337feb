"""A plug-in of the decoder's child whose codec does what the frame tells it: abort, hang, ..."""

import ctypes
import os
import time
from pathlib import Path

import numpy as np

from medray.dicom.codecs import FRAME_CODECS, FrameSpec

POISON_SYNTAX = "1.2.3.4.99"


def _obey(frame: bytes, spec: FrameSpec) -> np.ndarray:
    deed, _, diary = frame.rstrip(b"\0").decode().partition(":")
    if diary:
        with Path(diary).open("a") as file:
            file.write(".")
    if deed == "abort":
        os.abort()
    if deed == "segfault":
        ctypes.string_at(0)
    if deed == "exit":
        os._exit(3)
    if deed == "hang":
        time.sleep(600)
    if deed in {"eat", "claim"}:  # claimed memory counts, but costs no time to fill
        make, hoard = {"eat": np.ones, "claim": np.empty}[deed], []
        while True:
            hoard.append(make(16 << 20, np.uint8))
    if deed == "once" and len(Path(diary).read_text()) < 2:
        os.abort()
    return np.full(spec.shape, 7, spec.dtype)


FRAME_CODECS[POISON_SYNTAX] = _obey
