"""Encoding of pixels in the transfer syntaxes that archives hold."""

from collections.abc import Callable
from typing import Any

import numpy as np
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

JPEG_QUALITY = 95


def encode_frame(frame: np.ndarray, *, syntax: str, bits_stored: int) -> bytes:
    """Encode one frame of unsigned values for an encapsulated transfer syntax.

    Args:
        frame: (rows, columns) or (rows, columns, 3).
        syntax: the transfer syntax UID.
        bits_stored: precision that the codestream declares.

    Raises:
        ValueError: if there is no encoder for the syntax.
    """
    encoder = _ENCODERS.get(syntax)
    if encoder is None:
        known = ", ".join(sorted(_ENCODERS))
        raise ValueError(f"syntax must be one of {known}, got {syntax}")
    return encoder(np.ascontiguousarray(frame), bits_stored)


def _codecs() -> Any:
    import imagecodecs

    return imagecodecs


def _jpeg2000(frame: np.ndarray, bits: int) -> bytes:
    # mct=False keeps RGB samples as they are: Photometric Interpretation stays RGB.
    return bytes(
        _codecs().jpeg2k_encode(
            frame, level=0, codecformat="j2k", reversible=True, bitspersample=bits, mct=False
        )
    )


def _htj2k(frame: np.ndarray, bits: int) -> bytes:  # noqa: ARG001 - one signature for all encoders
    return bytes(_codecs().htj2k_encode(frame, reversible=True))


def _jpeg_lossless(frame: np.ndarray, bits: int) -> bytes:
    return bytes(
        _codecs().jpeg_encode(frame, lossless=True, predictor=1, bitspersample=max(bits, 2))
    )


def _jpeg_baseline(frame: np.ndarray, bits: int) -> bytes:  # noqa: ARG001
    return bytes(_codecs().jpeg_encode(frame, level=JPEG_QUALITY))


def _jpeg_ls(frame: np.ndarray, bits: int) -> bytes:  # noqa: ARG001
    return bytes(_codecs().jpegls_encode(frame))


def _rle(frame: np.ndarray, bits: int) -> bytes:
    from pydicom.pixels.encoders.base import RLELosslessEncoder

    return RLELosslessEncoder.encode(
        frame,
        encoding_plugin="pydicom",
        rows=frame.shape[0],
        columns=frame.shape[1],
        samples_per_pixel=1 if frame.ndim == 2 else 3,
        bits_allocated=frame.dtype.itemsize * 8,
        bits_stored=bits,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2" if frame.ndim == 2 else "RGB",
        number_of_frames=1,
    )


_ENCODERS: dict[str, Callable[[np.ndarray, int], bytes]] = {
    JPEG2000Lossless: _jpeg2000,
    HTJ2KLossless: _htj2k,
    JPEGLosslessSV1: _jpeg_lossless,
    JPEGBaseline8Bit: _jpeg_baseline,
    JPEGLSLossless: _jpeg_ls,
    RLELossless: _rle,
}
