"""Volumes onto other grids, by physical coordinates; the slice-streaming form comes first.

A grid whose axes run along those of the volume (any order, any flip) is sampled one axis at a time
and one slice at a time, so that the full volume never exists in float32. Every other grid goes
through ITK's linear or nearest sampling. See `medray.preprocess.axes` for the rule for shrinking.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Float32, Real

from medray.errors import DataError
from medray.preprocess.axes import (
    SMOOTH_ABOVE,
    AxisMap,
    Order,
    linear_map,
    nearest_map,
    pick_plane,
    resize_positions,
    sample_plane,
)
from medray.volume import Volume

# 2,147,483,648 voxels are 8 GiB of float32: no scanner's grid; a spacing of microns gets here.
_MAX_VOXELS = 1 << 31
# Over the whole grid, a leak into another axis of less than this is rounding.
_LEAK_ATOL_VOXELS = 1e-3


@dataclass(frozen=True, kw_only=True)
class GridPlan:
    """How a volume is sampled on a grid whose axes run along its own.

    Attributes:
        maps: one per input axis k, j, i.
        axes: for each output axis, the input axis that runs along it.
        affine_lps: (4, 4) of the output grid.
        order: `linear` gives float32, `nearest` keeps dtype and values (labels).
        fill: value outside the volume's field of view.
    """

    maps: tuple[AxisMap, AxisMap, AxisMap]
    axes: tuple[int, int, int]
    affine_lps: np.ndarray
    order: Order
    fill: float = 0.0

    def needs(self, k: int) -> bool:
        """Tell whether input slice k contributes to the output."""
        return bool((self.maps[0].weights[self.maps[0].index == k] != 0).any())


@dataclass(slots=True)
class GridReducer:
    """Samples a volume slice by slice, in whatever order the slices arrive.

    Each slice is reduced in its plane at once and added to the output planes it touches, so memory
    is that of the output. 512 x 512 x 200 int16 to 160^3 takes about 0.06 s on one core.
    """

    plan: GridPlan
    dtype: np.dtype
    _out: np.ndarray = field(init=False)
    _open: set[int] = field(init=False)

    def __post_init__(self) -> None:
        linear = self.plan.order == "linear"
        shape = tuple(axis.num_out for axis in self.plan.maps)
        self._out = np.zeros(shape, dtype=np.float32 if linear else self.dtype)
        self._open = {k for k in range(self.plan.maps[0].num_in) if self.plan.needs(k)}

    def add(
        self,
        k: int,
        plane: Real[np.ndarray, "height width"],
        *,
        slope: float = 1.0,
        intercept: float = 0.0,
    ) -> None:
        """Take input slice k; its values are plane * slope + intercept.

        Raises:
            ValueError: if the slice came before, or has another shape than the plan's.
        """
        depth_map, rows, columns = self.plan.maps
        if plane.shape != (rows.num_in, columns.num_in):
            raise ValueError(f"slice {k} is {plane.shape}, planned {rows.num_in, columns.num_in}")
        if k not in self._open:
            if self.plan.needs(k):
                raise ValueError(f"slice {k} was added before")
            return
        self._open.discard(k)
        if self.plan.order == "nearest":
            reduced = pick_plane(plane, rows=rows, columns=columns)
        else:
            reduced = sample_plane(plane, rows=rows, columns=columns)
        if slope != 1 or intercept != 0:
            reduced = reduced * np.float32(slope) + np.float32(intercept)
        for target, weight in depth_map.targets(k):
            if depth_map.is_pick:
                self._out[target] = reduced
            else:
                self._out[target] += np.float32(weight) * reduced

    def finish(self) -> Volume:
        """Return the volume on the planned grid.

        Raises:
            DataError: `missing_slices` if a slice that the grid needs never came.
        """
        if self._open:
            raise DataError("missing_slices", f"{len(self._open)} slices did not arrive")
        for axis, axis_map in enumerate(self.plan.maps):
            if not axis_map.inside.all():
                self._out[(slice(None),) * axis + (~axis_map.inside,)] = self.plan.fill
        array = np.ascontiguousarray(self._out.transpose(self.plan.axes))
        return Volume(array=array, affine_lps=self.plan.affine_lps)


def resize_plan(
    shape_zyx: Sequence[int],
    affine_lps: Float[np.ndarray, "4 4"],
    new_shape_zyx: Sequence[int],
    *,
    order: Order = "linear",
    antialias: bool = True,
) -> GridPlan:
    """Plan a resize that keeps the field of view: new = (old + 0.5) * num_new / num_old - 0.5."""
    scale = np.asarray(shape_zyx, dtype=np.float64) / np.asarray(new_shape_zyx)
    step = np.diag([*scale, 1.0])
    step[:3, 3] = (scale - 1) / 2
    maps = [
        _axis_map(resize_positions(old, new), old, shrink, order=order, antialias=antialias)
        for old, new, shrink in zip(shape_zyx, new_shape_zyx, scale, strict=True)
    ]
    return GridPlan(
        maps=(maps[0], maps[1], maps[2]),
        axes=(0, 1, 2),
        affine_lps=np.asarray(affine_lps, dtype=np.float64) @ step,
        order=order,
    )


def resize_stack(
    slices: Iterable[tuple[int, Real[np.ndarray, "height width"]]],
    shape_zyx: Sequence[int],
    new_shape_zyx: Sequence[int],
    *,
    rescale: Sequence[tuple[float, float]] | None = None,
    antialias: bool = True,
) -> Float32[np.ndarray, "new_depth new_height new_width"]:
    """Resize a stack that arrives as (index, slice) pairs in any order, without holding it.

    Args:
        slices: each of the stack's slices once; those that do not matter may be left out.
        shape_zyx: size of the whole stack.
        new_shape_zyx: size of the result.
        rescale: slope and intercept of each slice; None for stored values as they are.
        antialias: smooth where an axis shrinks by more than 2.

    Raises:
        DataError: `missing_slices`.
    """
    plan = resize_plan(shape_zyx, np.eye(4), new_shape_zyx, antialias=antialias)
    reducer = GridReducer(plan, np.dtype(np.float32))
    for k, plane in slices:
        slope, intercept = rescale[k] if rescale is not None else (1.0, 0.0)
        reducer.add(k, plane, slope=slope, intercept=intercept)
    return reducer.finish().array


def resize_volume(
    volume: Volume,
    new_shape_zyx: Sequence[int],
    *,
    order: Order = "linear",
    antialias: bool = True,
) -> Volume:
    """Return the same field of view with another number of voxels (see `resize_plan`).

    Raises:
        DataError: `too_large`.
    """
    _check_size(new_shape_zyx)
    shape = volume.array.shape
    plan = resize_plan(shape, volume.affine_lps, new_shape_zyx, order=order, antialias=antialias)
    return apply_plan(volume, plan)


def spacing_grid(
    shape_zyx: Sequence[int],
    affine_lps: Float[np.ndarray, "4 4"],
    spacing_zyx_mm: float | Sequence[float] | None,
) -> tuple[Float[np.ndarray, "4 4"], tuple[int, int, int]]:
    """Return affine and shape of the grid with exactly this spacing and the same centre.

    The size is rounded, so the field of view differs by at most half a new voxel along an axis and
    no sample lies outside the old one.

    Args:
        shape_zyx: size of the old grid.
        affine_lps: affine of the old grid.
        spacing_zyx_mm: None keeps the grid (native), one number is isotropic.
    """
    affine = np.asarray(affine_lps, dtype=np.float64)
    shape = np.asarray(shape_zyx)
    old = np.linalg.norm(affine[:3, :3], axis=0)
    new = old if spacing_zyx_mm is None else np.broadcast_to(spacing_zyx_mm, 3)
    if not (np.isfinite(new).all() and (new > 0).all()):
        raise ValueError(f"spacing_zyx_mm must be finite and > 0, got {spacing_zyx_mm}")
    same = np.abs(new / old - 1) < 1e-6
    # Halves go up; the tiny bias keeps 99.99999 from losing its voxel to rounding.
    wanted = np.maximum(1, np.floor(shape * old / new + 0.5 + 1e-9)).astype(np.int64)
    sizes = np.where(same, shape, wanted)
    scale = np.where(same, 1.0, new / old)
    step = np.diag([*scale, 1.0])
    step[:3, 3] = (shape - 1) / 2 - scale * (sizes - 1) / 2
    return affine @ step, (int(sizes[0]), int(sizes[1]), int(sizes[2]))


def resample_spacing(
    volume: Volume,
    spacing_zyx_mm: float | Sequence[float] | None,
    *,
    order: Order = "linear",
    antialias: bool = True,
) -> Volume:
    """Return the volume at this spacing (see `spacing_grid`); native spacing returns it as it is.

    Raises:
        DataError: `too_large`.
    """
    shape = volume.array.shape
    affine, new_shape = spacing_grid(shape, volume.affine_lps, spacing_zyx_mm)
    if new_shape == shape and np.array_equal(affine, volume.affine_lps):
        return volume
    return resample_to_grid(volume, affine, new_shape, order=order, antialias=antialias)


def resample_to_grid(
    volume: Volume,
    affine_lps: Float[np.ndarray, "4 4"],
    shape_zyx: Sequence[int],
    *,
    order: Order = "linear",
    fill: float = 0.0,
    antialias: bool = True,
) -> Volume:
    """Return the volume's values at the voxel centres of another grid, by physical coordinates.

    Args:
        volume: values to sample; labels need `order="nearest"`.
        affine_lps: (4, 4) of the new grid, index (k, j, i) to mm; oblique and mirrored are fine.
        shape_zyx: size of the new grid.
        order: `linear` gives float32, `nearest` keeps dtype and values.
        fill: value outside the volume's field of view (half a voxel beyond the outer centres).
        antialias: smooth along axes where the new grid is more than 2 times coarser.

    Raises:
        DataError: `too_large`.
    """
    _check_size(shape_zyx)
    plan = grid_plan(
        (volume.array.shape, volume.affine_lps),
        (shape_zyx, affine_lps),
        order=order,
        fill=fill,
        antialias=antialias,
    )
    if plan is not None:
        return apply_plan(volume, plan)
    if order == "linear" and antialias:
        volume = _smoothed(volume, affine_lps)
    array = _sample_oblique(
        volume.array,
        np.linalg.inv(volume.affine_lps) @ affine_lps,
        shape_zyx,
        order=order,
        fill=fill,
    )
    return replace(volume, array=array, affine_lps=np.array(affine_lps, dtype=np.float64))


def grid_plan(
    source: tuple[Sequence[int], Float[np.ndarray, "4 4"]],
    target: tuple[Sequence[int], Float[np.ndarray, "4 4"]],
    *,
    order: Order = "linear",
    fill: float = 0.0,
    antialias: bool = True,
) -> GridPlan | None:
    """Plan the sampling of one (shape, affine) on another; None where their axes are oblique."""
    to_source = np.linalg.inv(source[1]) @ np.asarray(target[1], dtype=np.float64)
    turn, shift = to_source[:3, :3], to_source[:3, 3]
    axes = np.abs(turn).argmax(axis=0)  # output axis -> input axis
    if sorted(axes) != [0, 1, 2]:
        return None
    reach = np.abs(turn) * (np.asarray(target[0]) - 1)
    reach[axes, np.arange(3)] = 0
    if reach.max() > _LEAK_ATOL_VOXELS:
        return None
    maps: list[AxisMap] = []
    for axis in range(3):
        out_axis = int(np.flatnonzero(axes == axis)[0])
        step = turn[axis, out_axis]
        positions = shift[axis] + step * np.arange(target[0][out_axis])
        maps.append(
            _axis_map(positions, source[0][axis], abs(step), order=order, antialias=antialias)
        )
    return GridPlan(
        maps=(maps[0], maps[1], maps[2]),
        axes=(int(axes[0]), int(axes[1]), int(axes[2])),
        affine_lps=np.array(target[1], dtype=np.float64),
        order=order,
        fill=fill,
    )


def _axis_map(
    positions: np.ndarray, num_in: int, shrink: float, *, order: Order, antialias: bool
) -> AxisMap:
    if order == "nearest":
        return nearest_map(positions, num_in=num_in)
    return linear_map(positions, num_in=num_in, shrink=float(shrink) if antialias else 1.0)


def apply_plan(volume: Volume, plan: GridPlan) -> Volume:
    """Return a volume that is already in memory on a planned grid."""
    reducer = GridReducer(plan, volume.array.dtype)
    for k in range(plan.maps[0].num_in):
        if plan.needs(k):
            reducer.add(k, volume.array[k])
    result = reducer.finish()
    return replace(volume, array=result.array, affine_lps=result.affine_lps)


def _smoothed(volume: Volume, affine_lps: np.ndarray) -> Volume:
    """Shrink a volume along its own axes until an oblique grid is no longer much coarser."""
    steps = np.linalg.norm((np.linalg.inv(volume.affine_lps) @ affine_lps)[:3, :3], axis=1)
    shape = np.asarray(volume.array.shape)
    wanted = np.where(steps > SMOOTH_ABOVE, np.maximum(1, np.ceil(shape / steps)), shape)
    if (wanted == shape).all():
        return volume
    return resize_volume(volume, [int(size) for size in wanted])


def _sample_oblique(
    array: np.ndarray,
    to_source: np.ndarray,
    shape_zyx: Sequence[int],
    *,
    order: Order,
    fill: float,
) -> np.ndarray:
    """Sample by ITK in index space, so that mirrored and sheared grids need no special care."""
    import SimpleITK as sitk

    plain = array.astype(np.uint8) if array.dtype == np.bool_ else array
    image = sitk.GetImageFromArray(np.ascontiguousarray(plain))
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(to_source[2::-1, 2::-1].ravel().tolist())  # (k, j, i) -> (i, j, k)
    transform.SetTranslation(to_source[2::-1, 3].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)  # one core per Ray task
    resampler.SetSize([int(size) for size in reversed(shape_zyx)])
    resampler.SetTransform(transform)
    resampler.SetInterpolator(sitk.sitkLinear if order == "linear" else sitk.sitkNearestNeighbor)
    resampler.SetDefaultPixelValue(float(fill))
    if order == "linear":
        resampler.SetOutputPixelType(sitk.sitkFloat32)
    sampled: np.ndarray = sitk.GetArrayFromImage(resampler.Execute(image))
    return sampled if order == "linear" else sampled.astype(array.dtype, copy=False)


def _check_size(shape_zyx: Sequence[int]) -> None:
    if min(shape_zyx) < 1:
        raise ValueError(f"shape_zyx must be positive, got {tuple(shape_zyx)}")
    if int(np.prod([int(size) for size in shape_zyx], dtype=object)) > _MAX_VOXELS:
        raise DataError("too_large", "the grid asked for has too many voxels")
