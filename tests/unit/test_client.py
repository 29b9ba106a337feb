"""The client against a server that breaks, refuses, delays and counts."""

import hashlib
import io
import json
import logging
import pickle
import threading
import time
import zipfile
from email.utils import format_datetime

import pytest

from medray.client import Client, ClientError, Retries, session
from medray.client.upload import upload_of
from medray.errors import ConfigError
from medray.phantoms.series import known_volume, write_ct_series
from tests.stub_server import KEY, MODELS, answer, dying_connections, result, stub_server

QUICK = Retries(base_s=0.001, cap_s=0.01)


@pytest.fixture
def stub():
    with stub_server() as running:
        running.bodies["application/json"] = answer(result(volume_ml=12.5))
        yield running


@pytest.fixture
def client(stub):
    with Client(stub.url, KEY, retries=QUICK, timeout_s=20) as opened:
        yield opened


@pytest.fixture
def waits(monkeypatch):
    """Note how long would be waited, and do not."""
    noted = []
    monkeypatch.setattr(session.time, "sleep", noted.append)
    return noted


@pytest.fixture
def folder(tmp_path):
    write_ct_series(tmp_path / "series" / "Doe^Jane", known_volume((4, 16, 16)))
    (tmp_path / "series" / "notes.txt").write_text("no image")
    return tmp_path / "series"


def test_models_are_those_of_the_server(client):
    assert client.models() == MODELS


def test_a_file_goes_as_it_is_under_a_name_that_tells_nothing(client, stub, tmp_path):
    path = tmp_path / "Doe^Jane.nii.gz"
    path.write_bytes(b"\x1f\x8b" + bytes(range(256)) * 5000)
    found = client.predict(path, "pancreas")
    assert stub.files == [path.read_bytes()]
    assert found.results[0]["volume_ml"] == 12.5
    with upload_of(path, {}) as body:
        sent = b"".join(body.chunks())
        assert b'filename="upload.nii.gz"' in sent
        assert b"Doe" not in sent
        assert len(sent) == body.length


@pytest.mark.parametrize(
    ("content", "suffix"),
    [(b"PK\x03\x04", ".zip"), (b"\x89PNG\r\n", ".png"), (b"\xff\xd8\xff\xe0", ".jpg"),
     (bytes(128) + b"DICM", ".dcm"), (b"\x5c\x01\x00\x00", ".nii"), (b"anything", ".dcm")],
)  # fmt: skip
def test_the_name_follows_the_bytes(content, suffix):
    with upload_of(content, {}) as body:
        assert f'filename="upload{suffix}"'.encode() in body.head


def test_a_folder_is_stored_in_an_archive_that_is_always_the_same(client, stub, folder):
    client.predict(folder, "pancreas")
    client.predict(str(folder), "pancreas")
    assert stub.files[0] == stub.files[1]
    with zipfile.ZipFile(io.BytesIO(stub.files[0])) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{n:06d}.dcm" for n in range(1, 5)]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        content = {archive.read(name) for name in archive.namelist()}
    assert content == {path.read_bytes() for path in folder.rglob("*.dcm")}


def test_an_upload_is_not_held_in_memory(client, stub, tmp_path):
    import tracemalloc

    path = tmp_path / "large.nii"
    path.write_bytes(b"\x5c\x01\x00\x00" + bytes(40_000_000))
    with upload_of(path, {}) as body:
        tracemalloc.start()
        total = sum(len(chunk) for chunk in body.chunks())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert total == body.length
    assert peak < 4_000_000


def test_a_uri_is_sent_as_a_document(stub):
    with upload_of("s3://bucket/series", {"model": "pancreas"}) as body:
        assert body.content_type == "application/json"
        assert json.loads(body.head) == {"model": "pancreas", "uri": "s3://bucket/series"}


def test_what_cannot_be_read_is_said_before_anything_is_sent(client, stub, tmp_path):
    (tmp_path / "empty").mkdir()
    for source, why in [
        (tmp_path / "none.dcm", "No such file"),
        (tmp_path / "empty", "no DICOM file"),
        (b"", "empty"),
    ]:
        with pytest.raises(ConfigError, match=why):
            client.predict(source, "pancreas")
    assert stub.files == []


def test_a_model_must_be_named_where_there_are_several(client):
    with pytest.raises(ConfigError, match="lung-boxes, pancreas"):
        client.predict(b"data")


def test_the_only_model_needs_no_name(client, monkeypatch):
    monkeypatch.setattr(Client, "models", lambda self: MODELS[:1])
    assert client.predict(b"data").model == "pancreas"


