"""Volumes outside DICOM, whatever their format."""

from pathlib import PurePosixPath

from medray.errors import DataError
from medray.formats.limits import MAX_VOLUME_BYTES, unpacked_head
from medray.formats.mha import is_mha, read_mha
from medray.formats.nifti_reader import is_nifti, read_nifti
from medray.formats.nrrd import is_nrrd, read_nrrd
from medray.volume import Volume

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
_DETACHED_SUFFIXES = frozenset({".hdr", ".img", ".mhd", ".nhdr"})
_GZIP_MAGIC = b"\x1f\x8b"


def read_volume(data: bytes, name: str = "", *, max_bytes: int = MAX_VOLUME_BYTES) -> Volume:
    """Return the volume of a NIfTI (.nii, .nii.gz), NRRD or MHA file, its dtype kept.

    The format is told from the bytes. Sizes, spacing and the packing ratio are judged from the
    header before anything is unpacked, and no more than the declared size ever is. A file that
    does not say where the patient is has `geometry="unverified"`.

    Args:
        data: the file's bytes.
        name: the file's name; only its suffix is looked at, to explain a detached header.
        max_bytes: what the voxels may occupy.

    Raises:
        DataError: `empty_file`, `unreadable`, `truncated`, `too_large`, `bomb_suspected`,
            `bad_tag_value`, `unsupported_pixels` or `non_finite_pixels`.
    """
    if not data:
        raise DataError("empty_file", "the file has no bytes")
    if PurePosixPath(name).suffix.lower() in _DETACHED_SUFFIXES:
        raise DataError("unreadable", "header and data lie in two files; join them in one")
    if is_nrrd(data):
        return read_nrrd(data, max_bytes=max_bytes)
    if is_mha(data):
        return read_mha(data, max_bytes=max_bytes)
    packed = data[:2] == _GZIP_MAGIC
    head = unpacked_head(data, 544) if packed else data[:544]
    if is_nifti(head):
        return read_nifti(data, max_bytes=max_bytes)
    if packed and len(head) < 4:
        raise DataError("truncated", "the compressed data end before they begin")
    raise DataError("unreadable", "the bytes are none of NIfTI, NRRD or MetaImage")
