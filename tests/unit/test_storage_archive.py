"""Zip archives: read by member, judged before any member is read."""

import io
import os
import random
import stat
import struct
import threading
import zipfile
import zlib
from dataclasses import dataclass

import pytest

from medray import storage
from medray.errors import DataError
from medray.storage import archive, members


@dataclass
class Part:
    """One member as it shall stand in the archive; None means: what is right."""

    name: bytes = b"a.dcm"
    data: bytes = b"hello" * 10
    method: int = 8
    flags: int = 0
    external: int = 0
    size: int | None = None
    packed_size: int | None = None
    packed: bytes | None = None
    crc: int | None = None
    offset: int | None = None
    disk: int = 0
    extra: bytes = b""
    local_name: bytes | None = None
    local_method: int | None = None
    local_extra: bytes = b""


def build(*parts, **end):
    """Write an archive byte by byte; `end` overrides fields of the end record."""
    out, directory = bytearray(end.pop("prefix", b"")), bytearray()
    for part in parts:
        packed = part.packed
        if packed is None:
            packed = part.data
            if part.method == 8:
                engine = zlib.compressobj(9, zlib.DEFLATED, -15)
                packed = engine.compress(part.data) + engine.flush()
        size = len(part.data) if part.size is None else part.size
        packed_size = len(packed) if part.packed_size is None else part.packed_size
        crc = zlib.crc32(part.data) if part.crc is None else part.crc
        offset = len(out) if part.offset is None else part.offset
        local_name = part.name if part.local_name is None else part.local_name
        local_method = part.method if part.local_method is None else part.local_method
        out += struct.pack(
            "<4s5H3L2H", b"PK\3\4", 20, part.flags, local_method, 0, 0x21, crc,
            min(packed_size, 0xFFFFFFFF), min(size, 0xFFFFFFFF),
            len(local_name), len(part.local_extra),
        ) + local_name + part.local_extra + packed  # fmt: skip
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, part.flags, part.method, 0, 0x21, crc, packed_size,
            size, len(part.name), len(part.extra), 0, part.disk, 0, part.external, offset,
        ) + part.name + part.extra  # fmt: skip
    directory = end.pop("directory", bytes(directory))
    values = {
        "disk": 0, "first_disk": 0, "here": len(parts), "total": len(parts),
        "size": len(directory), "offset": len(out), "comment": b"", "after": b"",
    } | end  # fmt: skip
    return bytes(out) + directory + struct.pack(
        "<4s4H2LH", b"PK\5\6", values["disk"], values["first_disk"], values["here"],
        values["total"], values["size"], values["offset"], len(values["comment"]),
    ) + values["comment"] + values["after"]  # fmt: skip


def mode(kind):
    return (kind | 0o644) << 16


def quine_of_overlaps(count):
    """Many directory entries that name one and the same packed data (a bomb without nesting)."""
    return build(*(Part(name=b"%d" % n, offset=0) for n in range(count)))


ZEROS = bytes(4 << 20)
SAFE = Part(name=b"good.dcm")

