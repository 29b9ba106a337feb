"""Object stores: right bytes or a refusal, through a proxy that breaks 30 % of the calls."""

import io
import multiprocessing
import os
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from medray import storage
from medray.errors import ConfigError, DataError
from medray.storage import filesystems, lock, members, retry, s3, s3_client
from tests import faults

pytestmark = pytest.mark.slow

BUCKET = "bucket"


@pytest.fixture(scope="module")
def server():
    with faults.s3_server() as address:
        faults.fill_bucket(BUCKET, {})
        yield address


@pytest.fixture
def s3_env(server, monkeypatch):
    faults.set_s3_environment(monkeypatch, "http://{}:{}".format(*server))
    monkeypatch.setattr(retry, "POLICY", retry.RetryPolicy(base_s=0.01, cap_s=0.05))
    return monkeypatch


@pytest.fixture
def proxied(server, s3_env):
    """Give a function that puts a fault proxy between s3fs and the server."""
    opened = []

    def start(**options):
        proxy = faults.FaultProxy(*server, **options).__enter__()
        opened.append(proxy)
        faults.set_s3_environment(s3_env, proxy.url)
        return proxy

    yield start
    for proxy in opened:
        proxy.__exit__()


def content(number, size=3000):
    return (b"%08d" % number) * (size // 8)


def uri(key):
    return f"s3://{BUCKET}/{key}"


# --- without faults


def test_round_trip(s3_env):
    receipt = storage.write_atomic(uri("rt/a.bin"), [b"abc", b"def"])
    assert receipt == storage.WriteReceipt(6, storage.sha256_of(uri("rt/a.bin")))
    assert storage.read_bytes(uri("rt/a.bin"), expected_bytes=6, sha256=receipt.sha256) == b"abcdef"
    assert storage.read_range(uri("rt/a.bin"), 2, 4) == b"cd"
    assert storage.read_range(uri("rt/a.bin"), 4, 99) == b"ef"
    assert storage.read_range(uri("rt/a.bin"), 50, 99) == b""
    there = {uri("rt"): True, uri("rt/a.bin"): True, uri("rt/a"): False, "s3://none-such/x": False}
    assert {where: storage.exists(where) for where in there} == there
    assert storage.open_local(uri("rt/a.bin")) is None
    filesystem, path = storage.open_filesystem(uri("rt/a.bin"))
    assert filesystem.cat_file(path) == b"abcdef"
    assert storage.sweep_temps(uri("rt")) == 0
    storage.remove(uri("rt/a.bin"))
    storage.remove(uri("rt/a.bin"))
    assert not storage.exists(uri("rt"))


def test_empty_object(s3_env):
    storage.write_atomic(uri("empty"), b"")
    assert storage.read_bytes(uri("empty"), expected_bytes=0) == b""
    assert storage.read_range(uri("empty"), 0, 10) == b""


def test_a_payload_larger_than_the_spool_comes_from_disk(s3_env):
    s3_env.setattr(s3, "_SPOOL_BYTES", 1000)
    receipt = storage.write_atomic(uri("spooled"), (b"x" * 100 for _ in range(50)))
    assert receipt.bytes == 5000
    assert faults.stored_object(BUCKET, "spooled") == b"x" * 5000


def test_listing_pages_in_order(s3_env):
    keys = [f"ls/{n % 7}/{n:04d}.dcm" for n in range(2100)]
    faults.fill_bucket(BUCKET, dict.fromkeys(keys, b"x") | {"ls/folder/": b"", "lsx": b""})
    faults.fill_bucket(BUCKET, {"ls/.medray-lock": b"", "ls/0/.t.1.medray-tmp": b""})
    entries = list(storage.list_files(uri("ls")))
    assert [e.uri for e in entries] == [uri(key) for key in sorted(keys)]
    assert entries[0].bytes == 1
    assert entries[0].stamp == "9dd4e461268c8034f5c8564e155c67a6"
    assert entries[0] == storage.stat(entries[0].uri)
    assert list(storage.list_files(entries[5].uri)) == [entries[5]]
    assert list(storage.list_files(uri("ls/"))) == entries


@pytest.mark.parametrize("missing", ["s3://bucket/nothing", "s3://no-such-bucket/x"])
def test_what_is_not_there(s3_env, missing):
    for read in (
        storage.read_bytes, storage.stat, storage.sha256_of,
        lambda u: storage.read_range(u, 0, 9), lambda u: list(storage.list_files(u)),
    ):  # fmt: skip
        with pytest.raises(DataError, match="source_unavailable"):
            read(missing)


def test_a_bucket_that_is_not_there_takes_nothing(s3_env):
    for write in (storage.write_atomic, storage.create_exclusive):
        with pytest.raises(DataError, match="sink_denied: the bucket of the output does not exist"):
            write("s3://no-such-bucket/x", b"1")


def test_sizes_are_checked(s3_env):
    storage.write_atomic(uri("ten"), b"0123456789")
    for arguments, reason in [
        ({"max_bytes": 9}, "too_large"),
        ({"expected_bytes": 11}, "truncated"),
        ({"expected_bytes": 9}, "checksum_mismatch"),
        ({"sha256": "0" * 64}, "checksum_mismatch"),
    ]:
        with pytest.raises(DataError) as caught:
            storage.read_bytes(uri("ten"), **arguments)
        assert caught.value.reason == reason


def test_no_credentials_is_said_at_once(s3_env):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        s3_env.delenv(name)
    start = time.monotonic()
    with pytest.raises(DataError, match="source_unavailable: there are no credentials"):
        storage.read_bytes(uri("x"))
    with pytest.raises(DataError, match="sink_denied: there are no credentials"):
        storage.write_atomic(uri("x"), b"")
    s3_env.setenv("AWS_PROFILE", "none-such")
    for read in (storage.read_bytes, lambda where: storage.read_range(where, 0, 9)):
        with pytest.raises(DataError, match="source_unavailable: there are no credentials"):
            read(uri("x"))
    assert time.monotonic() - start < 10


def test_a_server_that_is_not_there(s3_env):
    faults.set_s3_environment(s3_env, "http://127.0.0.1:9")
    s3_env.setattr(retry, "POLICY", retry.RetryPolicy(base_s=0.001, attempts=1))
    with pytest.raises(DataError, match="source_unavailable: the connection to the store broke"):
        storage.read_bytes(uri("x"))
    with pytest.raises(DataError, match="sink_denied: the output was not reached"):
        storage.write_atomic(uri("x"), b"")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", s3_client.RefusedError),
        (404, "NoSuchKey", s3_client.MissingError),
        (412, "PreconditionFailed", s3_client.PreconditionError),
        (416, "InvalidRange", s3_client.OutOfRangeError),
        (503, "SlowDown", retry.TransientError),
        (500, "InternalError", retry.TransientError),
        (400, "BadDigest", retry.TransientError),
        (409, "ConditionalRequestConflict", retry.TransientError),
        (400, "InvalidRequest", s3_client.RefusedError),
    ],
)
def test_answers_are_sorted(status, code, kind):
    from botocore.exceptions import ClientError

    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert type(s3_client._sorted_error(ClientError(answer, "GetObject"))) is kind