def test_broken_connections_are_tried_again_with_the_same_identity(stub):
    dying = dying_connections(stub.url, 3, after_bytes=100)
    with dying as url, Client(url, KEY, retries=QUICK) as client:
        found = client.predict(b"data" * 100_000, "pancreas")
    assert found.results[0]["status"] == "complete"
    assert len(stub.files) == 1


def test_a_server_that_stays_dead_is_an_error_in_the_end(stub, waits):
    broken = pytest.raises(ClientError, match="the connection broke|cannot be reached")
    with dying_connections(stub.url, 99) as url, Client(url, KEY) as client, broken as caught:
        client.predict(b"data", "pancreas")
    assert caught.value.status == 0
    assert caught.value.reason == "connection"
    assert len(waits) == Retries().attempts - 1
    assert all(b > a for a, b in zip(waits[:3], waits[2:], strict=False))


def test_nobody_listening_is_an_error_in_the_end(waits):
    unreached = pytest.raises(ClientError, match="cannot be reached")
    with Client("http://127.0.0.1:9", KEY) as client, unreached:
        client.models()
    assert len(waits) == Retries().attempts - 1


def test_a_kept_connection_that_the_server_closed_costs_no_attempt(stub):
    once = Retries(attempts=1)
    with Client(stub.url, KEY, retries=once) as client:
        client.models()
        client._wire._own.connection.sock.shutdown(2)
        assert client.models() == MODELS


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(client, stub, waits, status):
    stub.failures.extend([(status, {}, {})] * 2)
    client.predict(b"data", "pancreas")
    assert len(waits) == 2
    assert len({seen["key"] for seen in stub.seen}) == 1


def test_retry_after_is_kept(stub, waits):
    stub.failures.extend([(429, {"Retry_After": "7"}, {}), (503, {"Retry_After": "11"}, {})])
    with Client(stub.url, KEY) as client:
        client.predict(b"data", "pancreas")
    assert 7 <= waits[0] < 8
    assert 11 <= waits[1] < 13


def test_retry_after_may_be_a_date_or_nonsense(stub, waits):
    from datetime import UTC, datetime, timedelta

    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    stub.failures.extend([(503, {"Retry_After": date}, {}), (503, {"Retry_After": "soon"}, {})])
    with Client(stub.url, KEY) as client:
        client.predict(b"data", "pancreas")
    assert 25 < waits[0] < 32
    assert waits[1] <= 1


def test_a_server_that_asks_for_an_hour_is_not_waited_for(stub, waits):
    stub.failures.append((503, {"Retry_After": "3600"}, {"reason": "model_missing"}))
    with Client(stub.url, KEY) as client, pytest.raises(ClientError) as caught:
        client.predict(b"data", "pancreas")
    assert caught.value.retry_after_s == 3600
    assert waits == []


@pytest.mark.parametrize(
    ("status", "reason"),
    [(403, "uri_not_allowed"), (413, "too_large"), (415, "unsupported_type"), (422, "no_geometry"),
     (500, "internal")],
)  # fmt: skip
def test_what_will_not_pass_is_tried_once(client, stub, waits, status, reason):
    stub.failures.append((status, {}, {"reason": reason, "detail": "one sentence"}))
    with pytest.raises(ClientError, match="one sentence") as caught:
        client.predict(b"data", "pancreas")
    error = caught.value
    assert (error.status, error.reason, error.request_id) == (status, reason, "req-1")
    assert waits == []
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reason) == (str(error), reason)


def test_a_refusal_in_the_middle_of_an_upload_is_read(stub, tmp_path):
    """The server answers 403 and closes; the client must not see a broken pipe instead."""
    path = tmp_path / "large.nii"
    path.write_bytes(b"\x5c\x01\x00\x00" + bytes(30_000_000))
    with Client(stub.url, "wrong", retries=QUICK) as client:
        for _ in range(3):
            with pytest.raises(ClientError) as caught:
                client.predict(path, "pancreas")
            assert (caught.value.status, caught.value.reason) == (403, "auth_wrong")


def test_a_silent_server_is_a_timeout_and_not_asked_again(stub):
    stub.delay_s = 5
    with Client(stub.url, KEY, timeout_s=0.3, retries=QUICK) as client:
        began = time.monotonic()
        with pytest.raises(ClientError, match=r"no answer within 0\.3 s") as caught:
            client.predict(b"data", "pancreas")
    assert caught.value.reason == "timeout"
    assert time.monotonic() - began < 3
    assert len(stub.files) == 1


def test_slow_answers_are_waited_for(client, stub):
    stub.delay_s = 1.0
    assert client.predict(b"data", "pancreas").results