CORPUS = {
    # names
    "parent": ([Part(name=b"../evil")], {}, "unsafe_archive"),
    "parent inside": ([Part(name=b"a/../../evil")], {}, "unsafe_archive"),
    "parent at the end": ([Part(name=b"a/..")], {}, "unsafe_archive"),
    "absolute": ([Part(name=b"/etc/passwd")], {}, "unsafe_archive"),
    "two slashes": ([Part(name=b"//host/share")], {}, "unsafe_archive"),
    "drive": ([Part(name=b"C:/evil")], {}, "unsafe_archive"),
    "drive relative": ([Part(name=b"c:evil")], {}, "unsafe_archive"),
    "backslash": ([Part(name=b"a\\b")], {}, "unsafe_archive"),
    "backslash parent": ([Part(name=b"..\\evil")], {}, "unsafe_archive"),
    "network path": ([Part(name=b"\\\\host\\share")], {}, "unsafe_archive"),
    "zero character": ([Part(name=b"a.dcm\0.txt")], {}, "unsafe_archive"),
    "newline": ([Part(name=b"a\nb")], {}, "unsafe_archive"),
    "empty name": ([Part(name=b"")], {}, "unsafe_archive"),
    "dot": ([Part(name=b".")], {}, "unsafe_archive"),
    "bad utf-8": ([Part(name=b"a\xff", flags=0x800)], {}, "unsafe_archive"),
    "duplicate": ([Part(), Part(data=b"other")], {}, "unsafe_archive"),
    "duplicate by dots": ([Part(name=b"a/b"), Part(name=b"a/./b")], {}, "unsafe_archive"),
    "file and folder": ([Part(name=b"a"), Part(name=b"a/", data=b"")], {}, "unsafe_archive"),
    # kinds
    "symbolic link": ([Part(data=b"/etc/passwd", external=mode(stat.S_IFLNK))], {},
                      "unsafe_archive"),
    "character device": ([Part(external=mode(stat.S_IFCHR))], {}, "unsafe_archive"),
    "block device": ([Part(external=mode(stat.S_IFBLK))], {}, "unsafe_archive"),
    "pipe": ([Part(external=mode(stat.S_IFIFO))], {}, "unsafe_archive"),
    "socket": ([Part(external=mode(stat.S_IFSOCK))], {}, "unsafe_archive"),
    "encrypted": ([Part(flags=1)], {}, "unsafe_archive"),
    "strongly encrypted": ([Part(flags=0x41)], {}, "unsafe_archive"),
    "hidden headers": ([Part(flags=0x2000)], {}, "unsafe_archive"),
    "unknown method": ([Part(method=99, packed=b"x")], {}, "unsafe_archive"),
    # structure
    "overlap": ([Part(), Part(name=b"b", offset=0)], {}, "unsafe_archive"),
    "overlap by size": ([Part(method=0, packed_size=60, size=60), Part(name=b"b")], {},
                        "unsafe_archive"),
    "beyond the directory": ([Part(method=0, size=10_000, packed_size=10_000)], {},
                             "unsafe_archive"),
    "offset outside": ([Part(offset=1 << 30)], {}, "unsafe_archive"),
    "two sizes of a stored one": ([Part(method=0, size=7)], {}, "unsafe_archive"),
    "other disk": ([Part(disk=3)], {}, "unsafe_archive"),
    "split archive": ([Part()], {"disk": 1}, "unsafe_archive"),
    "hidden members": ([Part(), Part(name=b"b")], {"total": 1, "here": 1}, "unsafe_archive"),
    "missing members": ([Part()], {"total": 2, "here": 2}, "unsafe_archive"),
    "bytes after the end": ([Part()], {"after": b"PK"}, "unsafe_archive"),
    "directory outside": ([Part()], {"size": 1 << 30}, "unsafe_archive"),
    "directory later": ([Part()], {"offset": 1 << 20}, "unsafe_archive"),
    "directory of rubbish": ([Part()], {"directory": b"x" * 60}, "unsafe_archive"),
    "directory cut": ([Part()], {"directory": b"PK\1\2" + bytes(30)}, "unsafe_archive"),
    "zip64 sizes missing": ([Part(size=0xFFFFFFFF)], {}, "unsafe_archive"),
    # bombs
    "ratio of a member": ([Part(data=ZEROS)], {}, "bomb_suspected"),
    "ratio declared": ([Part(method=8, packed=b"x" * 100, size=1 << 30)], {}, "bomb_suspected"),
    "ratio of the whole": ([Part(name=b"%d" % n, data=ZEROS[: 1 << 20]) for n in range(4)], {},
                           "bomb_suspected"),
    "total": ([Part(name=b"%d" % n, extra=struct.pack("<HHQQ", 1, 16, 1 << 60, 1 << 60),
                    size=0xFFFFFFFF, packed_size=0xFFFFFFFF) for n in range(2)], {},
              "unsafe_archive"),
}  # fmt: skip