def test_a_full_store_is_sink_full(s3_env):
    def refuse(*_, **__):
        raise s3_client.RefusedError("the store takes no more bytes", is_full=True)

    s3_env.setattr(s3_client, "put", refuse)
    with pytest.raises(DataError, match="sink_full: the store takes no more bytes"):
        storage.write_atomic(uri("x"), b"")


def test_one_filesystem_for_all_threads_and_a_new_one_after_a_fork(s3_env):
    storage.write_atomic(uri("forked"), b"parent")
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: id(filesystems.filesystem_of("s3")), range(64)))
    assert len(found) == 1
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=lambda: answers.put(storage.read_bytes(uri("forked"))))
    child.start()
    assert answers.get(timeout=30) == b"parent"
    child.join(10)
    assert child.exitcode == 0


def test_multipart_objects_without_md5_are_checked_by_size(s3_env):
    filesystem, _ = storage.open_filesystem(uri(""))
    client_call = filesystem.call_s3
    upload = client_call("create_multipart_upload", Bucket=BUCKET, Key="multi")["UploadId"]
    etag = client_call("upload_part", Bucket=BUCKET, Key="multi", PartNumber=1, UploadId=upload,
                       Body=b"part" * 1000)["ETag"]  # fmt: skip
    client_call("complete_multipart_upload", Bucket=BUCKET, Key="multi", UploadId=upload,
                MultipartUpload={"Parts": [{"ETag": etag, "PartNumber": 1}]})  # fmt: skip
    (entry,) = storage.list_files(uri("multi"))
    assert "-" in entry.stamp
    assert storage.read_bytes(entry.uri, expected_bytes=entry.bytes) == b"part" * 1000


# --- under faults


