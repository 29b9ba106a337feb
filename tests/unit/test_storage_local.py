"""Local files: listing, reading, atomic commits, the lock."""

import errno
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest

from medray import storage
from medray.errors import ConfigError, DataError
from medray.storage import local, retry
from medray.storage.uri import TEMP_SUFFIX


def names(uri):
    return [os.path.relpath(entry.uri, uri) for entry in storage.list_files(uri)]


def make(root, *paths):
    for path in paths:
        where = root / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(path.encode())


# --- URIs


@pytest.mark.parametrize(
    ("uri", "tail", "expected"),
    [
        ("/data", ["a.dcm"], "/data/a.dcm"),
        ("/data/", ["a", "b.dcm"], "/data/a/b.dcm"),
        ("data", ["/etc/passwd"], "data/etc/passwd"),
        ("file:///data", ["a"], "/data/a"),
        ("s3://bucket/p", ["a"], "s3://bucket/p/a"),
        ("s3://bucket", ["a", "b"], "s3://bucket/a/b"),
        ("/data/set.zip", ["a.dcm"], "zip://a.dcm::/data/set.zip"),
        ("zip://f::s3://b/set.zip", ["a.dcm"], "zip://f/a.dcm::s3://b/set.zip"),
        ("/data", [], "/data"),
    ],
)
def test_join(uri, tail, expected):
    assert storage.join(uri, *tail) == expected


def test_normalise_gives_one_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("a/../b/") == str(tmp_path / "b")
    assert storage.normalise(f"file://{tmp_path}/b") == str(tmp_path / "b")
    assert storage.normalise("s3a://bucket/p/") == "s3://bucket/p"
    assert storage.normalise("zip://m.dcm::x.zip") == f"zip://m.dcm::{tmp_path}/x.zip"
    assert storage.normalise("zip://::x.zip") == f"{tmp_path}/x.zip"
    local_uris = {"x/y": True, "file:///x": True, "s3://x": False, "zip://a::b.zip": False}
    assert {uri: storage.is_local(uri) for uri in local_uris} == local_uris


@pytest.mark.parametrize("uri", ["zip://a.dcm", "zip://a::", "zip://a::zip://b.zip::c.zip"])
def test_zip_uri_needs_one_archive(uri):
    with pytest.raises(ConfigError, match=r"a zip URI is zip://member::archive\.zip"):
        storage.read_bytes(uri)


def test_unknown_protocol_is_a_usage_error():
    with pytest.raises(ConfigError, match="the protocol nosuch:// is unknown"):
        storage.read_bytes("nosuch://a/b")


def test_writing_into_an_archive_is_a_usage_error(tmp_path):
    with pytest.raises(ConfigError, match="a zip archive can only be read"):
        storage.write_atomic(f"zip://a::{tmp_path}/x.zip", b"")
    with pytest.raises(ConfigError, match="unpack the archive first"):
        storage.open_filesystem(f"zip://a::{tmp_path}/x.zip")


def test_open_filesystem_gives_one_per_process(tmp_path):
    first, path = storage.open_filesystem(str(tmp_path / "a"))
    second, _ = storage.open_filesystem(f"file://{tmp_path}")
    assert first is second
    assert path == str(tmp_path / "a")
    storage.write_atomic(path, b"x")
    assert first.cat_file(path) == b"x"


# --- listing


def test_listing_is_ordered_like_an_object_store(tmp_path):
    make(tmp_path, "b/2", "b/1", "a.dcm", "b.dcm", "b-1/x", "c/d/e/f")
    expected = ["a.dcm", "b-1/x", "b.dcm", "b/1", "b/2", "c/d/e/f"]
    assert names(str(tmp_path)) == expected == sorted(expected)


def test_listing_names_size_and_mtime(tmp_path):
    make(tmp_path, "a")
    (entry,) = storage.list_files(str(tmp_path / "a"))
    info = (tmp_path / "a").stat()
    assert entry == storage.FileEntry(str(tmp_path / "a"), 1, str(info.st_mtime_ns))
    assert storage.stat(str(tmp_path / "a")) == entry


def test_listing_leaves_out_our_own_files(tmp_path):
    make(tmp_path, "a", ".medray-lock", "d/.a.0123.medray-tmp", ".hidden", "x.medray-tmp")
    assert names(str(tmp_path)) == [".hidden", "a", "x.medray-tmp"]


