"""The two forms of a body: a multipart form read while it streams, and a small JSON object."""

import json
import logging
import re
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from medray.service.body import Receive
from medray.service.problems import ProblemError
from medray.service.uploads import Body, UploadWriter, known_suffix

MAX_JSON_BYTES = 64 << 10
_MAX_PARTS = 16
_MAX_PART_HEADER_BYTES = 8 << 10
_MAX_FIELD_BYTES = 4 << 10
_FILE = "file"
# RFC 2046 5.1.1
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_PLAIN_ENCODINGS = frozenset({b"", b"binary", b"8bit", b"7bit"})
_SILENT = logging.getLogger(f"{__name__}.parser")


async def read_form(content_type: str, receive: Receive, *, folder: str | None = None) -> Body:
    """Read a multipart form with one part named `file` and small fields beside it.

    Raises:
        ProblemError: boundary_wrong, body_malformed, file_missing, file_repeated,
            request_invalid, too_large, unsupported_type or client_gone.
        DataError: empty_file, sink_full or sink_denied.
    """
    form = _Form(_boundary(content_type), folder)
    try:
        async for piece in _stream(receive):
            form.write(piece)
        return form.finish()
    except BaseException:
        # A client that leaves ends as a cancellation, too.
        form.close()
        raise


async def read_json(receive: Receive) -> dict[str, str]:
    """Read a JSON object whose values are strings, of 64 KiB at most.

    Raises:
        ProblemError: request_malformed, request_invalid, too_large or client_gone.
    """
    raw = bytearray()
    async for piece in _stream(receive):
        raw += piece
        if len(raw) > MAX_JSON_BYTES:
            raise ProblemError("too_large", "a JSON body may have 64 KiB")
    try:
        found = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise ProblemError("request_malformed", "the body is no JSON object") from None
    if not isinstance(found, dict):
        raise ProblemError("request_malformed", "the body is no JSON object")
    if not all(isinstance(value, str) and _is_text(value) for value in found.values()):
        raise ProblemError("request_invalid", "each field of the JSON object is a string")
    if not all(_is_text(name) for name in found):
        raise ProblemError("request_invalid", "the name of a field is no text")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _is_text(value: str) -> bool:
    """Tell whether a string can be written again: half a surrogate pair cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


async def _stream(receive: Receive) -> Any:
    """Yield the pieces of the body."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ProblemError("client_gone")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _boundary(content_type: str) -> bytes:
    try:
        _, options = parse_options_header(content_type)
    except (ValueError, AssertionError):
        options = {}
    boundary = options.get(b"boundary", b"")
    if _BOUNDARY.fullmatch(boundary) is None:
        raise ProblemError("boundary_wrong", "Content-Type names no valid boundary")
    return boundary


class _Form:
    """The parts of one form; the parser calls back while it reads."""

    def __init__(self, boundary: bytes, folder: str | None) -> None:
        self._folder = folder
        self._fields: dict[str, str] = {}
        self._file: UploadWriter | None = None
        self._is_file = False
        self._name = ""
        self._value = bytearray()
        self._header_name, self._header_value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._num_header_bytes = 0
        self._num_parts = 0
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
            max_header_size=_MAX_PART_HEADER_BYTES,
        )
        # Its warnings quote bytes of the body.
        _SILENT.disabled = True
        self._parser.logger = _SILENT

    def write(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError:
            if self._num_parts == 0:
                raise ProblemError("boundary_wrong") from None
            raise ProblemError("body_malformed") from None

    def finish(self) -> Body:
        if not self._ended:
            reason = "body_malformed" if self._num_parts else "boundary_wrong"
            raise ProblemError(reason, "the body ends before its last boundary")
        if self._file is None:
            raise ProblemError("file_missing")
        return Body(self._fields, self._file.finish())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise ProblemError("request_invalid", "the form has too many parts")
        self._headers, self._num_header_bytes = {}, 0
        self._header_name, self._header_value = bytearray(), bytearray()
        self._name, self._value, self._is_file = "", bytearray(), False

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_value += data[start:end]

    def _count_header(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > _MAX_PART_HEADER_BYTES:
            raise ProblemError("body_malformed", "the header of a part is too long")

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def _on_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise ProblemError("body_malformed", "a part has no name")
        encoding = self._headers.get(b"content-transfer-encoding", b"").strip(b" \t").lower()
        if encoding not in _PLAIN_ENCODINGS:
            raise ProblemError("body_malformed", "a part is not sent as plain bytes")
        self._name = _decoded(options[b"name"])
        self._is_file = self._name == _FILE
        if b"filename" in options and not self._is_file:
            raise ProblemError("file_missing", "the part with the file is not named file")
        if self._is_file:
            if self._file is not None:
                raise ProblemError("file_repeated")
            suffix = known_suffix(options.get(b"filename", b"").decode("latin-1"))
            self._file = UploadWriter(suffix=suffix, folder=self._folder)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            assert self._file is not None
            self._file.write(memoryview(data)[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            raise ProblemError("request_invalid", "a part that is not named file is too long")

    def _on_part_end(self) -> None:
        if self._is_file:
            return
        if self._name in self._fields:
            raise ProblemError("request_invalid", "a field is there twice")
        self._fields[self._name] = _decoded(bytes(self._value))

    def _on_end(self) -> None:
        self._ended = True


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ProblemError("request_invalid", "a field is no UTF-8 text") from None
