"""Foreign volumes against ITK and nibabel, and every way a file can be wrong."""

import gzip
import io
import struct
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medray.errors import DataError
from medray.formats import read_volume, write_nifti
from medray.formats.limits import inflate
from medray.formats.nifti_header import lps_affine
from medray.volume import Volume
from tests.unit.test_formats_nifti import ORIENTATIONS, affine_of, oblique

SHAPE = (3, 4, 5)


def itk_volume(path) -> tuple[np.ndarray, np.ndarray]:
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), affine


def agrees_with_itk(path) -> Volume:
    volume = read_volume(path.read_bytes(), path.name)
    array, affine = itk_volume(path)
    assert volume.array.dtype == array.dtype
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.affine_lps, affine, atol=1e-4)
    assert volume.array.flags.writeable
    return volume


def itk_image(affine: np.ndarray, dtype="int16", seed=0) -> sitk.Image:
    array = np.random.default_rng(seed).integers(0, 100, SHAPE).astype(dtype)
    image = sitk.GetImageFromArray(array)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing[::-1].tolist())
    image.SetDirection((affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def nifti_bytes(array=None, affine=None, kind=nibabel.Nifti1Image, **codes) -> bytes:
    """Return a file that nibabel writes; array is (i, j, k)."""
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3) if array is None else array
    image = kind(array, np.diag([2.0, 3, 4, 1]) if affine is None else affine)
    image.set_sform(image.affine, codes.get("sform", 1))
    image.set_qform(image.affine, codes.get("qform", 1))
    return image.to_bytes()


def own_bytes(array=None, *, gz=False) -> bytes:
    array = np.arange(60, dtype=np.int16).reshape(SHAPE) if array is None else array
    target = io.BytesIO()
    write_nifti(target, Volume(array=array, affine_lps=np.diag([2.0, 3, 4, 1])), gz=gz)
    return target.getvalue()


def patched(data: bytes, offset: int, form: str, *values) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, *values)
    return bytes(changed)


def refused(data: bytes, reason: str, name: str = "", **options) -> None:
    with pytest.raises(DataError, match=f"^{reason}: ") as caught:
        read_volume(data, name, **options)
    assert caught.value.reason == reason


# what ITK reads as well


@pytest.mark.parametrize("pattern", ["masks/**/*.nii.gz", "masks/**/*.nrrd"])
def test_real_files_equal_itk(real_data, pattern):
    paths = sorted(real_data.glob(pattern))
    assert paths
    for path in paths:
        assert agrees_with_itk(path).geometry == "verified"


def test_real_small_volumes_equal_itk(real_data):
    paths = sorted(real_data.glob("cls3d/**/*.nii.gz"))
    assert len(paths) > 1000
    for path in paths[::100]:
        assert agrees_with_itk(path).array.shape == (64, 64, 64)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
)
def test_each_format_and_dtype_equals_itk(suffix, packed, dtype, tmp_path):
    path = tmp_path / f"volume{suffix}"
    sitk.WriteImage(itk_image(oblique(), dtype), str(path), packed)
    agrees_with_itk(path)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS[::5])
def test_orientations_equal_itk(suffix, axes, signs, tmp_path):
    path = tmp_path / f"volume{suffix}"
    sitk.WriteImage(itk_image(affine_of(axes, signs)), str(path))
    volume = agrees_with_itk(path)
    assert np.allclose(volume.affine_lps, affine_of(axes, signs), atol=1e-4)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (1, 0), (2, 4)])
def test_nifti_versions_byte_orders_and_forms_equal_nibabel(kind, endian, codes):
    array = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    header = kind.header_class(endianness=endian)
    image = kind(array, oblique(), header=header)
    image.set_qform(image.affine, codes[0])
    image.set_sform(image.affine, codes[1])
    data = image.to_bytes()
    again = kind.from_bytes(data)
    volume = read_volume(data)
    assert np.array_equal(volume.array, np.asarray(again.dataobj).T)
    assert np.allclose(volume.affine_lps, lps_affine(again.affine), atol=1e-3)
    assert volume.geometry == "verified"


def test_the_sform_holds_where_both_forms_are_coded():
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.diag([1.0, 1, 1, 1]))
    image.set_sform(np.diag([2.0, 2, 2, 1]), 4)
    image.set_qform(np.diag([1.0, 1, 1, 1]), 1)
    assert read_volume(image.to_bytes()).spacing_zyx_mm == (2, 2, 2)