@pytest.mark.slow
def test_a_thousand_objects_through_broken_calls(proxied):
    """30 % of all calls break: 1,000 of 1,000 right, none silently wrong, bounded attempts."""
    objects = {f"many/{n:04d}.dcm": content(n) for n in range(1000)}
    faults.fill_bucket(BUCKET, objects)
    proxy = proxied(rate=0.3, seed=1)
    start = time.monotonic()
    entries = list(storage.list_files(uri("many")))
    assert [e.uri for e in entries] == [uri(key) for key in sorted(objects)]
    with ThreadPoolExecutor(16) as pool:
        bodies = list(
            pool.map(lambda e: storage.read_bytes(e.uri, expected_bytes=e.bytes), entries)
        )
    seconds = time.monotonic() - start
    wrong = [e.uri for e, body in zip(entries, bodies, strict=True)
             if body != objects[e.uri.removeprefix(uri(""))]]  # fmt: skip
    assert wrong == []
    calls, refused = proxy.calls("GET"), proxy.calls("GET", fault=faults.SLOW_DOWN)
    attempts = {path: calls[path] - refused[path] for path in calls}
    assert len(attempts) == 1000
    assert max(attempts.values()) <= retry.POLICY.attempts
    broken = sum(calls.values()) - sum(proxy.calls("GET", fault=None).values())
    assert 0.25 < broken / sum(calls.values()) < 0.35
    met = proxy.fault_counts()
    assert all(met[kind] > 30 for kind in faults.ALL_FAULTS)
    assert seconds < 40


@pytest.mark.parametrize("kind", [faults.RESET, faults.TRUNCATED, faults.FLIPPED])
def test_a_store_that_always_breaks_is_refused_after_bounded_attempts(proxied, kind):
    faults.fill_bucket(BUCKET, {"always": content(1)})
    proxy = proxied(rate=1.0, faults=(kind,))
    with pytest.raises(DataError) as caught:
        storage.read_bytes(uri("always"), expected_bytes=len(content(1)))
    assert (
        caught.value.reason
        == {
            faults.RESET: "source_unavailable",
            faults.TRUNCATED: "checksum_mismatch",
            faults.FLIPPED: "checksum_mismatch",
        }[kind]
    )
    assert sum(proxy.calls("GET").values()) == retry.POLICY.attempts


def test_a_flipped_byte_in_a_range_or_a_listing_is_seen(proxied):
    faults.fill_bucket(BUCKET, {f"fl/{n:03d}": content(n) for n in range(100)})
    proxy = proxied(rate=0.3, seed=3, faults=(faults.FLIPPED,))
    for number in range(100):
        got = storage.read_range(uri(f"fl/{number:03d}"), 100, 900)
        assert got == content(number)[100:900]
    for _ in range(15):
        names = [e.uri for e in storage.list_files(uri("fl"))]
        assert names == [uri(f"fl/{n:03d}") for n in range(100)]
    assert proxy.fault_counts()[faults.FLIPPED] > 50


def test_listing_under_faults(proxied):
    keys = [f"lf/{n:05d}" for n in range(2300)]
    faults.fill_bucket(BUCKET, dict.fromkeys(keys, b"x"))
    proxy = proxied(rate=0.3, seed=4)
    for _ in range(2):
        assert [e.uri for e in storage.list_files(uri("lf"))] == [uri(key) for key in keys]
    assert sum(proxy.calls("LIST", fault=faults.FLIPPED).values()) > 0


def test_overwrites_under_faults(proxied):
    proxy = proxied(rate=0.3, seed=5)
    for version in range(2):
        with ThreadPoolExecutor(8) as pool:
            names = [uri(f"ow/{n}") for n in range(100)]
            list(pool.map(storage.write_atomic, names, [content(n + version) for n in range(100)]))
        for number in range(100):
            assert faults.stored_object(BUCKET, f"ow/{number}") == content(number + version)
    met = proxy.fault_counts()
    assert all(met[kind] > 0 for kind in faults.ALL_FAULTS)


def test_exclusive_creation_under_faults(proxied):
    """Each of 60 names is won by exactly one of four, though answers are lost on the way."""
    proxy = proxied(rate=0.3, seed=6)

    def race(job):
        number, who = job
        return number, who, storage.create_exclusive(uri(f"ex/{number}"), content(who))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(race, [(n, who) for n in range(60) for who in range(4)]))
    for number in range(60):
        winners = [who for n, who, won in results if n == number and won]
        assert len(winners) == 1
        assert faults.stored_object(BUCKET, f"ex/{number}") == content(winners[0])
    assert sum(proxy.calls("PUT", fault=faults.RESET).values()) > 0


def test_a_write_that_always_arrives_damaged_is_refused(proxied):
    proxied(rate=1.0, faults=(faults.FLIPPED,))
    with pytest.raises(DataError, match="checksum_mismatch: the store received other bytes"):
        storage.write_atomic(uri("damaged"), content(1))


# --- archives


