"""Two-dimensional resizes against torch and Pillow, and boxes that follow."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medray import boxes
from medray.preprocess.planar import flip_sides, letterbox, pad_sides, resize_image


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, shape).astype(np.uint16)


@pytest.mark.parametrize("shape", [(30, 20), (60, 40), (45, 25), (120, 90)])
def test_plain_resize_equals_torch(shape):
    image = noise(60, 40)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image.astype(np.float64))[None, None], shape, mode="bilinear"
    )[0, 0].numpy()
    assert np.allclose(resize_image(image, shape), expected, atol=1e-3)


def test_strong_shrinking_equals_pillow():
    image = noise(300, 200).astype(np.float32)
    expected = np.asarray(Image.fromarray(image).resize((40, 60), Image.Resampling.BILINEAR))
    assert np.allclose(resize_image(image, (60, 40)), expected, atol=1e-2)


def test_colour_is_three_grey_images():
    image = noise(30, 40, 3)
    out = resize_image(image, (17, 90))
    for channel in range(3):
        assert np.array_equal(out[..., channel], resize_image(image[..., channel], (17, 90)))


def test_nearest_keeps_values_and_dtype():
    out = resize_image(noise(30, 40) % 3, (7, 50), order="nearest")
    assert out.dtype == np.uint16
    assert set(np.unique(out)) <= {0, 1, 2}


def test_the_same_size_is_exact():
    assert np.array_equal(resize_image(noise(30, 40), (30, 40)), noise(30, 40))


def test_a_size_of_nothing_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="shape_yx must be positive"):
        resize_image(noise(3, 3), (0, 3))


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (64, 64), (1, 300), (301, 299)])
@pytest.mark.parametrize("canvas", [(64, 64), (1024, 512), (96, 160)])
def test_letterbox_keeps_the_aspect_and_says_where(size, canvas):
    image = noise(*size) + 1.0
    out, placement = letterbox(image, canvas, fill=-1)
    assert out.shape == canvas
    top, left = placement.offset_yx_px
    height, width = (round(s * f) for s, f in zip(size, placement.scale_yx, strict=True))
    assert (out[top : top + height, left : left + width] > 0).all()
    assert (out > 0).sum() == height * width
    assert height == canvas[0] or width == canvas[1]
    ratio = min(canvas[0] / size[0], canvas[1] / size[1])
    assert abs(height - size[0] * ratio) <= 1
    assert abs(width - size[1] * ratio) <= 1
    assert 0 <= canvas[0] - height - 2 * top <= 1
    assert 0 <= canvas[1] - width - 2 * left <= 1


def test_letterbox_may_leave_small_images():
    out, placement = letterbox(noise(10, 20), (64, 64), enlarge=False)
    assert placement.scale_yx == (1, 1)
    assert np.array_equal(out[27:37, 22:42], noise(10, 20))


def test_letterbox_of_colour():
    out, _ = letterbox(noise(10, 20, 3), (64, 64))
    assert out.shape == (64, 64, 3)


def test_boxes_find_their_pixels_on_the_canvas():
    image = np.zeros((200, 120), np.uint8)
    image[40:80, 30:90] = 200
    out, placement = letterbox(image, (64, 96))
    box = boxes.place_boxes(
        [[30, 40, 90, 80]], scale_yx=placement.scale_yx, offset_yx_px=placement.offset_yx_px
    )
    rows, columns = np.nonzero(out > 100)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(box[0] - found).max() <= 1
    back = boxes.restore_boxes(
        box, scale_yx=placement.scale_yx, offset_yx_px=placement.offset_yx_px
    )
    assert np.allclose(back, [[30, 40, 90, 80]])


@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 128), st.integers(8, 128))
def test_landmarks_return_from_the_canvas(height, width, new_height, new_width):
    _, placement = letterbox(np.zeros((height, width), np.uint8), (new_height, new_width))
    points = [[0, 0, width, height], [width / 3, height / 4, width / 2, height / 2]]
    options = {"scale_yx": placement.scale_yx, "offset_yx_px": placement.offset_yx_px}
    placed = boxes.place_boxes(points, **options)
    assert (placed >= 0).all()
    assert (placed[:, 2:] <= np.array([new_width, new_height]) + 1e-9).all()
    assert np.allclose(boxes.restore_boxes(placed, **options), points)


def test_pad_and_flip():
    image = noise(3, 4, 3)
    out = pad_sides(image, top=1, right=2, fill=7)
    assert out.shape == (4, 6, 3)
    assert (out[0] == 7).all()
    assert np.array_equal(out[1:, :4], image)
    assert np.array_equal(flip_sides(image), image[:, ::-1])
    torch.from_numpy(flip_sides(image.astype(np.int32)))  # no negative strides