def test_a_sheared_sform_is_read_as_it_is():
    affine = np.diag([2.0, 3, 4, 1])
    affine[0, 2] = 0.8
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), affine)
    image.set_sform(affine, 1)
    assert np.allclose(read_volume(image.to_bytes()).affine_lps, lps_affine(affine))


def test_a_nifti_without_codes_has_no_proven_place():
    volume = read_volume(nifti_bytes(qform=0, sform=0))
    assert volume.geometry == "unverified"
    assert volume.spacing_zyx_mm == (4, 3, 2)


@pytest.mark.parametrize(
    ("unit", "factor"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)]
)
def test_lengths_become_mm(unit, factor):
    spacing = np.array([2.0, 3, 4]) / factor
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.diag([*spacing, 1]))
    image.header.set_xyzt_units(unit)
    assert np.allclose(read_volume(image.to_bytes()).spacing_zyx_mm, [4, 3, 2])


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1, 0, "int16"), (0, 5, "int16"), (np.nan, 0, "int16"), (1, -1024, "int16"),
     (2, 1, "int16"), (0.5, 0, "float32"), (1, 0.25, "float32"), (10000, 0, "float32")],
)  # fmt: skip
def test_slope_and_intercept_equal_nibabel(slope, intercept, dtype):
    data = patched(own_bytes(), 112, "<ff", slope, intercept)
    volume = read_volume(data)
    assert volume.array.dtype == dtype
    assert np.allclose(volume.array, np.asarray(nibabel.Nifti1Image.from_bytes(data).dataobj).T)


def test_one_time_point_is_a_volume():
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3, 1)
    assert np.array_equal(read_volume(nifti_bytes(array)).array, array[..., 0].T)


def test_bytes_before_the_data_are_skipped():
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 1000))
    assert np.array_equal(read_volume(image.to_bytes()).array, array.T)


def nrrd(**fields: str) -> bytes:
    lines = {
        "type": "short", "dimension": "3", "sizes": "5 4 3", "endian": "little", "encoding": "raw",
        "space": "left-posterior-superior", "space directions": "(2,0,0) (0,3,0) (0,0,4)",
        "space origin": "(10,20,30)",
    } | {name.replace("_", " "): value for name, value in fields.items()}  # fmt: skip
    head = "NRRD0004\n# made by hand\n" + "".join(f"{k}: {v}\n" for k, v in lines.items() if v)
    return head.encode() + b"\n" + np.arange(60, dtype="<i2").tobytes()


@pytest.mark.parametrize(
    "space",
    ["left-posterior-superior", "right-anterior-superior", "RAS", "left-anterior-superior", "LPS"],
)
def test_nrrd_spaces_equal_itk(space, tmp_path):
    path = tmp_path / "volume.nrrd"
    path.write_bytes(nrrd(space=space, space_directions="(2,0,0) (0,1.8,2.4) (0,-3.2,2.4)"))
    assert agrees_with_itk(path).geometry == "verified"


@pytest.mark.parametrize(
    "fields",
    [{"space": "", "space_directions": "", "space_origin": "", "spacings": "2 3 4"},
     {"space": "scanner-xyz"}, {"space_origin": ""}],
)  # fmt: skip
def test_nrrd_without_a_patient_is_unverified(fields):
    volume = read_volume(nrrd(**fields))
    assert volume.geometry == "unverified"
    assert volume.spacing_zyx_mm == (4, 3, 2)


def mha(**fields: str) -> bytes:
    lines = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 0.6 0.8 0 -0.8 0.6",
        "Offset": "10 20 30", "ElementSpacing": "2 3 4", "DimSize": "5 4 3",
        "ElementType": "MET_SHORT",
    } | fields  # fmt: skip
    head = "".join(f"{key} = {value}\n" for key, value in lines.items() if value)
    place = fields.get("ElementDataFile", "LOCAL")
    return f"{head}ElementDataFile = {place}\n".encode() + np.arange(60, dtype="<i2").tobytes()


def test_mha_rows_are_axes_as_in_itk(tmp_path):
    path = tmp_path / "volume.mha"
    path.write_bytes(mha())
    agrees_with_itk(path)


def test_mha_in_big_endian_equals_itk(tmp_path):
    path = tmp_path / "volume.mha"
    path.write_bytes(mha(BinaryDataByteOrderMSB="True"))
    agrees_with_itk(path)