def test_listing_follows_links_but_no_loop(tmp_path):
    make(tmp_path, "root/a/file", "else/where")
    (tmp_path / "root/a/loop").symlink_to(tmp_path / "root")
    (tmp_path / "root/self").symlink_to(".")
    (tmp_path / "root/link").symlink_to(tmp_path / "else")
    (tmp_path / "root/one").symlink_to(tmp_path / "root/a/file")
    assert names(str(tmp_path / "root")) == ["a/file", "link/where", "one"]


def test_listing_names_what_cannot_be_opened(tmp_path):
    make(tmp_path, "a")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / os.fsdecode(b"bad\xff")).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    entries = {os.path.basename(entry.uri): entry for entry in storage.list_files(str(tmp_path))}
    assert set(entries) == {"a", "gone", "bad\\udcff"}
    assert entries["a"].error is None
    assert entries["gone"].error.reason == "source_unavailable"
    assert "UTF-8" in entries["bad\\udcff"].error.detail
    with pytest.raises(DataError, match="no regular file"):
        storage.read_bytes(str(tmp_path / "pipe"))


def test_listing_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="source_unavailable"):
        list(storage.list_files(str(tmp_path / "nothing")))


def test_listing_streams_with_flat_memory(tmp_path):
    """20,000 files in folders of 1,000: the peak is one folder's names, not all entries."""
    for folder in range(20):
        (tmp_path / f"{folder:02d}").mkdir()
        for number in range(1000):
            path = tmp_path / f"{folder:02d}" / f"{number:04d}.dcm"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    tracemalloc.start()
    count = sum(1 for _ in storage.list_files(str(tmp_path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 1 << 20


# --- reading


def test_read_bytes_checks_what_is_known(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    digest = hashlib.sha256(b"0123456789").hexdigest()
    assert storage.read_bytes(str(path), expected_bytes=10, max_bytes=10, sha256=digest)
    assert storage.read_bytes(f"file://{path}") == b"0123456789"
    assert storage.sha256_of(str(path)) == digest
    for arguments, reason in [
        ({"expected_bytes": 11}, "truncated"),
        ({"expected_bytes": 9}, "checksum_mismatch"),
        ({"sha256": "0" * 64}, "checksum_mismatch"),
        ({"max_bytes": 9}, "too_large"),
    ]:
        with pytest.raises(DataError) as caught:
            storage.read_bytes(str(path), **arguments)
        assert caught.value.reason == reason
        assert str(tmp_path) not in str(caught.value)


def test_read_range_is_a_slice(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    for start, stop in [(0, 0), (0, 4), (3, 7), (8, 20), (20, 30)]:
        assert storage.read_range(str(path), start, stop) == b"0123456789"[start:stop]
    with pytest.raises(ValueError, match="0 <= start <= stop"):
        storage.read_range(str(path), 4, 3)


@pytest.mark.parametrize("name", ["nothing", "folder", "nothing/below", "zero\0"])
def test_reading_what_is_not_there(tmp_path, name):
    (tmp_path / "folder").mkdir()
    for read in (storage.read_bytes, storage.sha256_of, storage.open_local):
        with pytest.raises(DataError, match="source_unavailable"):
            read(str(tmp_path / name))
    assert storage.exists(str(tmp_path / name)) is (name == "folder")


def test_open_local_is_for_local_files(tmp_path):
    make(tmp_path, "a")
    with storage.open_local(str(tmp_path / "a")) as file:
        assert file.read() == b"a"
    assert storage.open_local("s3://bucket/a") is None
    assert storage.open_local(f"zip://a::{tmp_path}/a.zip") is None


def test_a_passing_disk_error_is_tried_again(tmp_path, monkeypatch):
    make(tmp_path, "a")
    monkeypatch.setattr(retry, "POLICY", retry.RetryPolicy(base_s=0.001))
    real, calls = os.open, []

    def flaky(path, *arguments, **more):
        calls.append(path)
        if len(calls) < 5:
            raise OSError(errno.ESTALE, "stale")
        return real(path, *arguments, **more)

    monkeypatch.setattr(local.os, "open", flaky)
    assert storage.read_bytes(str(tmp_path / "a")) == b"a"
    assert len(calls) == 5
    calls.clear()
    monkeypatch.setattr(retry, "POLICY", retry.RetryPolicy(base_s=0.001, attempts=4))
    with pytest.raises(DataError, match=r"ESTALE.*the last of 4 attempts"):
        storage.read_bytes(str(tmp_path / "a"))


def test_retry_policy_is_checked():
    with pytest.raises(ValueError, match="attempts must be >= 1"):
        retry.RetryPolicy(attempts=0)


# --- commits


@pytest.mark.parametrize("kind", ["bytes", "pieces", "function"])
def test_write_atomic_takes_any_payload(tmp_path, kind):
    payload = {
        "bytes": b"abc" * 1000,
        "pieces": (b"abc" for _ in range(1000)),
        "function": lambda file: [file.write(b"abc") for _ in range(1000)],
    }[kind]
    path = tmp_path / "deep" / "er" / "x.bin"
    receipt = storage.write_atomic(str(path), payload)
    assert path.read_bytes() == b"abc" * 1000
    assert receipt == storage.WriteReceipt(3000, hashlib.sha256(b"abc" * 1000).hexdigest())
    assert os.listdir(path.parent) == ["x.bin"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_write_atomic_hashes_what_gzip_writes_and_closes(tmp_path):
    import gzip

    def write(file):
        with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
            packed.write(b"x" * 5_000_000)
        file.close()

    receipt = storage.write_atomic(str(tmp_path / "x.gz"), write)
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == b"x" * 5_000_000
    assert receipt.sha256 == storage.sha256_of(str(tmp_path / "x.gz"))


def test_a_payload_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fails(file):
        file.write(b"new" * 100_000)
        raise FileNotFoundError("my own trouble")

    with pytest.raises(FileNotFoundError, match="my own trouble"):
        storage.write_atomic(str(path), fails)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_create_exclusive_is_won_once(tmp_path):
    path = str(tmp_path / "sub" / "x")
    start = threading.Barrier(8)
    won = []

    def race(number):
        start.wait()
        if storage.create_exclusive(path, b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes(path) == b"%d" % won[0]
    assert os.listdir(tmp_path / "sub") == ["x"]


def test_create_exclusive_without_hard_links(tmp_path, monkeypatch):
    def no_link(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(local.os, "link", no_link)
    path = tmp_path / "x"
    assert storage.create_exclusive(str(path), b"1") is True
    assert storage.create_exclusive(str(path), b"2") is False
    assert path.read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["x"]


def test_remove_is_idempotent(tmp_path):
    make(tmp_path, "a")
    storage.remove(str(tmp_path / "a"))
    storage.remove(str(tmp_path / "a"))
    assert not storage.exists(str(tmp_path / "a"))
    with pytest.raises(DataError, match="sink_denied"):
        storage.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "sink_full"),
        (errno.EDQUOT, "sink_full"),
        (errno.EFBIG, "sink_full"),
        (errno.EACCES, "sink_denied"),
        (errno.EROFS, "sink_denied"),
        (errno.EIO, "sink_denied"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_an_output_that_refuses(tmp_path, monkeypatch, code, reason, call):
    make(tmp_path, "x")

    def refuse(*_, **__):
        raise OSError(code, "no")

    monkeypatch.setattr(local.os, call, refuse)
    for payload in (b"new", [b"n", b"ew"], lambda file: file.write(b"new")):
        with pytest.raises(DataError, match=errno.errorcode[code]) as caught:
            storage.write_atomic(str(tmp_path / "x"), payload)
        assert caught.value.reason == reason
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"x"


def test_a_file_in_the_way_of_a_folder_is_denied(tmp_path):
    make(tmp_path, "a")
    with pytest.raises(DataError, match="sink_denied"):
        storage.write_atomic(str(tmp_path / "a" / "b"), b"")


_LIMITED_WRITER = """
import resource, signal, sys
from medray import storage
from medray.errors import DataError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for payload in (b"x" * 200_000, (b"x" * 1000 for _ in range(200)),
                lambda file: [file.write(b"x" * 1000) for _ in range(200)]):
    try:
        storage.write_atomic(sys.argv[1] + "/big", payload)
    except DataError as error:
        print(error.reason)
storage.write_atomic(sys.argv[1] + "/small", b"y")
"""


def test_a_full_disk_is_sink_full_and_leaves_nothing(tmp_path):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED_WRITER, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["sink_full"] * 3
    assert os.listdir(tmp_path) == ["small"]


_KILLED_WRITER = """
import hashlib, os, sys
from medray import storage
number = 0
print("ready", flush=True)
while True:
    data = os.urandom(1 << 20)
    name = hashlib.sha256(data).hexdigest()
    pieces = [data[i : i + 65536] for i in range(0, len(data), 65536)]
    storage.write_atomic(f"{sys.argv[1]}/{name}", pieces if number % 2 else data)
    number += 1
"""


def _stop_in_mid_write(writer, folder):
    """Halt a process while a temporary file of its lies there, and not a moment later."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        writer.send_signal(signal.SIGSTOP)
        # a signal is delivered soon, not at once
        time.sleep(0.002)
        if any(name.endswith(TEMP_SUFFIX) for name in os.listdir(folder)):
            return
        writer.send_signal(signal.SIGCONT)
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_writer_leaves_no_partial_file(tmp_path):
    chance = random.Random(1)
    seen = temps = 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", _KILLED_WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.02, 0.25))
        _stop_in_mid_write(writer, tmp_path)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for entry in storage.list_files(str(tmp_path)):
            assert storage.sha256_of(entry.uri) == os.path.basename(entry.uri)
            seen += 1
        present = [name for name in os.listdir(tmp_path) if name.endswith(TEMP_SUFFIX)]
        temps += len(present)
        assert storage.sweep_temps(str(tmp_path)) == len(present)
    assert seen > 0
    assert temps == 8, "a kill came between two writes"


def test_sweep_takes_only_our_temporary_files(tmp_path):
    make(tmp_path, "a/.x.12.medray-tmp", ".y.medray-tmp", "z.medray-tmp", "a/b")
    (tmp_path / "outside").mkdir()
    make(tmp_path / "outside", ".t.medray-tmp")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "outside")
    assert storage.sweep_temps(str(tmp_path / "a")) == 1
    assert storage.sweep_temps(str(tmp_path)) == 2
    assert storage.sweep_temps(str(tmp_path / "nothing")) == 0
    assert names(str(tmp_path)) == ["a/b", "z.medray-tmp"]


# --- the lock


def test_second_writer_is_refused(tmp_path):
    out = str(tmp_path / "out")
    with storage.OutputLock(out) as lock:
        assert lock.is_held()
        with pytest.raises(ConfigError, match=r"another run is writing to .*; wait .*--out"):
            storage.OutputLock(out).__enter__()
        assert list(storage.list_files(out)) == []
    assert not lock.is_held()
    with storage.OutputLock(out):
        pass
    assert os.listdir(out) == []


_LOCK_HOLDER = """
import sys, time
from medray import storage
with storage.OutputLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.chaos
def test_the_lock_of_a_killed_run_is_free(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", _LOCK_HOLDER, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match="another run is writing"):
        storage.OutputLock(str(tmp_path)).__enter__()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with storage.OutputLock(str(tmp_path)):
        pass


def test_many_lockers_one_at_a_time(tmp_path):
    inside, overlaps, turns = [], [], []

    def work():
        for _ in range(30):
            try:
                with storage.OutputLock(str(tmp_path)):
                    inside.append(1)
                    overlaps.append(len(inside))
                    time.sleep(0.0005)
                    inside.pop()
                    turns.append(1)
            except ConfigError:
                time.sleep(0.0005)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns
    assert set(overlaps) == {1}


def test_lock_in_a_place_that_cannot_be_written(tmp_path):
    make(tmp_path, "a")
    with pytest.raises(DataError, match="sink_denied"):
        storage.OutputLock(str(tmp_path / "a" / "out")).__enter__()


# --- any other fsspec filesystem


def test_memory_filesystem_has_the_same_behaviour():
    base = "memory://medray-test-store"
    receipt = storage.write_atomic(f"{base}/b/2.bin", [b"ab", b"c"])
    assert receipt.bytes == 3
    assert storage.create_exclusive(f"{base}/a.bin", b"x") is True
    assert storage.create_exclusive(f"{base}/a.bin", b"y") is False
    storage.write_atomic(f"{base}/.t.1.medray-tmp", b"")
    assert [(e.uri, e.bytes) for e in storage.list_files(base)] == [
        (f"{base}/a.bin", 1), (f"{base}/b/2.bin", 3)
    ]  # fmt: skip
    assert storage.read_bytes(f"{base}/b/2.bin", expected_bytes=3) == b"abc"
    assert storage.read_range(f"{base}/b/2.bin", 1, 9) == b"bc"
    assert storage.sha256_of(f"{base}/b/2.bin") == receipt.sha256
    with storage.OutputLock(base):
        pass
    with pytest.raises(DataError, match="truncated"):
        storage.read_bytes(f"{base}/b/2.bin", expected_bytes=4)
    with pytest.raises(DataError, match="too_large"):
        storage.read_bytes(f"{base}/b/2.bin", max_bytes=2)
    for entry in list(storage.list_files(base)):
        storage.remove(entry.uri)
    storage.remove(f"{base}/a.bin")
    assert not storage.exists(f"{base}/a.bin")
    with pytest.raises(DataError, match="source_unavailable"):
        storage.read_bytes(f"{base}/a.bin")
