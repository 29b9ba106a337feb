"""From the URIs of one stack's instances to its volume, file by file, each read once."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from medray import storage
from medray.dicom.decoder import DecodedInstance, PixelDecoder
from medray.dicom.series import Instance
from medray.dicom.volume import VolumeBuilder
from medray.errors import DataError
from medray.volume import Volume

# Enough to hide the latency of an object store, few enough to hold only some slices.
_READ_AHEAD = 12


def load_volume(instances: Sequence[Instance], decoder: PixelDecoder) -> tuple[Volume, str]:
    """Read, decode and assemble one stack.

    Returns:
        The volume (CT in HU) and the sha256 over its instances' own hashes, order-independent.

    Raises:
        DataError: a read, decode or volume reason; the stack counts as one input.
    """
    builder = VolumeBuilder([item.header for item in instances])
    hashes = []
    for decoded in decode_instances(instances, decoder):
        builder.add(decoded)
        hashes.append(decoded.sha256)
    return builder.finish(), joint_sha256(hashes)


def joint_sha256(hashes: Iterable[str]) -> str:
    """Return one hash for many files, whatever their order."""
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def decode_instances(
    instances: Sequence[Instance], decoder: PixelDecoder
) -> Iterator[DecodedInstance]:
    """Decode instances in the order given.

    Raises:
        DataError: the first instance that cannot be read or decoded.
    """
    blobs = _read_ahead(instances)
    for decoded in decoder.decode_many(blobs):
        if isinstance(decoded, DataError):
            raise decoded
        yield decoded


def _read_ahead(instances: Sequence[Instance]) -> Iterator[bytes]:
    """Yield the bytes of every instance; remote ones are fetched ahead of their turn."""
    if not instances or storage.is_local(instances[0].uri):
        for item in instances:
            yield storage.read_bytes(item.uri, expected_bytes=item.bytes)
        return
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        for item in instances:
            waiting.append(pool.submit(storage.read_bytes, item.uri, expected_bytes=item.bytes))
            if len(waiting) >= _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
