"""Pictures of examples for people: a middle slice with its mask or boxes, many on one sheet."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from medray.preprocess.orient import canonical_axes
from medray.volume import Image2D, Volume

_TILE_PX = 192
_GAP_PX = 4
_COLUMNS = 6
_MASK_COLOUR = np.array([255, 64, 64], dtype=np.float32)
_BOX_COLOUR = (64, 255, 64)
_TRUTH_COLOUR = (64, 255, 64)
_FOUND_COLOUR = (255, 96, 64)
_PREVIEW_PX = 512
_LINE_PX, _TEXT_PX = 22, 14
# Only air is below, nothing lies below that.
_AIR_HU, _SURELY_HU = -500, -2048
_SOFT_TISSUE_HU = (-200.0, 300.0)
_WIDE_HU = (-1000.0, 600.0)


def example_tile(arrays: Mapping[str, np.ndarray], *, size_px: int = _TILE_PX) -> np.ndarray:
    """Return one example as (size, size, 3) uint8: its telling slice, mask in red, boxes in green.

    Args:
        arrays: an example; `image` is (C, D, H, W), (C, H, W) or (D, H, W).
    """
    image, mask = arrays["image"], arrays.get("mask")
    boxes = arrays.get("boxes")
    plane, mask_plane = _telling_plane(image, mask)
    rgb = _grey_or_colour(plane)
    if mask_plane is not None and mask_plane.any():
        inside = (mask_plane > 0)[..., None]
        rgb = np.where(inside, 0.55 * rgb + 0.45 * _MASK_COLOUR, rgb)
    if boxes is not None:
        for box in boxes:
            _draw_box(rgb, box)
    return _fit(rgb.astype(np.uint8), size_px)


def compared_tile(
    arrays: Mapping[str, np.ndarray],
    found: np.ndarray | None,
    *,
    found_boxes_xyxy_px: np.ndarray | None = None,
    size_px: int = 2 * _TILE_PX,
) -> np.ndarray:
    """Return (size, size, 3) uint8: the telling slice with the outlines of truth and prediction.

    Args:
        arrays: an example; `image` (D, H, W), `mask` of the same shape where there is one; or
            `image` (C, H, W) and `boxes` (n, 4).
        found: predicted mask, (D, H, W) bool, or None.
        found_boxes_xyxy_px: (n, 4) predicted boxes in pixels of the image, or None.
    """
    image, truth = arrays["image"], arrays.get("mask")
    telling = truth if truth is not None and truth.any() else found
    plane, _ = _telling_plane(image, telling)
    k = _slice_of(image, telling)
    rgb = _fit(_grey_or_colour(plane).astype(np.uint8), size_px)
    # The truth is drawn broad below the prediction, so that both are seen where they agree.
    thin = max(1, size_px // 128)
    for mask, colour, width in ((truth, _TRUTH_COLOUR, 2 * thin), (found, _FOUND_COLOUR, thin)):
        if mask is not None and mask.ndim == 3 and k < mask.shape[0]:
            grown = _fit(np.repeat((mask[k] > 0)[..., None] * np.uint8(255), 3, axis=-1), size_px)
            rgb[_outline(grown[..., 0] > 127, width)] = colour
    shown = (
        (arrays.get("boxes"), _TRUTH_COLOUR, 2 * thin),
        (found_boxes_xyxy_px, _FOUND_COLOUR, thin),
    )
    scale, left, top = _fitted(plane.shape[:2], size_px)
    for boxes, colour, width in shown:
        for box in () if boxes is None else boxes:
            _draw_box(rgb, box * scale + [left, top] * 2, colour, thick=width)
    return rgb


def _slice_of(image: np.ndarray, mask: np.ndarray | None) -> int:
    if mask is not None and mask.any():
        return int(np.argmax((mask > 0).sum(axis=(1, 2))))
    return int(image.shape[-3] // 2) if image.ndim >= 3 else 0


def _outline(inside: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a region that lie at most `width` from its outside."""
    core = inside
    for _ in range(width):
        wider = core
        for axis in (0, 1):
            for step in (-1, 1):
                wider = wider & np.roll(core, step, axis=axis)
        core = wider
    return np.asarray(inside & ~core)