def write(tmp_path, raw, name="x.zip"):
    path = tmp_path / name
    path.write_bytes(raw)
    return str(path)


@pytest.mark.parametrize("name", CORPUS)
def test_one_bad_member_rejects_the_archive(tmp_path, name):
    parts, end, reason = CORPUS[name]
    path = write(tmp_path, build(SAFE, *parts, **{k: v for k, v in end.items() if k != "total"})
                 if "total" not in end else build(SAFE, *parts, **{
                     **end, "total": end["total"] + 1, "here": end["here"] + 1}))  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    (entry,) = storage.list_files(path)
    assert (entry.uri, entry.error.reason) == (path, reason)
    for read in (
        lambda: storage.read_bytes(f"zip://good.dcm::{path}"),
        lambda: storage.read_range(f"zip://good.dcm::{path}", 0, 4),
        lambda: storage.check_archive(path),
        lambda: list(storage.list_files(f"zip://::{path}")),
    ):
        with pytest.raises(DataError) as caught:
            read()
        assert caught.value.reason == reason
        assert "evil" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_corpus_is_as_large_as_promised():
    assert len(CORPUS) >= 30


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Part(crc=1), "checksum_mismatch"),
        (Part(size=49), "checksum_mismatch"),
        (Part(size=51), "truncated"),
        (Part(size=49, crc=zlib.crc32((b"hello" * 10)[:49])), "checksum_mismatch"),
        (Part(packed=b"\xff" * 30), "checksum_mismatch"),
        (Part(packed=zlib.compress(b"hello" * 10)[2:-8]), "truncated"),
        (Part(packed=zlib.compress(b"hello" * 10)[2:-4] + b"more"), "checksum_mismatch"),
        (Part(method=0, crc=1), "checksum_mismatch"),
        (Part(local_name=b"b.dcm"), "unsafe_archive"),
        (Part(local_method=0), "unsafe_archive"),
        (Part(local_extra=b"e" * 60, packed_size=90, packed=b"x" * 40), "unsafe_archive"),
    ],
)
def test_a_member_that_lies_is_refused_when_read(tmp_path, part, reason):
    path = write(tmp_path, build(part, SAFE))
    with pytest.raises(DataError) as caught:
        storage.read_bytes(f"zip://a.dcm::{path}")
    assert caught.value.reason == reason
    assert storage.read_bytes(f"zip://good.dcm::{path}") == SAFE.data


