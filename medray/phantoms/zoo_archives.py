"""Hostile zip archives and bombs, written byte by byte and without a time stamp."""

import gzip
import io
import stat
import struct
import zipfile
import zlib

import numpy as np

from medray.phantoms.masks import nifti_bytes
from medray.phantoms.zoo import Zoo

_DATE = (1980, 1, 1, 0, 0, 0)
_BOMB_BLOCK, _BOMB_BLOCKS = 64 << 20, 18
_CENTRAL_HEADER = b"PK\x01\x02"
_OFFSET_FIELD = 42


def add_archive_defects(zoo: Zoo) -> None:
    """Plant archives whose members escape, repeat, overlap or explode, and one good archive."""
    image = zoo.image("archive")
    for name, members in (
        ("zip_traversal", [("../../escaped.dcm", image)]),
        ("zip_absolute", [("/tmp/escaped.dcm", image)]),  # noqa: S108 - a hostile name, not a path
        ("zip_backslash", [("..\\..\\escaped.dcm", image)]),
    ):
        zoo.file(name, _zip(members), "unsafe_archive", suffix=".zip")
    zoo.file("zip_duplicate", _zip_duplicate(image), "unsafe_archive", suffix=".zip")
    zoo.file("zip_symlink", _zip_symlink(), "unsafe_archive", suffix=".zip")
    zoo.file("zip_overlap", _zip_overlap(image), "unsafe_archive", suffix=".zip")
    zoo.file("zip_bomb", _zip_bomb(), "bomb_suspected", suffix=".zip")
    path = zoo.folder("ok_zip") / "study.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    slices = [zoo.ct_slice("ok_zip", k) for k in range(5)]
    path.write_bytes(_zip([(f"inside/1-{k}.dcm", data) for k, data in enumerate(slices)]))
    zoo.oddity(path, "a series inside an archive")


def _zip(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name, _DATE), data)
    return out.getvalue()


def _zip_duplicate(image: bytes) -> bytes:
    """Return an archive with one name twice, which the library would warn of."""
    data = _zip([("a/1-1.dcm", image), ("a/1-2.dcm", image[::-1])])
    return data.replace(b"a/1-2.dcm", b"a/1-1.dcm")


def _zip_symlink() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("link.dcm", _DATE)
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/hostname")
    return out.getvalue()


def _zip_overlap(image: bytes) -> bytes:
    """Return an archive whose second entry points at the first one's data."""
    data = bytearray(_zip([("a.dcm", image), ("b.dcm", image)]))
    second = data.rindex(_CENTRAL_HEADER)
    struct.pack_into("<I", data, second + _OFFSET_FIELD, 0)
    return bytes(data)


def _zip_bomb() -> bytes:
    """Return about 1.1 MB that unpack to more than a GiB; the checksum is true."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(_BOMB_BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = block * _BOMB_BLOCKS + packer.flush(zlib.Z_FINISH)
    crc, zeros = 0, bytes(_BOMB_BLOCK)
    for _ in range(_BOMB_BLOCKS):
        crc = zlib.crc32(zeros, crc)
    name, size = b"bomb.dcm", _BOMB_BLOCK * _BOMB_BLOCKS
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(body), size, len(name), 0)
    local = b"PK\x03\x04" + common + name + body
    central = _CENTRAL_HEADER + struct.pack("<H", 20) + common
    central += struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def nifti_bomb() -> bytes:
    """Return a small .nii.gz that unpacks to more than a GiB."""
    head = bytearray(nifti_bytes(np.zeros((1, 1, 1), np.uint8), np.eye(4))[:352])
    struct.pack_into("<3h", head, 42, 1200, 1000, 1000)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(_BOMB_BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    start = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = start.compress(bytes(head)) + start.flush(zlib.Z_FULL_FLUSH)
    body += block * _BOMB_BLOCKS + packer.flush(zlib.Z_FINISH)
    crc, zeros = zlib.crc32(bytes(head)), bytes(_BOMB_BLOCK)
    for _ in range(_BOMB_BLOCKS):
        crc = zlib.crc32(zeros, crc)
    size = (len(head) + _BOMB_BLOCK * _BOMB_BLOCKS) & 0xFFFFFFFF
    return gzip.compress(b"", mtime=0)[:10] + body + struct.pack("<II", crc, size)