def test_mha_without_a_place_is_unverified():
    assert read_volume(mha(TransformMatrix="")).geometry == "unverified"


# what is refused


def test_a_file_without_bytes_is_empty():
    refused(b"", "empty_file")


@pytest.mark.parametrize("data", [b"x", b"hello world" * 100, b"\x1f\x8bnot gzip", b"\0" * 1000])
def test_other_bytes_are_unreadable(data):
    refused(data, "unreadable")


@pytest.mark.parametrize("suffix", [".hdr", ".img", ".mhd", ".nhdr"])
def test_detached_headers_are_refused_by_name(suffix):
    refused(nrrd(), "unreadable", f"volume{suffix}")


def test_detached_headers_are_refused_by_content():
    refused(nrrd(data_file="/etc/passwd"), "unreadable")
    refused(mha(ElementDataFile="/etc/passwd"), "unreadable")
    refused(patched(own_bytes(), 344, "4s", b"ni1\0"), "unreadable")
    refused(patched(own_bytes(), 344, "4s", b"\0\0\0\0"), "unreadable")  # Analyze 7.5


@pytest.mark.parametrize("make", [own_bytes, nrrd, mha])
def test_files_that_end_early_are_truncated(make):
    data = make()
    for stop in (len(data) - 1, len(data) - 60):
        refused(data[:stop], "truncated")