@pytest.mark.slow
def test_a_member_cannot_grow_beyond_what_it_declares(tmp_path):
    """500 MB of zeros behind a declared size of 1,000 bytes: inflated up to 1,001."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(engine.compress(ZEROS) for _ in range(125)) + engine.flush()
    path = write(tmp_path, build(Part(packed=packed, size=1000)))
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(DataError, match=r"checksum_mismatch: .*more bytes than it declares"):
        storage.read_bytes(f"zip://a.dcm::{path}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 100, b"\xff" * 70_000])
def test_what_is_no_archive(tmp_path, content):
    (entry,) = storage.list_files(write(tmp_path, content))
    assert entry.error.reason == ("unreadable" if content else "empty_file")


def test_every_cut_of_an_archive_is_refused(tmp_path):
    raw = build(Part(), Part(name=b"b", data=os.urandom(300)))
    for length in range(len(raw)):
        (entry,) = storage.list_files(write(tmp_path, raw[:length], f"{length}.zip"))
        assert entry.error is not None


@pytest.mark.slow
def test_no_flipped_bit_goes_unseen(tmp_path):
    """Every single-bit flip: refused, or all members as they were, by name and content."""
    parts = [Part(name=b"a", data=b"first"), Part(name=b"b", data=os.urandom(40), method=0)]
    raw = build(*parts)
    right = {f"zip://{p.name.decode()}::": p.data for p in parts}
    wrong = 0
    for place in range(len(raw) * 8):
        broken = bytearray(raw)
        broken[place // 8] ^= 1 << place % 8
        path = write(tmp_path, bytes(broken), "flip.zip")
        members.forget_archive(path)
        try:
            got = {e.uri.removesuffix(path): storage.read_bytes(e.uri)
                   for e in storage.list_files(path) if e.error is None}  # fmt: skip
        except DataError:
            continue
        wrong += bool(got) and got != right
    assert wrong == 0


# --- good archives


def zipped(files, **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", [b"", b"#!/bin/sh\n" * 5])
@pytest.mark.parametrize("comment", [b"", b"a comment PK\x05\x06 inside", b"c" * 65_535])
def test_archives_of_another_writer(tmp_path, method, prefix, comment):
    chance = random.Random(5)
    files = {f"d{n % 3}/ü{n}.dcm": chance.randbytes(n * 37) * 2 for n in range(30)}
    raw = zipped(files, compression=method)
    raw = prefix + raw[:-2] + struct.pack("<H", len(comment)) + comment
    path = write(tmp_path, raw)
    entries = list(storage.list_files(path))
    if b"PK\x05\x06" in comment:
        # Two places could be the end record; another reader might take the other one.
        assert entries[0].error.reason in ("unsafe_archive", "truncated", "unreadable")
        return
    assert [e.uri for e in entries] == [f"zip://{name}::{path}" for name in sorted(files)]
    for entry in entries:
        name = entry.uri[6:].partition("::")[0]
        data = storage.read_bytes(entry.uri, expected_bytes=entry.bytes, max_bytes=entry.bytes)
        assert data == files[name]
        assert entry.stamp == f"{zlib.crc32(data):08x}-{len(data)}"
        assert storage.sha256_of(entry.uri)
        for start, stop in [(0, 10), (5, 900), (0, 1 << 20)]:
            assert storage.read_range(entry.uri, start, stop) == data[start:stop]


def test_zip64_and_streamed_archives(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in ("a", "b"):
            with target.open(name, "w", force_zip64=True) as file:
                file.write(name.encode() * 1000)
    path = write(tmp_path, out.getvalue())
    assert [storage.read_bytes(e.uri)[:1] for e in storage.list_files(path)] == [b"a", b"b"]

    class Stream(io.RawIOBase):
        """Cannot seek, so the writer puts sizes behind the data."""

        raw = b""

        def writable(self):
            return True

        def write(self, data):
            self.raw += bytes(data)
            return len(data)

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a", b"a" * 1000)
    path = write(tmp_path, stream.raw, "stream.zip")
    assert storage.read_bytes(f"zip://a::{path}") == b"a" * 1000


@pytest.mark.slow
def test_more_members_than_16_bits_count(tmp_path):
    files = {f"{n:06d}": b"" for n in range(65_600)}
    path = write(tmp_path, zipped(files))
    assert storage.check_archive(path) == 65_600
    assert sum(1 for _ in storage.list_files(path)) == 65_600
    exact = build(*(Part(name=b"%06d" % n, data=b"", method=0) for n in range(65_535)))
    assert storage.check_archive(write(tmp_path, exact, "exact.zip")) == 65_535


def test_limits_of_a_server(tmp_path):
    path = write(tmp_path, zipped({"a": b"x" * 100, "b": b"y" * 100}))
    assert storage.check_archive(path) == 2
    for limits, reason in [
        (storage.ArchiveLimits(max_members=1), "unsafe_archive"),
        (storage.ArchiveLimits(max_total_bytes=199), "bomb_suspected"),
    ]:
        for where in (path, write(tmp_path, zipped({"a": b"x" * 100, "b": b"y" * 100}), "n.zip")):
            with pytest.raises(DataError) as caught:
                storage.check_archive(where, limits=limits)
            assert caught.value.reason == reason
            members.forget_archive(where)


def test_small_blank_images_are_no_bomb(tmp_path):
    path = write(tmp_path, build(Part(data=bytes(500_000))))
    assert len(storage.read_bytes(f"zip://a.dcm::{path}")) == 500_000


def test_archives_are_met_in_folders_and_not_within_archives(tmp_path):
    inner = zipped({"x": b"1"})
    (tmp_path / "s").mkdir()
    path = write(tmp_path / "s", zipped({"in.zip": inner, "f/a": b"2"}), "b.ZIP")
    bad = write(tmp_path / "s", b"rubbish", "bad.zip")
    write(tmp_path, b"3", "z")
    entries = list(storage.list_files(str(tmp_path)))
    assert [(e.uri, e.error and e.error.reason) for e in entries] == [
        (f"zip://f/a::{path}", None),
        (f"zip://in.zip::{path}", None),
        (bad, "unreadable"),
        (str(tmp_path / "z"), None),
    ]
    assert storage.read_bytes(f"zip://in.zip::{path}") == inner


def test_members_below_a_folder_of_an_archive(tmp_path):
    path = write(tmp_path, zipped({"f/a": b"1", "f/g/b": b"2", "fa": b"3", "T1::y": b"4"}))
    assert [e.uri for e in storage.list_files(f"zip://f::{path}")] == [
        f"zip://f/a::{path}", f"zip://f/g/b::{path}"
    ]  # fmt: skip
    assert storage.read_bytes(f"zip://T1::y::{path}") == b"4"
    for name, there in [("f", True), ("f/a", True), ("a", False), ("f/g/b", True), ("", True)]:
        assert storage.exists(f"zip://{name}::{path}") is there
    assert storage.exists(f"zip://a::{path}.not") is False
    for read in (storage.read_bytes, storage.stat, lambda uri: list(storage.list_files(uri))):
        with pytest.raises(DataError, match="source_unavailable"):
            read(f"zip://nothing::{path}")
    with pytest.raises(DataError, match="too_large"):
        storage.read_bytes(f"zip://fa::{path}", max_bytes=0)
    with pytest.raises(DataError, match="truncated"):
        storage.read_bytes(f"zip://fa::{path}", expected_bytes=2)


def test_an_archive_is_opened_once_until_it_changes(tmp_path, monkeypatch):
    path = write(tmp_path, zipped({f"{n}": b"%d" % n for n in range(200)}))
    parsed = []
    real = archive.parse_archive
    monkeypatch.setattr(
        members, "parse_archive", lambda *a, **k: (parsed.append(1), real(*a, **k))[1]
    )
    results = {}

    def work(part):
        for n in range(part, 200, 8):
            results[n] = storage.read_bytes(f"zip://{n}::{path}")

    threads = [threading.Thread(target=work, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: b"%d" % n for n in range(200)}
    assert len(parsed) == 1
    write(tmp_path, zipped({"0": b"another"}))
    assert storage.read_bytes(f"zip://0::{path}") == b"another"
    assert len(parsed) == 2


def test_only_the_latest_archives_are_kept(tmp_path):
    for number in range(members._KEPT_ARCHIVES + 5):
        storage.check_archive(write(tmp_path, zipped({"a": b""}), f"{number}.zip"))
    assert len(members._OPENED[os.getpid()].archives) <= members._KEPT_ARCHIVES


def test_overlapping_quine_is_quick(tmp_path):
    (entry,) = storage.list_files(write(tmp_path, quine_of_overlaps(10_000)))
    assert entry.error.reason == "unsafe_archive"


def test_an_archive_without_files_says_so(tmp_path):
    for name, folders in (("none.zip", ()), ("folders.zip", ("a/", "a/b/"))):
        with zipfile.ZipFile(tmp_path / name, "w") as made:
            for folder in folders:
                made.writestr(folder, b"")
        (entry,) = storage.list_files(str(tmp_path / name))
        assert entry.error is not None
        assert entry.error.reason == "empty_file"
