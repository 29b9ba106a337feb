"""The classical breast segmentation on drawn mammograms with a known outline."""

import numpy as np
import pytest
import SimpleITK as sitk

from medray.preprocess.breast import (
    breast_box,
    breast_mask,
    breast_side,
    otsu_threshold,
    remove_background,
)


def mammogram(
    height=600, width=400, *, side="left", noise=0.0, label=True
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a half ellipse at one side, with a bright marker in the corner; return image, mask."""
    rows, columns = np.mgrid[:height, :width]
    breast = ((rows - height / 2) / (0.4 * height)) ** 2 + (columns / (0.6 * width)) ** 2 <= 1
    image = np.where(breast, 400 + 300 * np.cos(columns / 40) ** 2, 0.0)
    image += np.random.default_rng(0).uniform(0, noise, image.shape)
    if label:
        image[20:45, width - 60 : width - 20] = 1000
    if side == "right":
        image, breast = image[:, ::-1], breast[:, ::-1]
    return np.rint(image).astype(np.uint16), breast


def dice(first, second) -> float:
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [(600, 400), (1500, 1130), (2304, 1728)])
def test_the_outline_is_found_without_the_marker(side, size):
    image, truth = mammogram(*size, side=side)
    mask = breast_mask(image)
    assert mask.shape == image.shape
    assert dice(mask, truth) > 0.97
    marker = (slice(20, 45), slice(-60, -20)) if side == "left" else (slice(20, 45), slice(20, 60))
    assert not mask[marker].any()
    assert breast_side(image) == side


def test_a_noisy_background_is_told_by_otsu():
    image, truth = mammogram(noise=60)
    assert (image > image.min() + np.ptp(image) / 255).mean() > 0.5
    image = image + np.uint16(30)
    image[:, 390:] = 0  # black frame of the film: the range begins below the background
    assert dice(breast_mask(image), truth) > 0.95


def test_the_box_holds_the_breast():
    image, truth = mammogram()
    rows, columns = np.nonzero(truth)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(breast_box(image) - expected).max() <= 12


def test_background_becomes_black_and_the_breast_stays():
    image, truth = mammogram(noise=3)
    out = remove_background(image)
    mask = breast_mask(image)
    assert out.dtype == image.dtype
    assert np.array_equal(out[mask], image[mask])
    assert (out[~mask] == image.min()).all()
    assert (out[:50, -100:] == image.min()).all()
    assert dice(mask, truth) > 0.95


def test_holes_are_filled():
    image, _ = mammogram()
    image[290:310, 60:80] = 0
    assert breast_mask(image)[300, 70]


@pytest.mark.parametrize("value", [0, 500])
def test_an_image_without_a_breast_is_kept_whole(value):
    image = np.full((200, 100), value, np.uint16)
    assert breast_mask(image).all()
    assert breast_box(image).tolist() == [0, 0, 100, 200]


def test_otsu_equals_itk():
    values = np.concatenate(
        [
            np.random.default_rng(0).normal(100, 20, 5000),
            np.random.default_rng(1).normal(600, 80, 3000),
        ]
    ).reshape(80, 100)
    peer = sitk.OtsuThresholdImageFilter()
    peer.SetNumberOfHistogramBins(256)
    peer.Execute(sitk.GetImageFromArray(values.astype(np.float32)))
    ours = otsu_threshold(values.astype(np.float32))
    bin_width = np.ptp(values) / 256
    # Between the classes every bin is empty, and all thresholds there are equally good.
    assert np.mean((values > ours) != (values > peer.GetThreshold())) < 0.002
    assert abs(ours - peer.GetThreshold()) < 60 * bin_width


def test_otsu_equals_a_slow_search():
    values = np.random.default_rng(2).uniform(0, 1, 50_000) ** 2
    counts, edges = np.histogram(values, bins=256)
    centers = (edges[:-1] + edges[1:]) / 2
    best = max(
        range(255),
        key=lambda cut: (
            counts[: cut + 1].sum() * counts[cut + 1 :].sum()
            * (np.average(centers[: cut + 1], weights=counts[: cut + 1] + 1e-12)
               - np.average(centers[cut + 1 :], weights=counts[cut + 1 :] + 1e-12)) ** 2
        ),
    )  # fmt: skip
    assert otsu_threshold(values) == pytest.approx(edges[best + 1])
    assert otsu_threshold(np.full(5, 3)) == 3


def test_side_by_hand():
    image = np.zeros((10, 20))
    image[:, 18:] = 1
    assert breast_side(image) == "right"
    assert breast_side(image[:, ::-1]) == "left"
    assert breast_side(np.zeros((10, 20))) == "right"


def test_real_mammograms_have_a_breast(real_data):
    from medray.formats import read_image

    paths = sorted((real_data / "mammo/monai_breast_density").rglob("*.jpg"))
    for path in paths[::2]:
        image = read_image(path.read_bytes()).array
        image = image if image.ndim == 2 else image[..., 0]
        share = breast_mask(image).mean()
        assert 0.05 < share < 0.9
