"""The NIfTI writer against nibabel and ITK, and the proof of what was written."""

import gzip
import io
import itertools
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medray.errors import DataError
from medray.formats import verify_nifti, write_nifti
from medray.formats.nifti import _compare_by_itk
from medray.formats.nifti_header import is_rigid, lps_affine, nifti_header, ras_affine
from medray.volume import Volume

SHAPE = (4, 5, 7)
_MOVE = np.array([-301.25, 177.5, 1034.75])
ORIENTATIONS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
)


def affine_of(axes, signs, spacing=(2.5, 0.7, 0.9), move=_MOVE) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(axes)] * np.array(signs) * spacing
    affine[:3, 3] = move
    return affine


def oblique(angles=(0.3, -0.5, 1.1), **kwargs) -> np.ndarray:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        step = np.eye(3)
        a, b = [other for other in range(3) if other != axis]
        step[a, a], step[a, b], step[b, a], step[b, b] = c, -s, s, c
        turn = turn @ step
    affine = affine_of((2, 1, 0), (1, 1, 1), **kwargs)
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine


def numbered(dtype=np.int16, affine=None, shape=SHAPE) -> Volume:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    return Volume(
        array=array, affine_lps=affine_of((2, 1, 0), (1, 1, 1)) if affine is None else affine
    )


def written(volume: Volume, *, gz: bool = False) -> bytes:
    target = io.BytesIO()
    write_nifti(target, volume, gz=gz)
    return target.getvalue()


def nib_of(data: bytes) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(
        gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    )


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64", "int64"]
)
def test_voxels_and_dtype_are_what_nibabel_reads(dtype, gz):
    volume = numbered(dtype)
    image = nib_of(written(volume, gz=gz))
    assert image.get_data_dtype() == np.dtype(dtype)
    assert np.array_equal(np.asarray(image.dataobj).T, volume.array)


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_corners_agree_with_nibabel_and_itk_in_all_48_orientations(axes, signs, tmp_path):
    volume = numbered(affine=affine_of(axes, signs))
    path = tmp_path / "volume.nii"
    path.write_bytes(written(volume))
    image = nibabel.load(path)
    itk = sitk.ReadImage(str(path))
    assert image.header["qform_code"] == image.header["sform_code"] == 1
    assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    for k, j, i in itertools.product(*[(0, size - 1) for size in SHAPE]):
        lps = (volume.affine_lps @ [k, j, i, 1])[:3]
        assert np.allclose((image.affine @ [i, j, k, 1])[:3] * [-1, -1, 1], lps, atol=1e-3)
        assert np.allclose(itk.TransformIndexToPhysicalPoint((i, j, k)), lps, atol=1e-3)
        assert itk.GetPixel(i, j, k) == volume.array[k, j, i]
    verify_nifti(path, volume)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mirror", [1, -1])
def test_oblique_qform_is_the_sform(seed, mirror, tmp_path):
    angles = np.random.default_rng(seed).uniform(-np.pi, np.pi, 3)
    affine = oblique(angles)
    affine[:3, 1] *= mirror
    volume = numbered(affine=affine)
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(written(volume, gz=True))
    image = nibabel.load(path)
    assert np.allclose(image.get_qform(coded=True)[0], ras_affine(affine), atol=1e-3)
    assert np.allclose(image.get_sform(coded=True)[0], ras_affine(affine), atol=1e-3)
    verify_nifti(path, volume)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_half_turns_have_a_quaternion(axes):
    for signs in itertools.product((1, -1), repeat=3):
        affine = affine_of(axes, signs)
        image = nib_of(written(numbered(affine=affine)))
        assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-3)


def test_ras_and_lps_undo_one_another():
    affine = oblique()
    assert np.array_equal(lps_affine(ras_affine(affine)), affine)


def test_a_sheared_grid_keeps_its_sform_alone(tmp_path):
    affine = affine_of((2, 1, 0), (1, 1, 1))
    affine[1, 0] = 0.3
    volume = numbered(affine=affine)
    assert not is_rigid(affine, SHAPE)
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(written(volume, gz=True))
    image = nibabel.load(path)
    assert (image.header["qform_code"], image.header["sform_code"]) == (0, 1)
    assert np.allclose(image.affine, ras_affine(affine), atol=1e-3)
    verify_nifti(path, volume)
    with pytest.raises(DataError, match="output_mismatch"):
        verify_nifti(path, replace(volume, array=volume.array + np.int16(1)))


def test_repeats_are_byte_identical_and_the_gzip_header_names_nothing():
    volume = numbered()
    first = written(volume, gz=True)
    assert first == written(volume, gz=True)
    assert first[3] == 0  # no file name, no comment
    assert first[4:8] == b"\0\0\0\0"  # no time
    assert gzip.decompress(first) == written(volume)


