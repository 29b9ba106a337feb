"""Bodies of requests: right ones arrive whole, all others end with one reason and no file."""

import asyncio
import gzip
import hashlib
import io
import json
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medray.errors import DataError
from medray.formats.nifti import nifti_pieces
from medray.service import forms, uploads
from medray.service.problems import STATUS, ProblemError
from medray.service.uploads import known_suffix, read_body, sniff
from medray.volume import Volume
from tests.unit.asgi_client import Client, body_of

PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 100
BOUNDARY = "xYzZY"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def part(name, data, *, filename=None, extra=""):
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'Content-Disposition: form-data; name="{name}"{named}\r\n{extra}\r\n'
    return head.encode() + data + b"\r\n"


def form_of(*parts, boundary=BOUNDARY):
    mark = f"--{boundary}".encode()
    return b"".join(mark + b"\r\n" + item for item in parts) + mark + b"--\r\n"


def read(content_type, body, *, folder=None, size=65536, **options):
    pieces = body_of(body, size=size) if isinstance(body, bytes) else body
    client = Client(pieces, **options)
    return asyncio.run(read_body(content_type, client.receive, folder=folder))


def reason_of(content_type, body, **options):
    with pytest.raises((ProblemError, DataError)) as caught:
        read(content_type, body, **options)
    assert STATUS[caught.value.reason] < 500
    return caught.value.reason


# --- forms


@pytest.mark.parametrize("size", [1, 7, 64, 65536])
def test_a_form_gives_file_and_fields_however_it_is_cut(size, tmp_path):
    data = PNG + b"\r\n--xYzZ\r\n-- \r\n--" + bytes(range(256)) * 3
    body = form_of(
        part("model", "lung-ä".encode()), part("file", data, filename="Jane^Doe.PNG"),
        part("note", b""),
    )  # fmt: skip
    found = read(FORM, body, size=size, folder=str(tmp_path))
    assert found.fields == {"model": "lung-ä", "note": ""}
    upload = found.upload
    assert (upload.suffix, upload.kind, upload.num_bytes) == (".png", "png", len(data))
    assert upload.sha256 == hashlib.sha256(data).hexdigest()
    assert upload.read() == upload.read() == data
    assert "Jane" not in repr(found) + repr(upload)
    assert list(tmp_path.iterdir()) == []
    found.close()


def test_a_large_file_waits_on_disk_and_is_gone_afterwards(tmp_path):
    data = PNG + os.urandom(1 << 20)
    for size in (65536, 4 << 20):
        body = form_of(part("file", data, filename="a.png"))
        with read(FORM, body, size=size, folder=str(tmp_path)).upload as upload:
            (path,) = tmp_path.iterdir()
            assert path.stat().st_mode & 0o077 == 0
            assert upload.path() == str(path)
            assert b"".join(upload.pieces()) == path.read_bytes() == data
            assert upload.sha256 == hashlib.sha256(data).hexdigest()
        assert list(tmp_path.iterdir()) == []
        upload.close()


def test_a_small_file_gets_a_path_when_it_is_asked_for(tmp_path):
    upload = read(
        FORM, form_of(part("file", PNG, filename="a.nii.gz")), folder=str(tmp_path)
    ).upload
    assert upload.path().endswith(".nii.gz")
    assert Path(upload.path()).read_bytes() == upload.read() == PNG
    upload.close()
    assert list(tmp_path.iterdir()) == []


