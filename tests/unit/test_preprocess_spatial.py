"""Grids by physical coordinates against slow loops, torch, MONAI and ITK."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.errors import DataError
from medray.preprocess.spatial import (
    GridReducer,
    grid_plan,
    resample_spacing,
    resample_to_grid,
    resize_plan,
    resize_stack,
    resize_volume,
    spacing_grid,
)
from medray.volume import Volume
from tests.unit.test_formats_nifti import ORIENTATIONS, affine_of, oblique

RNG = np.random.default_rng(0)


def noise(shape=(6, 7, 9), dtype=np.int16, affine=None) -> Volume:
    array = np.random.default_rng(1).integers(-1000, 1000, shape).astype(dtype)
    return Volume(
        array=array, affine_lps=affine_of((2, 1, 0), (1, 1, 1)) if affine is None else affine
    )


def slow_sample(volume, affine, shape, *, order, fill):
    """Trilinear or nearest sampling point by point, edge values held for half a voxel."""
    out = np.full(shape, fill, dtype=np.float64)
    to_index = np.linalg.inv(volume.affine_lps) @ affine
    size = np.array(volume.array.shape)
    for place in itertools.product(*map(range, shape)):
        index = (to_index @ [*place, 1])[:3]
        if (index < -0.5 - 1e-6).any() or (index > size - 0.5 + 1e-6).any():
            continue
        index = np.clip(index, 0, size - 1)
        if order == "nearest":
            out[place] = volume.array[
                tuple(np.minimum(np.floor(index + 0.5).astype(int), size - 1))
            ]
            continue
        low = np.minimum(np.floor(index).astype(int), np.maximum(size - 2, 0))
        part = index - low
        out[place] = sum(
            np.prod([p if step else 1 - p for step, p in zip(steps, part, strict=True)])
            * volume.array[tuple(np.minimum(low + steps, size - 1))]
            for steps in itertools.product((0, 1), repeat=3)
        )
    return out


def itk_image(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.array)
    spacing = np.array(volume.spacing_zyx_mm)
    image.SetSpacing(spacing[::-1].tolist())
    image.SetDirection((volume.affine_lps[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    image.SetOrigin(volume.affine_lps[:3, 3].tolist())
    return image


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
@pytest.mark.parametrize("order", ["linear", "nearest"])
def test_any_axis_order_and_flip_equals_the_slow_loop(axes, signs, order):
    volume = noise()
    grid = affine_of(axes, signs, spacing=(2.1, 1.2, 1.05), move=volume.affine_lps[:3, 3])
    center = (volume.affine_lps @ [2.6, 3.1, 4.2, 1])[:3]
    grid[:3, 3] += center - (grid @ [2, 2, 3, 1])[:3]
    out = resample_to_grid(volume, grid, (5, 6, 7), order=order, fill=-5, antialias=False)
    assert grid_plan((volume.array.shape, volume.affine_lps), ((5, 6, 7), grid)) is not None
    assert np.allclose(
        out.array, slow_sample(volume, grid, (5, 6, 7), order=order, fill=-5), atol=1e-3
    )
    assert np.array_equal(out.affine_lps, grid)
    assert out.array.dtype == (np.float32 if order == "linear" else np.int16)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("order", ["linear", "nearest"])
def test_oblique_grids_equal_the_slow_loop(seed, order):
    rng = np.random.default_rng(seed)
    volume = noise(affine=oblique(rng.uniform(-3, 3, 3)))
    grid = oblique(rng.uniform(-3, 3, 3), spacing=(1.7, 0.8, 1.1))
    grid[:3, 3] += (volume.affine_lps @ [2.6, 3.1, 4.2, 1])[:3] - (grid @ [2, 2, 3, 1])[:3]
    out = resample_to_grid(volume, grid, (5, 6, 7), order=order, fill=-5, antialias=False)
    expected = slow_sample(volume, grid, (5, 6, 7), order=order, fill=-5)
    assert np.allclose(out.array, expected, atol=2e-3)
    assert out.array.dtype == (np.float32 if order == "linear" else np.int16)


@pytest.mark.parametrize("order", ["linear", "nearest"])
def test_grids_equal_itk(order):
    volume = noise((20, 30, 25), affine=affine_of((2, 1, 0), (1, 1, 1), spacing=(2, 1, 1.5)))
    grid = affine_of((0, 2, 1), (-1, 1, -1), spacing=(1.3, 1.4, 0.9))
    grid[:3, 3] += (volume.affine_lps @ [10, 15, 12, 1])[:3] - (grid @ [12, 12, 12, 1])[:3]
    reference = Volume(array=np.zeros((25, 24, 26), np.uint8), affine_lps=grid)
    interpolator = sitk.sitkLinear if order == "linear" else sitk.sitkNearestNeighbor
    kind = sitk.sitkFloat32 if order == "linear" else sitk.sitkInt16
    expected = sitk.GetArrayFromImage(
        sitk.Resample(
            itk_image(volume), itk_image(reference), sitk.Transform(), interpolator, -7, kind
        )
    )
    out = resample_to_grid(volume, grid, (25, 24, 26), order=order, fill=-7).array
    if order == "linear":
        assert np.allclose(out, expected, atol=1e-2)
    else:
        assert np.mean(out == expected) > 0.999  # halves of a step may go either way


@pytest.mark.parametrize("order", ["linear", "nearest"])
@pytest.mark.parametrize(
    "affine", [affine_of((2, 1, 0), (1, 1, 1)), oblique()], ids=["axial", "oblique"]
)
def test_the_same_grid_is_exact_also_in_float32(order, affine):
    volume = noise(affine=affine)
    for grid in (affine, affine.astype(np.float32).astype(np.float64)):
        out = resample_to_grid(volume, grid, volume.array.shape, order=order)
        assert np.array_equal(out.array, volume.array)


def test_masks_come_back_exactly_from_any_orientation():
    labels = Volume(
        array=np.random.default_rng(2).choice([0, 1, 7, 255], (6, 7, 9)).astype(np.uint8),
        affine_lps=oblique(),
    )
    for axes, signs in ORIENTATIONS:
        turn = np.eye(4)
        turn[:3, :3] = np.eye(3)[:, list(axes)] * signs
        shape = tuple(np.array(labels.array.shape)[list(axes)])
        corner = [(size - 1) if sign < 0 else 0 for size, sign in zip(shape, signs, strict=True)]
        turn[:3, 3] = np.eye(3)[:, list(axes)] @ corner
        there = resample_to_grid(labels, labels.affine_lps @ turn, shape, order="nearest")
        back = resample_to_grid(there, labels.affine_lps, labels.array.shape, order="nearest")
        assert np.array_equal(back.array, labels.array)
        assert back.array.dtype == np.uint8


def test_bool_masks_stay_bool_on_oblique_grids():
    mask = noise().with_array(noise().array > 0)
    assert resample_to_grid(mask, oblique(), (4, 4, 4), order="nearest").array.dtype == np.bool_


@pytest.mark.parametrize("shape", [(6, 7, 9), (12, 20, 10), (3, 4, 5), (6, 14, 5), (1, 1, 1)])
def test_resize_equals_torch(shape):
    volume = noise((6, 8, 10))
    out = resize_volume(volume, shape, antialias=False).array
    source = torch.from_numpy(volume.array.astype(np.float64))[None, None]
    expected = torch.nn.functional.interpolate(source, shape, mode="trilinear", align_corners=False)
    assert np.abs(out - expected[0, 0].numpy()).max() < 1e-3


@pytest.mark.slow  # importing MONAI takes 20 s
@pytest.mark.parametrize("shape", [(32, 48, 60), (20, 100, 96), (13, 20, 30)])
def test_resize_equals_monai(shape):
    from monai.transforms import Resize

    volume = noise((40, 96, 96))
    out = resize_volume(volume, shape, antialias=False).array
    source = torch.from_numpy(volume.array.astype(np.float64))[None]
    peer = Resize(shape, mode="trilinear", align_corners=False, dtype=torch.float64)(source)
    assert np.abs(out - peer[0].numpy()).max() < 1e-3
    if min(new / old for new, old in zip(shape, volume.array.shape, strict=True)) >= 0.5:
        assert np.array_equal(out, resize_volume(volume, shape).array)


@pytest.mark.parametrize("shape", [(3, 4, 5), (12, 9, 30), (1, 1, 1), (6, 7, 9)])
@pytest.mark.parametrize(
    "affine", [affine_of((0, 2, 1), (1, -1, 1)), oblique()], ids=["turned", "oblique"]
)
def test_resize_keeps_the_field_of_view(shape, affine):
    volume = noise(affine=affine)
    out = resize_volume(volume, shape)
    assert out.array.shape == shape
    for corner in itertools.product((0, 1), repeat=3):
        old = volume.affine_lps @ [*(np.array(corner) * volume.array.shape - 0.5), 1]
        new = out.affine_lps @ [*(np.array(corner) * shape - 0.5), 1]
        assert np.allclose(old, new)


def test_resize_equals_sampling_its_own_grid():
    volume = noise((30, 40, 20))
    for shape in ((10, 55, 7), (30, 13, 20)):
        resized = resize_volume(volume, shape)
        sampled = resample_to_grid(volume, resized.affine_lps, shape)
        assert np.abs(resized.array - sampled.array).max() < 2e-3


def test_shrinking_by_more_than_two_smooths_that_axis_alone():
    volume = noise((12, 30, 40))
    out = resize_volume(volume, (12, 10, 25)).array
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(volume.array.astype(np.float64))[None],
        (10, 40),
        mode="bilinear",
        antialias=True,
    )
    expected = torch.nn.functional.interpolate(expected, (10, 25), mode="bilinear")[0].numpy()
    assert np.abs(out - expected).max() < 2e-3


def test_smoothing_keeps_the_mean_where_plain_sampling_aliases():
    stripes = np.zeros((4, 4, 128), np.int16)
    stripes[..., ::4] = 400
    volume = Volume(array=stripes, affine_lps=np.eye(4))
    smooth = resize_volume(volume, (4, 4, 16)).array
    plain = resize_volume(volume, (4, 4, 16), antialias=False).array
    assert np.abs(smooth - 100).max() < 15
    assert np.abs(plain - 100).max() == 100
    axial = Volume(array=stripes, affine_lps=affine_of((2, 1, 0), (1, 1, 1), (1, 1, 1), (0, 0, 0)))
    turned = oblique((0.002, 0.003, 0.001), spacing=(8, 8, 8), move=(8, 1.5, 1.5))
    assert grid_plan((stripes.shape, axial.affine_lps), ((1, 1, 14), turned)) is None
    through = resample_to_grid(axial, turned, (1, 1, 14)).array
    assert np.abs(through - 100).max() < 15


@pytest.mark.parametrize("spacing", [1.0, (5.0, 0.5, 1.5), (2.5, 0.7, 0.9), 0.3])
def test_spacing_is_exact_and_the_centre_stays(spacing):
    volume = noise((10, 33, 27), affine=oblique())
    out = resample_spacing(volume, spacing)
    wanted = np.broadcast_to(spacing, 3)
    assert np.allclose(out.spacing_zyx_mm, wanted)
    old, new = np.array(volume.array.shape), np.array(out.array.shape)
    assert (np.abs(new * wanted - old * volume.spacing_zyx_mm) <= wanted / 2 + 1e-9).all()
    assert np.allclose(
        volume.affine_lps @ [*((old - 1) / 2), 1], out.affine_lps @ [*((new - 1) / 2), 1]
    )
    assert np.allclose(
        volume.affine_lps[:3, :3] / volume.spacing_zyx_mm, out.affine_lps[:3, :3] / wanted
    )


def test_native_spacing_is_the_volume_itself():
    volume = noise()
    assert resample_spacing(volume, None) is volume
    assert resample_spacing(volume, volume.spacing_zyx_mm) is volume


def test_a_constant_stays_constant_at_every_spacing():
    volume = noise().with_array(np.full((6, 7, 9), 37, np.int16))
    for spacing in (0.31, 1.0, 1.9, 4.7, (9.0, 0.2, 3.0)):
        assert np.allclose(resample_spacing(volume, spacing).array, 37, atol=1e-4)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_nonsense_spacing_is_a_mistake_of_the_caller(bad):
    with pytest.raises(ValueError, match="spacing_zyx_mm must be finite"):
        spacing_grid((3, 3, 3), np.eye(4), bad)


def test_grids_without_end_are_refused():
    with pytest.raises(DataError, match="too_large"):
        resample_spacing(noise(), 1e-4)
    with pytest.raises(DataError, match="too_large"):
        resize_volume(noise(), (4096, 4096, 4096))
    with pytest.raises(ValueError, match="shape_zyx must be positive"):
        resize_volume(noise(), (0, 3, 3))


# streaming


def test_a_stack_in_any_order_equals_the_volume():
    volume = noise((13, 40, 30))
    expected = resize_volume(volume, (7, 11, 29)).array
    order = np.random.default_rng(3).permutation(13)
    out = resize_stack(((k, volume.array[k]) for k in order), (13, 40, 30), (7, 11, 29))
    assert np.allclose(out, expected, atol=1e-3)
    assert out.dtype == np.float32


def test_slope_and_intercept_of_each_slice():
    stored = np.random.default_rng(4).integers(0, 4000, (9, 20, 20)).astype(np.uint16)
    rescale = [(1.0 + 0.1 * k, -1024.0 + k) for k in range(9)]
    values = np.stack(
        [plane * np.float64(a) + b for plane, (a, b) in zip(stored, rescale, strict=True)]
    )
    out = resize_stack(enumerate(stored), stored.shape, (5, 8, 9), rescale=rescale)
    expected = resize_stack(enumerate(values), stored.shape, (5, 8, 9))
    assert np.abs(out - expected).max() < 2e-3


def test_a_slice_that_is_missing_or_wrong_is_noticed():
    planes = noise((5, 6, 6)).array
    with pytest.raises(DataError, match="missing_slices: 1 slices did not arrive"):
        resize_stack(((k, planes[k]) for k in (0, 1, 3, 4)), (5, 6, 6), (5, 3, 3))
    with pytest.raises(ValueError, match="slice 1 was added before"):
        resize_stack(((k, planes[k]) for k in (0, 1, 1)), (5, 6, 6), (5, 3, 3))
    with pytest.raises(ValueError, match=r"slice 0 is \(5, 6\)"):
        resize_stack([(0, planes[0][1:])], (5, 6, 6), (5, 3, 3))


def test_slices_outside_the_grid_are_not_needed():
    volume = noise((20, 6, 6), affine=np.eye(4))
    grid = np.eye(4)
    grid[:3, 3] = (8, 0, 0)
    plan = grid_plan((volume.array.shape, volume.affine_lps), ((4, 6, 6), grid))
    reducer = GridReducer(plan, volume.array.dtype)
    needed = [k for k in range(20) if plan.needs(k)]
    assert needed == [8, 9, 10, 11]
    for k in needed:
        reducer.add(k, volume.array[k])
    reducer.add(0, volume.array[0])
    assert np.array_equal(reducer.finish().array, volume.array[8:12])


def test_nearest_streams_too():
    labels = noise((9, 8, 8), dtype=np.uint8)
    plan = resize_plan((9, 8, 8), labels.affine_lps, (20, 3, 3), order="nearest")
    reducer = GridReducer(plan, labels.array.dtype)
    for k in reversed(range(9)):
        if plan.needs(k):
            reducer.add(k, labels.array[k])
    expected = resize_volume(labels, (20, 3, 3), order="nearest").array
    assert np.array_equal(reducer.finish().array, expected)
    assert expected.dtype == np.uint8


# round trips

_ANGLES = st.tuples(*[st.floats(-3.1, 3.1)] * 3)
_SPACINGS = st.tuples(*[st.floats(0.5, 5.0)] * 3)


@settings(max_examples=60, deadline=None)
@given(_ANGLES, _SPACINGS, st.tuples(*[st.floats(0.6, 4.0)] * 3), st.data())
def test_landmarks_come_back_within_half_a_voxel(angles, spacing, model_spacing, data):
    """Image to the nearest model voxel and back: half a voxel of the model grid at most."""
    shape = (12, 14, 16)
    affine = oblique(angles, spacing=spacing)
    grid, new_shape = spacing_grid(shape, affine, model_spacing)
    index = [data.draw(st.integers(0, size - 1)) for size in shape]
    model = (np.linalg.inv(grid) @ affine @ [*index, 1])[:3]
    nearest = np.clip(np.floor(model + 0.5), 0, np.array(new_shape) - 1)
    # A rounded size may leave the outermost voxels up to a quarter of a new voxel outside.
    assert (np.abs(nearest - model) <= 0.75 + 1e-6).all()
    inner = (model >= -0.5) & (model <= np.array(new_shape) - 0.5)
    assert (np.abs(nearest - model)[inner] <= 0.5 + 1e-6).all()
    assert np.allclose((np.linalg.inv(affine) @ grid @ [*model, 1])[:3], index, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(_ANGLES, st.tuples(*[st.floats(0.6, 1.6)] * 3), st.tuples(*[st.integers(4, 20)] * 3))
def test_a_blob_comes_back_within_half_a_voxel(angles, model_spacing, place):
    """Image to model grid to image: the centre of mass moves by less than half a voxel."""
    shape = (25, 25, 25)
    affine = oblique(angles, spacing=(1.0, 1.0, 1.0))
    coordinates = np.indices(shape)
    distance = np.sqrt(sum((coordinates[a] - place[a]) ** 2 for a in range(3)))
    image = Volume(array=np.exp(-((distance / 3) ** 2)).astype(np.float32), affine_lps=affine)
    model = resample_spacing(image, model_spacing)
    back = resample_to_grid(model, affine, shape).array
    center = [(back * axis).sum() / back.sum() for axis in coordinates]
    expected = [(image.array * axis).sum() / image.array.sum() for axis in coordinates]
    assert np.abs(np.array(center) - expected).max() <= 0.5


_TRUTH_MM3 = 4 / 3 * np.pi * 10**3


def sphere_of_20_mm(rng) -> Volume:
    affine = oblique(rng.uniform(-3, 3, 3), spacing=(1.0, 0.75, 0.75))
    shape = tuple(rng.integers((36, 48, 48), (46, 60, 60)))  # other sizes, other grid phases
    middle = affine @ [*(np.array(shape) / 2 + rng.uniform(-3, 3, 3)), 1]
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    inside = np.linalg.norm(points - middle[:3], axis=-1) <= 10
    return Volume(array=inside.astype(np.uint8), affine_lps=affine)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spacing", [(0.7, 0.7, 0.7), (1.5, 1.5, 1.5), (3.0, 0.8, 0.8)])
def test_a_sphere_of_20_mm_keeps_its_volume(spacing, seed):
    mask = sphere_of_20_mm(np.random.default_rng(seed))
    model = resample_spacing(mask, spacing)
    back = resample_to_grid(model, mask.affine_lps, mask.array.shape).array
    voxel_mm3 = np.prod(mask.spacing_zyx_mm)
    assert abs(model.array.sum(dtype=np.float64) * np.prod(spacing) / _TRUTH_MM3 - 1) < 0.02
    assert abs((back >= 0.5).sum() * voxel_mm3 / _TRUTH_MM3 - 1) < 0.02


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 0.7), (1.5, 1.5, 1.5), (3.0, 0.8, 0.8)])
def test_nearest_labels_keep_their_volume_on_average(spacing):
    """One placement scatters by 1 to 2 %, as any voxel count does; a shifted grid would add up."""
    there, back = [], []
    for seed in range(30):
        mask = sphere_of_20_mm(np.random.default_rng(seed))
        model = resample_spacing(mask, spacing, order="nearest")
        again = resample_to_grid(model, mask.affine_lps, mask.array.shape, order="nearest").array
        there.append(model.array.sum() * np.prod(spacing) / _TRUTH_MM3 - 1)
        back.append(again.sum() * np.prod(mask.spacing_zyx_mm) / _TRUTH_MM3 - 1)
    assert abs(np.mean(there)) < 0.02
    assert abs(np.mean(back)) < 0.02
