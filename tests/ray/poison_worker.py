"""Makes the decoder of a Ray worker obey its frames: set up before the worker does anything."""

from functools import partial

from medray.dicom import decoder
from medray.dicom.codecs import FRAME_CODECS
from tests.unit.poison_codec import POISON_SYNTAX

# An encoding that the index takes for supported and that no other test of the module uses.
OBEYED_SYNTAX = "1.2.840.10008.1.2.4.80"
FRAME_CODECS[OBEYED_SYNTAX] = FRAME_CODECS[POISON_SYNTAX]


def setup() -> None:
    """Give every decoder of this process the codec, and little time."""
    limits = decoder.DecodeLimits(max_memory_bytes=512 << 20, seconds=3, seconds_per_mib=0)
    plain = decoder.PixelDecoder
    decoder.PixelDecoder = lambda _: partial(plain, plugins=("tests.ray.poison_worker",))(limits)