FILE = part("file", PNG, filename="a.png")
BAD_FORMS = {
    "no part": (form_of(), "file_missing"),
    "no file": (form_of(part("model", b"m")), "file_missing"),
    "file by another name": (form_of(part("File", PNG, filename="a")), "file_missing"),
    "two files": (form_of(FILE, FILE), "file_repeated"),
    "empty file": (form_of(part("file", b"", filename="a.png")), "empty_file"),
    "unknown bytes": (form_of(part("file", b"hello", filename="a.png")), "unsupported_type"),
    "two models": (form_of(part("model", b"a"), part("model", b"b"), FILE), "request_invalid"),
    "long field": (form_of(part("model", b"a" * 5000), FILE), "request_invalid"),
    "field that is no text": (form_of(part("model", b"\xff"), FILE), "request_invalid"),
    "name that is no text": (
        form_of(b'Content-Disposition: form-data; name="\xff"\r\n\r\n\r\n', FILE),
        "request_invalid"),
    "many parts": (form_of(*[part(f"f{i}", b"") for i in range(17)]), "request_invalid"),
    "other boundary": (form_of(FILE, boundary="other"), "boundary_wrong"),
    "no form at all": (b"GIF89a", "boundary_wrong"),
    "only new lines": (b"\r\n" * 50, "boundary_wrong"),
    "nothing": (b"", "boundary_wrong"),
    "cut in the data": (form_of(FILE)[:-20], "body_malformed"),
    "cut in the last boundary": (form_of(FILE)[:-5], "body_malformed"),
    "cut in a header": (form_of(FILE)[:20], "body_malformed"),
    "no header": (b"--xYzZY\r\n\r\nabc\r\n--xYzZY--\r\n", "body_malformed"),
    "no name": (
        form_of(b"Content-Disposition: form-data\r\n\r\nabc\r\n"), "body_malformed"),
    "attachment": (
        form_of(b'Content-Disposition: attachment; name="file"\r\n\r\nabc\r\n'), "body_malformed"),
    "bad header": (form_of(b"Content(Disposition: x\r\n\r\nabc\r\n"), "body_malformed"),
    "base64": (
        form_of(part("file", b"iVBO", extra="Content-Transfer-Encoding: base64\r\n")),
        "body_malformed"),
    "long header": (form_of(part("file", PNG, extra=f"X: {'y' * 9000}\r\n")), "body_malformed"),
    "long headers": (
        form_of(part("file", PNG, extra="".join(f"X{i}: {'y' * 3000}\r\n" for i in range(3)))),
        "body_malformed"),
    "many headers": (
        form_of(part("file", PNG, extra="".join(f"X{i}: y\r\n" for i in range(50)))),
        "body_malformed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_bad_form_has_one_reason(name, tmp_path, caplog):
    body, reason = BAD_FORMS[name]
    with caplog.at_level(logging.INFO):
        for size in (1, 65536):
            assert reason_of(FORM, body, size=size, folder=str(tmp_path)) == reason
    assert caplog.text == ""  # the parser would quote bytes of the body
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "x" * 71, "multipart/form-data; boundary=a\x00b",
        "multipart/form-data; boundary=\xe4", "multipart/form-data; boundary*=utf-8''x",
        'multipart/form-data; boundary="', "multipart/form-data;;;=",
    ],
)  # fmt: skip
def test_a_form_needs_a_boundary(content_type):
    client = Client([form_of(FILE)])
    with pytest.raises(ProblemError, match="boundary_wrong"):
        asyncio.run(read_body(content_type, client.receive))
    assert client.num_calls == 0


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "image/png", "multipart/mixed", "application/x"]
)
def test_other_bodies_are_not_taken(content_type):
    client = Client([PNG])
    with pytest.raises(ProblemError, match="neither multipart/form-data nor JSON"):
        asyncio.run(read_body(content_type, client.receive))
    assert client.num_calls == 0


def test_a_client_that_goes_leaves_no_file(tmp_path):
    body = form_of(part("file", PNG + b"x" * (2 << 20), filename="a.png"))[:-100]
    with pytest.raises(ProblemError) as caught:
        read(FORM, body, folder=str(tmp_path), gone=True)
    assert caught.value.reason == "client_gone"
    assert list(tmp_path.iterdir()) == []

    async def cancelled():
        client = Client(body_of(body), hang=True)
        task = asyncio.create_task(read_body(FORM, client.receive, folder=str(tmp_path)))
        await asyncio.sleep(0.05)
        assert len(list(tmp_path.iterdir())) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_fault_of_the_client(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads.tempfile, "mkstemp", full)
    with pytest.raises(DataError) as caught:
        read(FORM, form_of(part("file", PNG + b"x" * (2 << 20))), folder=str(tmp_path))
    assert (caught.value.reason, STATUS[caught.value.reason]) == ("sink_full", 503)


_FUZZ = settings(
    max_examples=int(os.environ.get("MEDRAY_FUZZ", "60")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
_TOKENS = [
    b"--xYzZY", b"--xYzZY--", b"\r\n", b"\n", b"\r", b"-", b" ", b"\t", b":", b"\0", b"\xff",
    b'Content-Disposition: form-data; name="file"', b'; filename="a', b'"', b"\\", b";", b"=",
    b"Content-Disposition", b"--xYzZ", PNG[:9], b"name*=utf-8''x", b"form-data",
]  # fmt: skip


@_FUZZ
@given(st.one_of(
    st.binary(max_size=400),
    st.lists(st.sampled_from(_TOKENS), max_size=30).map(b"".join),
    st.lists(st.sampled_from(_TOKENS), max_size=30).map(lambda x: b"--xYzZY\r\n" + b"".join(x)),
), st.integers(1, 80))  # fmt: skip
def test_garbage_ends_with_a_reason_or_a_form(body, size):
    try:
        found = read(FORM, body, size=size)
    except (ProblemError, DataError) as error:
        assert STATUS[error.reason] < 500
    else:
        assert found.upload.num_bytes > 0


@_FUZZ
@given(st.data())
def test_a_cut_or_flipped_form_never_gives_other_bytes_silently(data):
    content = data.draw(st.binary(min_size=1, max_size=200))
    whole = form_of(part("file", PNG + content, filename="a.png"), part("model", b"m"))
    cut = data.draw(st.integers(0, len(whole) - 5))
    with pytest.raises((ProblemError, DataError)):
        read(FORM, whole[:cut], size=data.draw(st.integers(1, 100)))
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = read(FORM, bytes(flipped), size=data.draw(st.integers(1, 100)))
    except (ProblemError, DataError) as error:
        assert STATUS[error.reason] < 500
    else:
        raw = found.upload.read()
        assert found.upload.sha256 == hashlib.sha256(raw).hexdigest()


@_FUZZ
@given(st.text(max_size=60), st.text(max_size=20))
def test_any_content_type_is_answered(head, boundary):
    for content_type in (
        head,
        f"multipart/form-data; {head}",
        f"multipart/form-data; boundary={boundary}",
    ):
        try:
            read(content_type, form_of(FILE))
        except (ProblemError, DataError) as error:
            assert STATUS[error.reason] < 500


# --- JSON


def test_a_json_object_of_strings():
    found = read(
        "application/json; charset=utf-8", '{"model": "ä", "uri": "s3://b/k"}'.encode(), size=3
    )
    assert found.fields == {"model": "ä", "uri": "s3://b/k"}
    assert found.upload is None
    assert "s3" not in repr(found)
    found.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "request_malformed"), (b"[]", "request_malformed"), (b'"a"', "request_malformed"),
        (b"{", "request_malformed"), (b'{"a": NaN}', "request_malformed"),
        (b'{"a": "b", "a": "c"}', "request_malformed"), (b"\xff\xfe{\0}\0", "request_malformed"),
        (b'{"a": "\xff"}', "request_malformed"), (b"[" * 60000, "request_malformed"),
        (b'{"a":' * 10000, "request_malformed"),
        (b'{"a": %s}' % (b"9" * 5000), "request_malformed"),
        (b'{"a": 1}', "request_invalid"), (b'{"a": null}', "request_invalid"),
        (b'{"a": ["b"]}', "request_invalid"), (b'{"a": "\\ud800"}', "request_invalid"),
        (b'{"\\udfff": "a"}', "request_invalid"),
        (b'{"a": "' + b"x" * 65536 + b'"}', "too_large"),
    ],
)  # fmt: skip
def test_bad_json_has_one_reason(body, reason):
    assert reason_of("application/json", body) == reason


