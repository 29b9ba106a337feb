"""Bodies of requests: one file and a few small fields, streamed and hashed on their way to disk."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from medray.errors import DataError
from medray.service.body import Receive
from medray.service.problems import ProblemError

# A closed list: anything else after a name's dot could be a part of a person's name.
SUFFIXES = (
    ".nii.gz", ".nii", ".dcm", ".zip", ".png", ".jpg", ".jpeg", ".nrrd", ".mha",
    ".hdr", ".img", ".mhd", ".nhdr",
)  # fmt: skip
_MEMORY_BYTES = 1 << 20
_HEAD_BYTES = 4096
_PIECE_BYTES = 1 << 20
_TEMP_PREFIX = "medray-upload-"
_PNG, _JPEG, _GZIP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x1f\x8b"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


def sniff(head: bytes) -> str:
    """Return what a file is by its first 4 KiB.

    Returns:
        dicom (with the DICM mark, or a bare data set as the readers take it), zip, png, jpeg,
        nifti (also packed by gzip), nrrd or mha.

    Raises:
        ProblemError: unsupported_type.
    """
    from medray.dicom.dataset import has_dicom_mark, looks_like_dicom
    from medray.formats.mha import is_mha
    from medray.formats.nifti_reader import is_nifti
    from medray.formats.nrrd import is_nrrd

    kinds = (
        ("dicom", has_dicom_mark(head)),
        ("png", head.startswith(_PNG)),
        ("jpeg", head.startswith(_JPEG)),
        ("zip", head.startswith(_ZIP)),
        ("nrrd", is_nrrd(head)),
        ("mha", is_mha(head)),
        ("nifti", is_nifti(head) or (head.startswith(_GZIP) and _may_hold_nifti(head))),
        ("dicom", looks_like_dicom(head)),
    )
    for kind, is_it in kinds:
        if is_it:
            return kind
    raise ProblemError("unsupported_type")


def _may_hold_nifti(head: bytes) -> bool:
    """Tell whether gzip data unpack to NIfTI; damaged ones too, their reader says what is wrong."""
    from medray.formats.limits import unpacked_head
    from medray.formats.nifti_reader import is_nifti

    try:
        unpacked = unpacked_head(head, 348)
    except DataError:
        return True
    return len(unpacked) < 4 or is_nifti(unpacked)


def known_suffix(name: str) -> str:
    """Return the suffix of a file name, lower case, empty where it is none that is known."""
    lowered = name.lower()
    return next((suffix for suffix in SUFFIXES if lowered.endswith(suffix)), "")


@dataclass(eq=False, slots=True)
class Upload:
    """The bytes of one file, in memory while they are few, else in a temporary file.

    Attributes:
        sha256: hex, of all bytes.
        num_bytes: size.
        suffix: of the declared name, which itself is not kept; see `SUFFIXES`.
        kind: what `sniff` says.
    """

    sha256: str
    num_bytes: int
    suffix: str
    kind: str
    _file: "_Spool" = field(repr=False)

    def read(self) -> bytes:
        """Return all bytes."""
        return b"".join(bytes(piece) for piece in self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes in pieces of a MiB, from the start each time."""
        return self._file.pieces()

    def path(self) -> str:
        """Return the path of a file with these bytes; it lives until `close`."""
        return self._file.path()

    def close(self) -> None:
        """Remove the bytes; more than once is fine."""
        self._file.close()

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class UploadWriter:
    """Takes the pieces of one file as they arrive."""

    def __init__(self, *, suffix: str, folder: str | None) -> None:
        self._suffix = suffix
        self._file = _Spool(folder, suffix)
        self._sha256 = hashlib.sha256()
        self._head = bytearray()

    def write(self, piece: memoryview) -> None:
        """Add a piece.

        Raises:
            DataError: sink_full or sink_denied.
        """
        if len(self._head) < _HEAD_BYTES:
            self._head += piece[: _HEAD_BYTES - len(self._head)]
        self._sha256.update(piece)
        self._file.write(piece)

    def finish(self) -> Upload:
        """Return the upload.

        Raises:
            DataError: empty_file.
            ProblemError: unsupported_type.
        """
        if not self._file.num_bytes:
            raise DataError("empty_file", "the file has no bytes")
        return Upload(
            self._sha256.hexdigest(),
            self._file.num_bytes,
            self._suffix,
            sniff(bytes(self._head)),
            self._file,
        )

    def close(self) -> None:
        """Remove the bytes."""
        self._file.close()


class _Spool:
    """Bytes in memory, and on disk above a MiB or when a path is asked for."""

    def __init__(self, folder: str | None, suffix: str) -> None:
        self._folder = folder
        self._suffix = suffix
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self._path = ""
        self.num_bytes = 0

    def write(self, piece: memoryview) -> None:
        with _as_sink_errors():
            if self._file is None and self.num_bytes + len(piece) > _MEMORY_BYTES:
                self._to_disk()
            if self._file is None:
                self._memory += piece
            else:
                self._file.write(piece)
            self.num_bytes += len(piece)

    def pieces(self) -> Iterator[bytes]:
        if self._file is None:
            yield bytes(self._memory)
            return
        self._file.flush()
        with open(self._path, "rb") as file:  # noqa: PTH123
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def path(self) -> str:
        with _as_sink_errors():
            if self._file is None:
                self._to_disk()
            assert self._file is not None
            self._file.flush()
        return self._path

    def close(self) -> None:
        self._memory = bytearray()
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # noqa: PTH108

    def _to_disk(self) -> None:
        number, self._path = tempfile.mkstemp(
            prefix=_TEMP_PREFIX, suffix=self._suffix, dir=self._folder
        )
        self._file = os.fdopen(number, "w+b")
        self._file.write(self._memory)
        self._memory = bytearray()


@contextlib.contextmanager
def _as_sink_errors() -> Iterator[None]:
    from medray.storage.sink import sink_error

    try:
        yield
    except OSError as error:
        raise sink_error(error) from error


@dataclass(eq=False, slots=True)
class Body:
    """What a request says: its fields, and its file where it brought one."""

    fields: dict[str, str] = field(repr=False)
    upload: Upload | None = None

    def close(self) -> None:
        """Remove the upload."""
        if self.upload is not None:
            self.upload.close()


async def read_body(content_type: str, receive: Receive, *, folder: str | None = None) -> Body:
    """Read a JSON object of strings or a multipart form, as Content-Type says.

    Args:
        content_type: of the request.
        receive: of the request, its total bounded by the guard.
        folder: where files of more than a MiB wait; default: the system's temporary folder.

    Raises:
        ProblemError: unsupported_type for another type, or what `read_json` and `read_form` raise.
        DataError: empty_file, sink_full or sink_denied.
    """
    from medray.service.forms import read_form, read_json

    media_type = content_type.partition(";")[0].strip(" \t").lower()
    if media_type == "application/json":
        return Body(await read_json(receive))
    if media_type == "multipart/form-data":
        return await read_form(content_type, receive, folder=folder)
    raise ProblemError("unsupported_type", "the body is neither multipart/form-data nor JSON")