def test_compressed_files_that_end_early_are_truncated():
    data = own_bytes(gz=True)
    for stop in (20, len(data) // 2, len(data) - 9, len(data) - 1):
        refused(data[:stop], "truncated")
    refused(gzip.compress(own_bytes()[:-1]), "truncated")
    refused(gzip.compress(own_bytes()[:300]), "truncated")


def test_a_wrong_checksum_is_noticed():
    data = bytearray(own_bytes(gz=True))
    data[-6] ^= 1
    refused(bytes(data), "unreadable")


def test_several_gzip_members_are_one_file():
    data = own_bytes()
    parts = gzip.compress(data[:100]) + gzip.compress(data[100:400]) + gzip.compress(data[400:])
    assert np.array_equal(read_volume(parts).array.ravel(), np.arange(60))


def test_a_bomb_is_refused_from_its_header():
    # 2.1 MB that declare, and unpack to, 4.2 GB: nothing of it is unpacked.
    head = patched(own_bytes()[:352], 40, "<8h", 3, 1448, 1448, 1000, 1, 1, 1, 1)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(b"\0" * (1 << 21)) + packer.flush(zlib.Z_FULL_FLUSH)
    start = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = start.compress(head) + start.flush(zlib.Z_FULL_FLUSH)
    data = b"\x1f\x8b\x08" + b"\0" * 7 + first + piece * 1000 + packer.flush() + b"\0" * 8
    assert len(data) < 3 << 20
    refused(data, "bomb_suspected")


def test_a_large_honest_header_is_too_large():
    data = patched(own_bytes(), 40, "<8h", 3, 2000, 2000, 2000, 1, 1, 1, 1)
    refused(data, "too_large")
    refused(own_bytes(), "too_large", max_bytes=100)
    refused(nrrd(sizes="100000 100000 100000"), "too_large")
    refused(nrrd(sizes="100000 100000 100000", encoding="gzip"), "bomb_suspected")
    refused(mha(DimSize="100000 100000 100000", CompressedData="True"), "bomb_suspected")


def test_what_cannot_fit_is_truncated_before_it_is_unpacked():
    refused(
        gzip.compress(patched(own_bytes(), 40, "<8h", 3, 500, 500, 500, 1, 1, 1, 1)), "truncated"
    )


def test_data_that_go_on_beyond_the_header_are_a_bomb():
    refused(gzip.compress(own_bytes() + b"\0" * (1 << 20)), "bomb_suspected")
    assert read_volume(gzip.compress(own_bytes() + b"\0" * 512)).array.shape == SHAPE


def test_inflate_never_holds_more_than_asked():
    assert (
        inflate(gzip.compress(b"\0" * (1 << 24)), num_bytes=1000, wbits=31, exact=False)
        == b"\0" * 1000
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("gz", [False, True])
def test_values_that_are_not_finite_are_refused(bad, gz):
    array = np.zeros((5, 4, 3), np.float32)
    array[2, 1, 1] = bad
    data = nifti_bytes(array)
    refused(gzip.compress(data) if gz else data, "non_finite_pixels")


def test_other_shapes_and_voxels_are_unsupported():
    refused(nifti_bytes(np.zeros((5, 4, 3, 2), np.int16)), "unsupported_pixels")
    refused(nifti_bytes(np.zeros((5, 4, 3, 1, 3), np.float32)), "unsupported_pixels")
    refused(nifti_bytes(np.zeros((5, 4, 3), np.complex64)), "unsupported_pixels")
    refused(patched(own_bytes(), 70, "<h", 128), "unsupported_pixels")  # RGB
    refused(nrrd(dimension="4", sizes="3 5 4 3"), "unsupported_pixels")
    refused(nrrd(type="block"), "unsupported_pixels")
    refused(nrrd(encoding="bzip2"), "unsupported_pixels")
    refused(nrrd(byte_skip="-1"), "unsupported_pixels")
    refused(mha(ElementNumberOfChannels="3"), "unsupported_pixels")
    refused(mha(NDims="2", DimSize="5 4"), "unsupported_pixels")
    refused(mha(ElementType="MET_STRING"), "unsupported_pixels")
    refused(mha(BinaryData="False"), "unsupported_pixels")


NONSENSE = [0.0, 1e308, float("inf"), float("nan"), 1e6, 1e-9]


@pytest.mark.parametrize("value", NONSENSE)
def test_nonsense_spacing_is_a_bad_value(value):
    refused(nrrd(space_directions=f"({value},0,0) (0,1,0) (0,0,1)"), "bad_tag_value")
    refused(mha(ElementSpacing=f"{value} 1 1"), "bad_tag_value")
    small = min(value, 3e38)
    refused(patched(own_bytes(), 288, "<f", small), "bad_tag_value")
    data = patched(own_bytes(), 254, "<h", 0)  # no sform: the qform's spacing
    refused(patched(data, 80, "<f", small), "bad_tag_value")


def test_other_nonsense_in_headers_is_a_bad_value():
    refused(patched(own_bytes(), 292, "<f", np.nan), "bad_tag_value")  # place
    refused(patched(own_bytes(), 292, "<f", 1e7), "bad_tag_value")
    refused(patched(own_bytes(), 40, "<h", 9), "bad_tag_value")  # rank
    refused(patched(own_bytes(), 42, "<h", 0), "bad_tag_value")  # size
    refused(patched(own_bytes(), 42, "<h", -5), "bad_tag_value")
    refused(patched(own_bytes(), 108, "<f", 3.0), "bad_tag_value")  # data offset
    refused(patched(own_bytes(), 108, "<f", np.nan), "bad_tag_value")
    refused(patched(own_bytes(), 112, "<ff", 1e30, 0), "bad_tag_value")  # slope
    refused(patched(own_bytes(), 123, "b", 7), "bad_tag_value")  # unit
    refused(patched(patched(own_bytes(), 254, "<h", 0), 256, "<3f", 1, 1, 1), "bad_tag_value")
    refused(nrrd(sizes="5 4"), "bad_tag_value")
    refused(nrrd(sizes="5 4 x"), "bad_tag_value")
    refused(nrrd(endian="middle"), "bad_tag_value")
    refused(nrrd(space_units='"m" "m" "m"'), "bad_tag_value")
    refused(nrrd(space_directions="(1,0,0) (1,0,0) (0,0,1)"), "bad_tag_value")
    refused(nrrd(space_origin="(1,2)"), "bad_tag_value")
    refused(mha(Offset="1 2 x"), "bad_tag_value")
    refused(mha(TransformMatrix="1 0 0 1 0 0 0 0 1"), "bad_tag_value")


def test_headers_without_an_end_are_truncated():
    refused(b"NRRD0004\ntype: short\n", "truncated")
    refused(b"ObjectType = Image\nNDims = 3\n", "truncated")
    refused(b"ObjectType = Image\nno assignment\n", "unreadable")
    refused(own_bytes()[:200], "truncated")


@pytest.mark.parametrize("make", [own_bytes, lambda: own_bytes(gz=True), nrrd, mha])
def test_damaged_bytes_give_reasons_and_nothing_else(make):
    rng, data = np.random.default_rng(7), make()
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 500), 5):
            damaged[place] = rng.integers(256)
        try:
            read_volume(bytes(damaged))
        except DataError:
            continue


def test_messages_carry_no_values():
    with pytest.raises(DataError) as caught:
        read_volume(nrrd(space_origin="(DOE^JOHN,1,2)"))
    assert "DOE" not in str(caught.value)
