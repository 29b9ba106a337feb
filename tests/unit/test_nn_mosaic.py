"""Boxes stay on what they mark, whatever is done to the frames."""

import colorsys

import numpy as np
import pytest
import torch

from medray.nn.colour import hsv_to_rgb, rgb_to_hsv
from medray.nn.mosaic import Boxed, MosaicAugmentation, augment_boxed

HEIGHT, WIDTH = 64, 96
STRENGTHS = {
    "off": {"mosaic": 0.0, "scale": 0.0, "translate": 0.0, "flip": 0.0},
    "flips": {"mosaic": 0.0, "scale": 0.0, "translate": 0.0, "flip": 1.0, "flip_rows": 1.0},
    "moves": {"mosaic": 0.0, "scale": 0.5, "translate": 0.2, "flip": 0.5, "flip_rows": 0.5},
    "mosaic": {"mosaic": 1.0},
    "some": {"mosaic": 0.5, "flip_rows": 0.5},
}


def frames(seed: int, num: int = 6) -> Boxed:
    """Return dark frames with a bright block in each box; labels count the boxes of the batch."""
    rng = np.random.default_rng(seed)
    image = np.zeros((num, 1, HEIGHT, WIDTH), dtype=np.int16)
    boxes, labels = np.zeros((num, 2, 4), dtype=np.float32), np.zeros((num, 2), dtype=np.int64)
    num_boxes = rng.integers(0, 3, num)
    for n in range(num):
        for m in range(num_boxes[n]):
            x, y = rng.integers(2, 30) + 44 * m, rng.integers(2, 40)
            w, h = rng.integers(8, 16), rng.integers(8, 20)
            boxes[n, m] = (x, y, x + w, y + h)
            labels[n, m] = 1 + 2 * n + m
            image[n, 0, y : y + h, x : x + w] = 100 * labels[n, m]
    return Boxed(torch.from_numpy(image), torch.from_numpy(boxes), torch.from_numpy(num_boxes),
                 torch.from_numpy(labels))  # fmt: skip


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("seed", [0, 1])
def test_boxes_stay_on_their_blocks(name: str, seed: int) -> None:
    batch = frames(seed)
    how = MosaicAugmentation(**STRENGTHS[name], fill=0.0)
    out = augment_boxed(batch, range(seed, seed + 6), how)
    assert out.image.dtype == torch.int16
    assert out.image.shape == batch.image.shape
    checked = 0
    for n in range(6):
        for m in range(int(out.num_boxes[n])):
            x1, y1, x2, y2 = out.boxes[n, m].tolist()
            assert 0 <= x1 < x2 <= WIDTH
            assert 0 <= y1 < y2 <= HEIGHT
            value = 100 * int(out.labels[n, m])
            block = (out.image[n, 0] - value).abs() <= 2
            rows, columns = block.any(dim=1).nonzero(), block.any(dim=0).nonzero()
            if min(x2 - x1, y2 - y1) < 6 or len(rows) == 0 or _twice(out.labels[n]):
                continue
            checked += 1
            found = [float(columns.min()), float(rows.min()),
                     float(columns.max()) + 1, float(rows.max()) + 1]  # fmt: skip
            assert found == pytest.approx([x1, y1, x2, y2], abs=1.6)
        assert not out.boxes[n, int(out.num_boxes[n]) :].any()
    assert checked >= 1


def _twice(labels: torch.Tensor) -> bool:
    """Tell whether a mosaic holds one frame twice."""
    used = labels[labels > 0].tolist()
    return len(set(used)) < len(used)


def test_nothing_changes_where_all_is_off() -> None:
    batch = frames(3)
    out = augment_boxed(batch, range(6), MosaicAugmentation(**STRENGTHS["off"]))
    assert torch.equal(out.image, batch.image)
    assert torch.equal(out.boxes, batch.boxes)
    assert torch.equal(out.labels, batch.labels)
    assert torch.equal(out.num_boxes, batch.num_boxes)