def example_plane(image: np.ndarray) -> np.ndarray:
    """Return the plane of an example's image that a viewer should show, as uint8 RGB."""
    plane, _ = _telling_plane(image, None)
    return _grey_or_colour(plane).astype(np.uint8)


def contact_sheet(tiles: Sequence[np.ndarray], *, columns: int = _COLUMNS) -> bytes:
    """Return a PNG of tiles in rows; no text, so nothing of a patient can be in it."""
    from PIL import Image

    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    side = tiles[0].shape[0] if tiles else _TILE_PX
    step = side + _GAP_PX
    sheet = np.full((rows * step + _GAP_PX, columns * step + _GAP_PX, 3), 32, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top = _GAP_PX + (number // columns) * step
        left = _GAP_PX + (number % columns) * step
        sheet[top : top + side, left : left + side] = tile
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, format="PNG")
    return out.getvalue()


def _telling_plane(
    image: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the plane with most mask, else the middle one; (H, W) or (H, W, 3)."""
    if mask is not None:
        mask = mask.reshape(mask.shape[-3:]) if mask.ndim > 3 else mask
    volume = image.ndim == 4 or (image.ndim == 3 and image.shape[0] not in (1, 2, 3))
    if not volume:
        plane = np.moveaxis(image[:3], 0, -1) if image.ndim == 3 and image.shape[0] == 3 else image
        return (plane[0] if plane.ndim == 3 and plane.shape[0] in (1, 2) else plane), mask
    stack = image[0] if image.ndim == 4 else image
    k = stack.shape[0] // 2
    if mask is not None and mask.any():
        k = int(np.argmax((mask > 0).sum(axis=(1, 2))))
    return stack[k], None if mask is None else mask[k]


def _grey_or_colour(plane: np.ndarray) -> np.ndarray:
    if plane.ndim == 3:
        return plane.astype(np.float32)
    values = plane.astype(np.float32)
    if plane.dtype == np.int16:  # HU: a fixed window shows a wrong rescale at once
        low, high = _SOFT_TISSUE_HU if np.median(values) > -400 else _WIDE_HU
    else:
        low, high = float(values.min()), float(values.max())
    scaled = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.repeat(scaled[..., None], 3, axis=-1)


def _draw_box(
    rgb: np.ndarray,
    box_xyxy_px: np.ndarray,
    colour: tuple[int, int, int] = _BOX_COLOUR,
    *,
    thick: int = 0,
) -> None:
    height, width = rgb.shape[:2]
    left, top, right, bottom = (round(float(v)) for v in box_xyxy_px[:4])
    left, right = np.clip([left, right - 1], 0, width - 1)
    top, bottom = np.clip([top, bottom - 1], 0, height - 1)
    thick = thick or max(1, max(height, width) // _TILE_PX)
    rgb[top : bottom + 1, left : left + thick] = colour
    rgb[top : bottom + 1, max(right - thick + 1, 0) : right + 1] = colour
    rgb[top : top + thick, left : right + 1] = colour
    rgb[max(bottom - thick + 1, 0) : bottom + 1, left : right + 1] = colour


def _fitted(shape: tuple[int, ...], size_px: int) -> tuple[float, int, int]:
    """Return the scale of an image in a square, and where its left and upper border lie there."""
    scale = size_px / max(shape)
    height, width = (max(1, round(side * scale)) for side in shape)
    return scale, (size_px - width) // 2, (size_px - height) // 2


def _fit(rgb: np.ndarray, size_px: int) -> np.ndarray:
    from PIL import Image

    scale, left, top = _fitted(rgb.shape[:2], size_px)
    height, width = rgb.shape[:2]
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(rgb).resize(shape, Image.Resampling.BILINEAR))
    tile = np.zeros((size_px, size_px, 3), dtype=np.uint8)
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile


def prediction_picture(
    image: Volume, mask: Volume | None, legend: str, lines: Sequence[str]
) -> np.ndarray:
    """Return (height, width, 3) uint8: the axial slice with most mask, its outline, a legend below.

    Args:
        image: a volume on any grid; it is shown as seen from the feet, front up.
        mask: on the same grid, or None: then the middle slice is shown.
        legend: what the outline is.
        lines: further lines of text; nothing of a patient.
    """
    values, spacing_mm = _axial(image)
    inside = None if mask is None else _axial(mask)[0]
    k = _slice_of(values, inside)
    rgb = _shown(_like_hu(values[k]), spacing_mm)
    if inside is not None:
        grown = _shown(
            np.repeat((inside[k] > 0)[..., None] * np.uint8(255), 3, axis=-1), spacing_mm
        )
        rgb[_outline(grown[..., 0] > 127, _PREVIEW_PX // _TILE_PX)] = _FOUND_COLOUR
    return np.concatenate([rgb, _legend(rgb.shape[1], legend, lines)])


def boxes_picture(
    image: Image2D, boxes_xyxy_px: np.ndarray, legend: str, lines: Sequence[str]
) -> np.ndarray:
    """Return (height, width, 3) uint8: an image in its true proportions with boxes on it.

    Args:
        image: grey or RGB; its own windows are not looked at.
        boxes_xyxy_px: (n, 4) in its pixels.
        legend: what the boxes are; empty leaves it out.
        lines: further lines of text; nothing of a patient.
    """
    plane = image.array if image.array.ndim == 3 else _like_hu(image.array)
    rgb = _shown(plane, image.spacing_yx_mm or (1.0, 1.0))
    height, width = image.array.shape[:2]
    scale = np.array([rgb.shape[1] / width, rgb.shape[0] / height] * 2)
    for box in boxes_xyxy_px:
        _draw_box(rgb, np.asarray(box) * scale, _FOUND_COLOUR, thick=_PREVIEW_PX // _TILE_PX)
    return np.concatenate([rgb, _legend(rgb.shape[1], legend, lines)])


def _axial(volume: Volume) -> tuple[np.ndarray, tuple[float, float]]:
    """Return a view with k up, j to the back, i to the left, and the plane's spacing in mm."""
    axes, signs = canonical_axes(volume.affine_lps)
    steps = tuple(slice(None, None, sign) for sign in signs)
    spacing = [volume.spacing_zyx_mm[axis] for axis in axes]
    return volume.array.transpose(axes)[steps], (spacing[1], spacing[2])


def _like_hu(plane: np.ndarray) -> np.ndarray:
    """Return values that can only be HU as int16, so that they are windowed as such."""
    is_hu = plane.dtype.kind in "if" and plane.min() >= _SURELY_HU and plane.min() < _AIR_HU
    return np.rint(np.clip(plane, -2048, 4095)).astype(np.int16) if is_hu else plane


def _shown(plane: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    """Return a plane as RGB in its true proportions, the longer side being the picture's."""
    from PIL import Image

    rgb = plane if plane.ndim == 3 else _grey_or_colour(plane).astype(np.uint8)
    size_mm = [max(n * mm, 1e-6) for n, mm in zip(plane.shape[:2], spacing_mm, strict=True)]
    scale = _PREVIEW_PX / max(size_mm)
    height, width = (max(1, round(size * scale)) for size in size_mm)
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))


def _legend(width: int, legend: str, lines: Sequence[str]) -> np.ndarray:
    """Return a dark strip with the outline's colour and the lines of text."""
    from PIL import Image, ImageDraw, ImageFont

    texts = [*([legend] if legend else []), *lines]
    strip = Image.new("RGB", (width, _LINE_PX * len(texts) + _GAP_PX), (24, 24, 24))
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=_TEXT_PX)
    for number, text in enumerate(texts):
        top, left = _LINE_PX * number + _GAP_PX, 2 * _GAP_PX
        if legend and number == 0:
            draw.rectangle((left, top + 3, left + 12, top + 15), outline=_FOUND_COLOUR, width=2)
            left += 22
        draw.text((left, top), text, fill=(235, 235, 235), font=font)
    return np.array(strip)
