"""What is sent: a file, bytes or a folder as one body that is read anew for each attempt."""

import hashlib
import io
import json
import secrets
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO

from medray.errors import ConfigError

Source = str | PathLike[str] | bytes
_CHUNK_BYTES = 1 << 18
# Names on a user's disk may be a patient's: none is sent, the server looks at the bytes anyway.
_SUFFIXES = {b"PK": ".zip", b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"\x1f\x8b": ".nii.gz"}
_DICOM_MARK, _DICOM_MARK_AT = b"DICM", 128
_NIFTI_HEADER_BYTES = (348).to_bytes(4, "little"), (348).to_bytes(4, "big")
# The first date that a zip archive can hold: equal folders give equal bytes.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A request's body, never held in memory as a whole.

    Attributes:
        content_type: for the header of this name.
        head: bytes before the file.
        file: opened for reading in binary, or None; read from its start for each attempt.
        tail: bytes after it.
        length: of all three.
        sha256: of the file's bytes alone, or of the document.
    """

    content_type: str
    head: bytes
    file: IO[bytes] | None
    tail: bytes
    length: int
    sha256: str

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes from the start."""
        yield self.head
        if self.file is not None:
            self.file.seek(0)
            while chunk := self.file.read(_CHUNK_BYTES):
                yield chunk
        if self.tail:
            yield self.tail


@contextmanager
def upload_of(source: Source, fields: Mapping[str, str]) -> Iterator[Body]:
    """Give the body of an input; a folder's archive is a temporary file that is removed again.

    Args:
        source: a file, a folder of DICOM, a file's bytes, or a URI that the server reads.
        fields: further fields of the form.

    Raises:
        ConfigError: there is nothing to read.
    """
    if isinstance(source, bytes):
        yield _form(io.BytesIO(source), fields)
    elif isinstance(source, str) and "://" in source:
        yield _document({**fields, "uri": source})
    elif Path(source).is_dir():
        with tempfile.TemporaryFile() as archive:
            _zip_folder(Path(source), archive)
            yield _form(archive, fields)
    else:
        with _opened(Path(source)) as file:
            yield _form(file, fields)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read the input: {error.strerror}") from None


def _document(content: Mapping[str, str]) -> Body:
    data = json.dumps(content, sort_keys=True).encode()
    return Body(
        content_type="application/json",
        head=data,
        file=None,
        tail=b"",
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _form(file: IO[bytes], fields: Mapping[str, str]) -> Body:
    """Return a multipart body (RFC 7578) with one file."""
    digest = hashlib.sha256()
    num_bytes = 0
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        num_bytes += len(chunk)
    if num_bytes == 0:
        raise ConfigError("the input is empty")
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
        f'filename="upload{_suffix(file)}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    )
    head, tail = "".join(parts).encode(), f"\r\n--{boundary}--\r\n".encode()
    return Body(
        content_type=f"multipart/form-data; boundary={boundary}",
        head=head,
        file=file,
        tail=tail,
        length=len(head) + num_bytes + len(tail),
        sha256=digest.hexdigest(),
    )


def _suffix(file: IO[bytes]) -> str:
    file.seek(0)
    start = file.read(_DICOM_MARK_AT + len(_DICOM_MARK))
    if start[_DICOM_MARK_AT:] == _DICOM_MARK:
        return ".dcm"
    if start.startswith(_NIFTI_HEADER_BYTES):
        return ".nii"
    return next((suffix for mark, suffix in _SUFFIXES.items() if start.startswith(mark)), ".dcm")


def _zip_folder(folder: Path, target: IO[bytes]) -> None:
    """Store a folder's DICOM files, numbered, in the order of their paths."""
    names = sorted(path for path in folder.rglob("*") if path.is_file() and _is_dicom(path))
    if not names:
        raise ConfigError("the folder holds no DICOM file")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for number, path in enumerate(names, start=1):
            member = zipfile.ZipInfo(f"{number:06d}.dcm", date_time=_ZIP_EPOCH)
            member.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(member, "w") as packed:
                while chunk := source.read(_CHUNK_BYTES):
                    packed.write(chunk)


def _is_dicom(path: Path) -> bool:
    """Tell whether a file has the mark, or at least the suffix: then the server may judge."""
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as file:
        file.seek(_DICOM_MARK_AT)
        return file.read(len(_DICOM_MARK)) == _DICOM_MARK