def test_units_are_mm_and_values_are_not_scaled():
    image = nib_of(written(numbered()))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (image.dataobj.slope, image.dataobj.inter, image.dataobj.offset) == (1, 0, 352)


@pytest.mark.parametrize("gz", [False, True])
def test_views_and_foreign_byte_order_are_written_as_they_look(gz):
    base = numbered()
    views = {
        "reversed": base.array[::-1],
        "strided": base.array[:, ::2],
        "big": base.array.astype(">i2"),
        "fortran": np.asfortranarray(base.array),
    }
    for array in views.values():
        image = nib_of(written(base.with_array(array), gz=gz))
        assert np.array_equal(np.asarray(image.dataobj).T, array)


def test_bool_becomes_uint8(tmp_path):
    volume = numbered().with_array(numbered().array % 3 == 0)
    path = tmp_path / "mask.nii"
    path.write_bytes(written(volume))
    assert nibabel.load(path).get_data_dtype() == np.uint8
    verify_nifti(path, volume)


def test_an_unproven_place_is_refused():
    with pytest.raises(DataError, match="no_geometry: positions are unverified"):
        nifti_header(replace(numbered(), geometry="unverified"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    volume = numbered(np.float32)
    volume.array[-1, -1, -1] = bad
    for gz in (False, True):
        with pytest.raises(DataError, match="non_finite_pixels"):
            written(volume, gz=gz)


def test_sizes_beyond_16_bit_are_refused():
    array = np.zeros((1, 1, 32768), np.uint8)
    with pytest.raises(DataError, match="too_large: NIfTI-1 holds"):
        nifti_header(numbered().with_array(array))


def test_a_dtype_without_a_code_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="NIfTI holds none of dtype float16"):
        nifti_header(numbered(np.float16))


CHANGES = {
    "values": lambda v: v.with_array(v.array + np.int16(1)),
    "dtype": lambda v: v.with_array(v.array.astype(np.int32)),
    "size": lambda v: v.with_array(v.array[:, :, :-1]),
    "direction": lambda v: replace(v, affine_lps=v.affine_lps @ np.diag([1, 1, -1, 1])),
    "place": lambda v: replace(v, affine_lps=v.affine_lps + 0.01 * np.eye(4)[:, [0, 1, 3, 2]]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_verify_finds_what_differs(name, tmp_path):
    path = tmp_path / "volume.nii.gz"
    volume = numbered()
    path.write_bytes(written(volume, gz=True))
    verify_nifti(str(path), volume)
    verify_nifti(path.as_uri(), volume)
    with pytest.raises(DataError, match="output_mismatch"):
        verify_nifti(path, CHANGES[name](volume))


@pytest.mark.parametrize("name", CHANGES)
def test_itk_alone_finds_what_differs(name, tmp_path):
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(written(numbered(), gz=True))
    _compare_by_itk(path, numbered())
    with pytest.raises(DataError, match="output_mismatch"):
        _compare_by_itk(path, CHANGES[name](numbered()))


def test_verify_finds_any_damaged_byte(tmp_path):
    volume = numbered()
    data = written(volume)
    path = tmp_path / "volume.nii"
    for place in (*range(352, len(data), 37), 280, 283, 300, 256, 42, 70):
        damaged = bytearray(data)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="output_mismatch"):
            verify_nifti(path, volume)


def test_verify_finds_a_file_that_ends_early(tmp_path):
    path = tmp_path / "volume.nii.gz"
    data = written(numbered(), gz=True)
    for stop in (0, 5, 100, len(data) - 9):
        path.write_bytes(data[:stop])
        with pytest.raises(DataError, match="output_mismatch"):
            verify_nifti(path, numbered())


def test_verify_fetches_what_is_remote(tmp_path, monkeypatch):
    data = {"memory://bucket/v.nii.gz": written(numbered(), gz=True)}
    monkeypatch.setattr("medray.formats.nifti.read_bytes", data.__getitem__)
    verify_nifti("memory://bucket/v.nii.gz", numbered())
    with pytest.raises(DataError, match="output_mismatch"):
        verify_nifti("memory://bucket/v.nii.gz", numbered(affine=oblique()))


def test_real_ct_goes_through_unchanged(real_data: Path, tmp_path):
    from medray.formats import read_volume

    source = real_data / "masks/totalsegmentator_nifti/ct_small.nii.gz"
    volume = read_volume(source.read_bytes())
    path = tmp_path / "copy.nii.gz"
    path.write_bytes(written(volume, gz=True))
    verify_nifti(path, volume)
    assert np.allclose(nibabel.load(path).affine, nibabel.load(source).affine, atol=1e-5)