def zip_of(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return out.getvalue()


def test_archive_members_through_broken_calls(proxied):
    files = {f"s/{n:03d}.dcm": os.urandom(2000) for n in range(100)}
    faults.fill_bucket(BUCKET, {"az/set.zip": zip_of(files), "az/z": b"1"})
    proxy = proxied(rate=0.3, seed=7)
    entries = list(storage.list_files(uri("az")))
    names = [f"zip://{name}::{uri('az/set.zip')}" for name in files]
    assert [e.uri for e in entries] == [*names, uri("az/z")]
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda e: storage.read_bytes(e.uri, expected_bytes=e.bytes),
                               entries[:-1]))  # fmt: skip
    assert bodies == list(files.values())
    assert storage.read_range(names[0], 3, 90) == files["s/000.dcm"][3:90]
    assert proxy.fault_counts()[faults.FLIPPED] > 5


def test_an_archive_that_is_replaced_is_opened_anew(s3_env):
    where = f"zip://a::{uri('rp/set.zip')}"
    faults.fill_bucket(BUCKET, {"rp/set.zip": zip_of({"a": b"old"})})
    assert storage.read_bytes(where) == b"old"
    faults.fill_bucket(BUCKET, {"rp/set.zip": zip_of({"b": b"x" * 99, "a": b"new"})})
    assert storage.read_bytes(where) == b"new"


def test_a_damaged_member_of_a_remote_archive_is_refused(s3_env):
    raw = bytearray(zip_of({"a": os.urandom(1000)}))
    raw[500] ^= 1
    faults.fill_bucket(BUCKET, {"dm/set.zip": bytes(raw), "dm/bad.zip": b"rubbish"})
    with pytest.raises(DataError, match=r"checksum_mismatch: .*the last of 8 attempts"):
        storage.read_bytes(f"zip://a::{uri('dm/set.zip')}")
    bad, good = storage.list_files(uri("dm"))
    assert (bad.uri, bad.error.reason) == (uri("dm/bad.zip"), "unreadable")
    assert good.error is None


# --- the lock


def test_second_writer_is_refused(s3_env):
    with storage.OutputLock(uri("out")) as held:
        with pytest.raises(ConfigError, match=r"another run is writing to s3://.*--out"):
            storage.OutputLock(uri("out")).__enter__()
        assert list(storage.list_files("s3://bucket/out/")) == []
        assert held.is_held()
    with storage.OutputLock(uri("out")):
        pass
    assert faults.stored_object(BUCKET, "out/.medray-lock") is None


def test_lock_under_faults_has_one_owner(proxied):
    proxied(rate=0.3, seed=8, operations=("GET", "PUT", "HEAD"),
            faults=(faults.SLOW_DOWN, faults.RESET, faults.FLIPPED))  # fmt: skip
    inside, overlaps, turns = [], [], []
    guard = threading.Lock()

    def work(_):
        for _ in range(5):
            try:
                with storage.OutputLock(uri("lf-out")):
                    with guard:
                        inside.append(1)
                        overlaps.append(len(inside))
                    time.sleep(0.01)
                    with guard:
                        inside.pop()
                        turns.append(1)
            except (ConfigError, DataError):
                time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert turns
    assert set(overlaps) == {1}


def test_a_lock_is_kept_by_its_beat_and_taken_over_without(s3_env):
    s3_env.setattr(lock, "BEAT_S", 0.2)
    s3_env.setattr(lock, "STALE_S", 2.0)
    first = storage.OutputLock(uri("beat"))
    with first:
        deadline = time.monotonic() + 3.5
        while time.monotonic() < deadline:
            with pytest.raises(ConfigError, match="another run is writing"):
                storage.OutputLock(uri("beat")).__enter__()
            time.sleep(0.5)
        # As if the process stood still: no beat, yet it does not know.
        first._held.ended.set()
        first._held.thread.join()
        deadline = time.monotonic() + 10
        while True:
            try:
                second = storage.OutputLock(uri("beat")).__enter__()
                break
            except ConfigError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        with pytest.raises(s3_client.PreconditionError):
            first._held.renew()
    assert second.is_held()
    assert faults.stored_object(BUCKET, "beat/.medray-lock") is not None
    second.__exit__(None, None, None)
    assert faults.stored_object(BUCKET, "beat/.medray-lock") is None


def test_a_lost_lock_is_known(s3_env):
    s3_env.setattr(lock, "BEAT_S", 0.05)
    with storage.OutputLock(uri("lost")) as held:
        storage.remove(uri("lost/.medray-lock"))
        deadline = time.monotonic() + 10
        while held.is_held():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_members_are_forgotten_by_name(s3_env):
    members.forget_archive(uri("never-opened.zip"))