@_FUZZ
@given(st.one_of(st.binary(max_size=100), st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=5,
).map(lambda x: json.dumps(x).encode())))  # fmt: skip
def test_any_json_is_answered(body):
    try:
        found = read("application/json", body)
    except ProblemError as error:
        assert STATUS[error.reason] < 500
    else:
        assert all(isinstance(v, str) for v in found.fields.values())


def test_a_long_json_body_is_not_collected():
    client = Client(b"x" * 8192 for _ in range(10000))
    with pytest.raises(ProblemError, match="a JSON body may have 64 KiB"):
        asyncio.run(forms.read_json(client.receive))
    assert client.num_bytes <= 65536 + 8192


# --- kinds


def volume_bytes(*, gz):
    volume = Volume(array=np.zeros((3, 4, 5), np.int16), affine_lps=np.eye(4))
    return b"".join(bytes(piece) for piece in nifti_pieces(volume, gz=gz))


def zip_bytes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.dcm", b"x")
    return buffer.getvalue()


ELEMENT = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0" * 128 + b"DICM" + ELEMENT, "dicom"),
        (b"MZ" + b"\0" * 126 + b"DICM", "dicom"),
        (ELEMENT, "dicom"),
        (b"\x08\x00\x05\x00\x0a\x00\x00\x00ISO_IR 100", "dicom"),
        (PNG, "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (zip_bytes(), "zip"),
        (b"PK\x05\x06" + b"\0" * 18, "zip"),
        (volume_bytes(gz=False), "nifti"),
        (volume_bytes(gz=True)[:4096], "nifti"),
        (volume_bytes(gz=True)[:15], "nifti"),
        (b"\x1f\x8b" + b"\xff" * 50, "nifti"),
        (b"NRRD0005\n", "nrrd"),
        (b"ObjectType = Image\nNDims = 3\n", "mha"),
    ],
)
def test_kinds_are_told_from_bytes(head, kind):
    assert sniff(head) == kind


@pytest.mark.parametrize(
    "head",
    # mtime=0: the processes of a test run must see the same cases.
    [b"", b"a", b"GIF89a", b"%PDF-1.7", b"hello world, this is text", b"\x89PNX", b"\0" * 4096,
     gzip.compress(b"a tar file" * 200, mtime=0), b"PK\x07\x08", b"<html>", b"DICM"],
)  # fmt: skip
def test_everything_else_is_not_taken(head):
    with pytest.raises(ProblemError) as caught:
        sniff(head)
    assert (caught.value.reason, caught.value.status) == ("unsupported_type", 415)


@_FUZZ
@given(st.binary(max_size=300))
def test_sniffing_never_breaks(head):
    for start in (b"", b"\x1f\x8b\x08", b"\x5c\x01\x00\x00", PNG[:8], b"PK\x03\x04", b"NRRD0"):
        try:
            assert sniff(start + head)
        except ProblemError as error:
            assert error.reason == "unsupported_type"


def test_a_suffix_is_kept_only_if_it_is_known():
    names = {"a.nii.gz": ".nii.gz", "A.NII": ".nii", "x/y.dcm": ".dcm", "scan.mueller": "",
             "1.2.840.113": "", "": "", "dcm": "", "jane.zip\0": "", ".png": ".png"}  # fmt: skip
    assert {name: known_suffix(name) for name in names} == names
