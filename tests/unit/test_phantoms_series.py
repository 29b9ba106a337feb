"""The series builder: what it writes is what it was given, wherever the body lies."""

import hashlib
import itertools

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medray.phantoms import series as S

ORIENTATIONS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3))
)


def world_values(paths):
    """Return {rounded LPS position: HU} of every voxel, from headers alone."""
    found = {}
    for path in paths:
        ds = pydicom.dcmread(path)
        hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        row, column = np.split(np.array(ds.ImageOrientationPatient, float), 2)
        dy, dx = (float(v) for v in ds.PixelSpacing)
        j, i = np.indices(hu.shape)
        place = (
            np.array(ds.ImagePositionPatient, float)
            + i[..., None] * dx * row
            + j[..., None] * dy * column
        )
        keys = np.round(place.reshape(-1, 3), 4) + 0.0
        found |= dict(zip(map(tuple, keys), hu.ravel(), strict=True))
    return found


def test_48_orientations_place_the_same_body(tmp_path):
    volume = S.known_volume((4, 6, 5))
    truth = None
    for number, (axes, flips) in enumerate(ORIENTATIONS):
        turned = S.reorient(volume, axes=axes, flips=flips)
        paths = S.write_ct_series(tmp_path / str(number), turned)
        found = world_values(paths)
        truth = truth or found
        assert found == truth
    assert len(truth) == 4 * 6 * 5


def test_known_volume_has_no_symmetry():
    cube = S.known_volume((20, 20, 20)).array
    seen = {
        hashlib.sha256(S.reorient(S.known_volume((20, 20, 20)), axes=a, flips=f).array).digest()
        for a, f in ORIENTATIONS
    }
    assert len(seen) == 48
    assert cube.min() == -1000


@pytest.mark.parametrize("vendor", S.VENDORS)
@pytest.mark.parametrize("slopes", [(1.0,), (0.75, 2.0)])
def test_values_survive_vendor_and_slope(tmp_path, vendor, slopes):
    volume = S.known_volume()
    spec = S.SeriesSpec(vendor=vendor, slopes=slopes)
    for k, path in enumerate(S.write_ct_series(tmp_path, volume, spec)):
        ds = pydicom.dcmread(path)
        hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        assert np.abs(hu - volume.array[k]).max() <= max(slopes) / 2


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless,
     HTJ2KLossless, "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"],
)  # fmt: skip
def test_lossless_syntaxes_decode_to_the_same_values(tmp_path, syntax):
    imagecodecs = pytest.importorskip("imagecodecs")
    volume = S.known_volume((3, 40, 32))
    for k, path in enumerate(S.write_ct_series(tmp_path, volume, S.SeriesSpec(syntax=syntax))):
        ds = pydicom.dcmread(path)
        assert ds.file_meta.TransferSyntaxUID == syntax
        if syntax in (JPEGLosslessSV1, JPEGLSLossless, HTJ2KLossless):
            data = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
            decode = {
                JPEGLosslessSV1: imagecodecs.jpeg_decode,
                JPEGLSLossless: imagecodecs.jpegls_decode,
                HTJ2KLossless: imagecodecs.htj2k_decode,
            }[syntax]
            stored = decode(data)
        else:
            stored = ds.pixel_array
        np.testing.assert_array_equal(stored.astype(int) - 1024, volume.array[k])


def test_file_order_is_not_slice_order_and_bytes_repeat(tmp_path):
    first = S.write_ct_series(tmp_path / "a", S.known_volume())
    second = S.write_ct_series(tmp_path / "b", S.known_volume())
    assert [p.name for p in first] != sorted(p.name for p in first)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_enhanced_ct_holds_every_slice_at_its_place(tmp_path):
    volume = S.known_volume((5, 8, 6))
    path = S.write_enhanced_ct(tmp_path / "e.dcm", volume, S.SeriesSpec(slopes=(1.0, 2.0)))
    ds = pydicom.dcmread(path)
    assert ds.pixel_array.shape == (5, 8, 6)
    for stored, group in zip(ds.pixel_array, ds.PerFrameFunctionalGroupsSequence, strict=True):
        k = int(group.FrameContentSequence[0].InStackPositionNumber) - 1
        value = group.PixelValueTransformationSequence[0]
        hu = stored * float(value.RescaleSlope) + float(value.RescaleIntercept)
        assert np.abs(hu - volume.array[k]).max() <= 1
        place = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        np.testing.assert_allclose(place, volume.affine_lps @ [k, 0, 0, 1] @ np.eye(4, 3))
