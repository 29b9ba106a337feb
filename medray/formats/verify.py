"""Written volumes, proven by a reader that shares no code with the writer."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medray.errors import DataError
from medray.formats.nifti import CORNER_ATOL_MM, is_rigid
from medray.formats.volumes import read_volume
from medray.volume import Volume


def verify_nifti(path_or_uri: str | Path, volume: Volume) -> None:
    """Prove that a written NIfTI file is the volume: equal voxels, corners within 1e-3 mm.

    The reader is ITK's. It refuses sheared grids; those are read by `read_volume`, which shares no
    code with the writer either, and tells the geometry from the sform.

    Raises:
        DataError: `output_mismatch`.
    """
    with _local(path_or_uri) as path:
        if is_rigid(volume.affine_lps, volume.array.shape):
            array, affine = _read_by_itk(path)
        else:
            own = _read_own(path)
            array, affine = own.array, own.affine_lps
    if array.shape != volume.array.shape:
        raise DataError("output_mismatch", "the file that was written has another size")
    stored = np.uint8 if volume.array.dtype == np.bool_ else volume.array.dtype.newbyteorder("=")
    same_values = all(map(np.array_equal, array, volume.array))
    if array.dtype != stored or not same_values:
        raise DataError("output_mismatch", "the file that was written holds other values")
    if corner_distance_mm(affine, volume.affine_lps, volume.array.shape) > CORNER_ATOL_MM:
        raise DataError("output_mismatch", "the file that was written lies elsewhere")


def corner_distance_mm(
    first_lps: np.ndarray, second_lps: np.ndarray, shape_zyx: tuple[int, ...]
) -> float:
    """Return the largest distance between two grids' voxels, which is that of a corner."""
    ends = [(0, size - 1) for size in shape_zyx]
    corners = np.array([(k, j, i, 1) for k in ends[0] for j in ends[1] for i in ends[2]])
    moved = corners @ (first_lps - second_lps).T
    return float(np.linalg.norm(moved[:, :3], axis=1).max())


def _read_by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path), imageIO="NiftiImageIO")
    except RuntimeError as error:
        raise DataError("output_mismatch", "ITK cannot read the file that was written") from error
    affine = np.eye(4)
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, :3] = directions[:, ::-1]  # (i, j, k) -> (k, j, i)
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), affine


def _read_own(path: Path) -> Volume:
    try:
        return read_volume(path.read_bytes(), path.name)
    except DataError as error:
        raise DataError("output_mismatch", "the file that was written is unreadable") from error


@contextmanager
def _local(path_or_uri: str | Path) -> Iterator[Path]:
    """Give a local path; a remote file is fetched into a private folder that is removed again."""
    if isinstance(path_or_uri, Path) or "://" not in path_or_uri:
        yield Path(path_or_uri)
    elif path_or_uri.startswith("file://"):
        yield Path(path_or_uri.removeprefix("file://"))
    else:
        from medray.storage import read_bytes

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("copy.nii.gz" if path_or_uri.endswith(".gz") else "copy.nii")
            path.write_bytes(read_bytes(path_or_uri))
            yield path