def test_flips_mirror_exactly() -> None:
    batch = frames(4)
    out = augment_boxed(batch, range(6), MosaicAugmentation(**STRENGTHS["flips"]))
    assert torch.equal(out.image, batch.image.flip(2, 3))
    first = batch.boxes[0, 0].tolist()
    if int(batch.num_boxes[0]):
        assert out.boxes[0, 0].tolist() == [
            WIDTH - first[2], HEIGHT - first[3], WIDTH - first[0], HEIGHT - first[1]
        ]  # fmt: skip


def test_an_example_is_decided_by_its_seed() -> None:
    batch = frames(5)
    how = MosaicAugmentation(mosaic=0.0, gain=0.2, shift=10.0)
    one = augment_boxed(batch, [7, 8, 9, 10, 11, 12], how)
    other = augment_boxed(batch, [7, 0, 0, 10, 11, 12], how)
    assert torch.equal(one.image[[0, 3, 4, 5]], other.image[[0, 3, 4, 5]])
    assert not torch.equal(one.image[1], other.image[1])
    alone = augment_boxed(
        Boxed(batch.image[:1], batch.boxes[:1], batch.num_boxes[:1], batch.labels[:1]), [7], how
    )
    assert torch.equal(alone.image[0], one.image[0])
    again = augment_boxed(batch, range(6), MosaicAugmentation())
    assert torch.equal(again.image, augment_boxed(batch, range(6), MosaicAugmentation()).image)


def test_a_mosaic_shows_four_frames_beside_one_another() -> None:
    """Four frames of one value each, not scaled: their shares of the frame add up to it."""
    image = torch.tensor([10, 20, 30, 40], dtype=torch.uint8).view(4, 1, 1, 1)
    none = torch.zeros(4, dtype=torch.int64)
    frame = image.expand(4, 1, 64, 64).contiguous()
    batch = Boxed(frame, torch.zeros(4, 1, 4), none, none[:, None])
    out = augment_boxed(batch, range(4), MosaicAugmentation(scale=0.0, translate=0.0))
    assert set(out.image.unique().tolist()) <= {10, 20, 30, 40, 114}
    assert max(len(out.image[n].unique()) for n in range(4)) >= 3
    assert out.num_boxes.tolist() == [0] * 4
    assert out.boxes.shape == (4, 1, 4)


def test_what_comes_from_beyond_has_the_fill_value() -> None:
    batch = frames(0)
    how = MosaicAugmentation(mosaic=0.0, scale=0.5, translate=0.0, flip=0.0, fill=-1024.0)
    out = augment_boxed(batch, [3, 4, 5, 6, 7, 8], how)
    assert (out.image == -1024).any()
    assert not ((out.image < 0) & (out.image > -1024)).any(), "no seam between frame and fill"


def test_colours_round_trip_and_are_pythons() -> None:
    torch.manual_seed(0)
    rgb = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    rgb[0, :, 0, 0] = 0.4
    hsv = rgb_to_hsv(rgb)
    assert torch.allclose(hsv_to_rgb(hsv), rgb)
    for y, x in ((0, 0), (3, 4), (7, 1)):
        expected = colorsys.rgb_to_hsv(*rgb[0, :, y, x].tolist())
        assert hsv[0, :, y, x].tolist() == pytest.approx(expected)


def test_colour_jitter_keeps_grey_grey_and_moves_hue() -> None:
    grey = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    red = grey.clone()
    red[:, 0] = 200
    empty = (torch.zeros(1, 1, 4), torch.zeros(1, dtype=torch.int64),
             torch.zeros(1, 1, dtype=torch.int64))  # fmt: skip
    how = MosaicAugmentation(**STRENGTHS["off"], hsv=(0.1, 0.5, 0.0))
    still = augment_boxed(Boxed(grey, *empty), [1], how).image
    assert torch.equal(still, grey)
    moved = augment_boxed(Boxed(red, *empty), [1], how).image
    assert moved[0, 0, 0, 0] == 200
    assert not torch.equal(moved, red)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mosaic": 1.5}, r"mosaic, flip and flip_rows"),
        ({"scale": 1.0}, "scale, translate and gain"),
        ({"shift": -1.0}, "shift must be"),
    ],
)
def test_strengths_are_checked(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MosaicAugmentation(**settings)