def test_the_key_of_an_upload_is_of_model_and_content(client, stub, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"data")
    client.predict(b"data", "pancreas")
    client.predict(path, "pancreas")
    client.submit(b"data", "pancreas")
    client.predict(b"data", "lung-boxes")
    client.predict(b"data2", "pancreas")
    keys = [seen["key"] for seen in stub.seen]
    digest = hashlib.sha256(b"data").hexdigest()
    assert keys[0] == hashlib.sha256(f"pancreas\0{digest}".encode()).hexdigest()
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 3


def test_a_job_is_followed_to_its_end(client, stub, waits):
    stub.num_polls = 4
    job = client.submit(b"data", "pancreas")
    seen = []
    assert job.wait(timeout_s=60, on_progress=seen.append) is job
    assert [state["state"] for state in seen] == ["running"] * 3 + ["done"]
    assert [state["progress"] for state in seen] == [0.25, 0.5, 0.75, 1.0]
    assert job.result().results[0]["volume_ml"] == 12.5
    assert client.submit(b"data", "pancreas").id == job.id
    assert waits == sorted(waits)


def test_a_job_that_fails_gives_its_reason(client, stub):
    stub.job_failure = "too_few_slices"
    with pytest.raises(ClientError) as caught:
        client.submit(b"data", "pancreas").wait()
    assert caught.value.reason == "too_few_slices"


def test_waiting_ends_and_the_job_goes_on(client, stub):
    stub.num_polls = 10_000
    job = client.submit(b"data", "pancreas")
    with pytest.raises(ClientError, match=r"not done after 0\.5 s") as caught:
        job.wait(timeout_s=0.5)
    assert caught.value.reason == "timeout"
    assert job.state()["state"] == "running"


def test_all_forms_are_saved_and_missing_ones_left_out(client, stub, tmp_path):
    stub.bodies |= {"application/gzip": b"nifti", "image/png": b"png"}
    found = client.save(client.predict(b"data", "pancreas"), tmp_path / "out")
    assert set(found) == {"json", "nifti", "png"}
    assert found["nifti"] == tmp_path / "out" / "prediction.nii.gz"
    assert found["nifti"].read_bytes() == b"nifti"
    assert json.loads(found["json"].read_bytes())["results"][0]["volume_ml"] == 12.5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "prediction.json", "prediction.nii.gz", "preview.png",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="forms are json, nifti, seg, png, got tiff"):
        client.save(client.predict(b"data", "pancreas"), tmp_path, forms=("tiff",))


@pytest.mark.parametrize("job_forms", [True, False])
def test_forms_of_a_job_need_no_second_upload_where_the_server_has_them(
    client, stub, tmp_path, waits, job_forms
):
    stub.job_forms = job_forms
    stub.bodies["application/gzip"] = b"nifti"
    job = client.submit(b"data", "pancreas").wait()
    found = client.save(job.result(), tmp_path, forms=("json", "nifti"))
    assert found["nifti"].read_bytes() == b"nifti"
    assert len(stub.files) == (1 if job_forms else 2)


def test_one_client_serves_many_threads(client, stub):
    errors = []

    def ask(number: int) -> None:
        try:
            for _ in range(5):
                client.predict(bytes([number]) * 1000, "pancreas")
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(stub.files) == 40
    assert sorted(stub.files) == sorted(bytes([n]) * 1000 for n in range(8) for _ in range(5))


def test_the_key_is_in_no_text(stub, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "medray-secret-0123456789"
    client = Client(stub.url, secret, retries=QUICK)
    texts = [repr(client), str(client)]
    for call in (client.models, lambda: client.predict(b"data", "pancreas")):
        with pytest.raises(ClientError) as caught:
            call()
        texts += [str(caught.value), repr(caught.value)]
    for bad in (f"{secret}\n", f"{secret} x", f"{secret}\u00e9"):
        with pytest.raises(ConfigError, match="no key has") as refused:
            Client(stub.url, bad)
        texts += [str(refused.value), repr(refused.value.__context__)]
    with dying_connections(stub.url, 99) as url:
        with pytest.raises(ClientError) as caught:
            Client(url, secret, retries=QUICK).models()
        texts.append(repr(caught.value.__cause__))
    assert "403 auth_wrong" in texts[2]
    assert "attempt 1 failed" in caplog.text
    assert secret not in "".join(texts) + caplog.text


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "http://user:pass@host", "http://h/?a=b"]
)
def test_an_address_that_cannot_be_one_is_refused(url):
    with pytest.raises(ConfigError, match="the server's address"):
        Client(url, KEY)


def test_an_open_network_without_tls_is_warned_of(caplog):
    Client("http://host.example:8000", KEY)
    assert "without TLS" in caplog.text


def test_importing_it_needs_no_heavy_library():
    import subprocess
    import sys

    script = (
        "import sys, medray.client; "
        "print(sorted({'torch', 'ray', 'numpy', 'pydicom', 'pyarrow'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
