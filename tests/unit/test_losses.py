"""Losses against loops over voxels and examples; sums of parts make the whole batch's value."""

import math

import numpy as np
import pytest
import torch

from medray.losses.classification import binary_sums, cross_entropy_sums, mean_value
from medray.losses.segmentation import segmentation_sums, segmentation_value

NAMES = ("weighted_ce", "balanced_ce", "dice", "weighted_dice")


def batch(seed: int = 0, *, scale: float = 3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 2, 3, 4, 5, generator=generator) * scale
    mask = torch.randint(-1, 2, (4, 3, 4, 5), generator=generator)
    return logits, mask


def by_loops(name: str, logits, mask, k: float) -> float:
    """The formulas of the specification, voxel by voxel, in float64."""
    values = [
        (int(mask[b, i, j, m]), *(float(logits[b, c, i, j, m]) for c in (0, 1)))
        for b, i, j, m in np.ndindex(*mask.shape)
    ]
    number = len(values)
    num_fg = sum(y == 1 for y, _, _ in values)
    num_bg = sum(y == 0 for y, _, _ in values)
    w_fg, w_bg = {
        "weighted_ce": (k, 1.0),
        "balanced_ce": (1 - num_fg / number, 1 - num_bg / number),
        "dice": (1.0, 1.0),
        "weighted_dice": (k, 1.0),
    }[name]
    ce = product = predicted = true = 0.0
    for y, zero, one in values:
        if y == -1:
            continue
        p = 1 / (1 + math.exp(zero - one))
        w = w_fg if y == 1 else w_bg
        ce += w * -math.log(p if y == 1 else 1 - p)
        product += w * p * y
        predicted += w * p
        true += w * y
    if name.endswith("_ce"):
        return ce / number
    return 1 - (2 * product + 1) / (predicted + true + 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", [1.0, 7.0, 0.3])
def test_segmentation_against_loops(name, weight):
    logits, mask = batch()
    sums = segmentation_sums(name, logits, mask, weight=weight)
    assert sums.dtype == torch.float32
    assert sums.ndim == 1
    value = segmentation_value(name, sums, weight=weight)
    assert value.shape == ()
    assert value.item() == pytest.approx(by_loops(name, logits, mask, weight), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_batch_make_the_whole(name):
    logits, mask = batch()
    mask[0] = 0
    whole = segmentation_sums(name, logits, mask, weight=7.0)
    parts = [
        segmentation_sums(name, logits[part], mask[part], weight=7.0)
        for part in (slice(0, 1), slice(1, 4))
    ]
    value = segmentation_value(name, whole, weight=7.0)
    torch.testing.assert_close(segmentation_value(name, sum(parts), weight=7.0), value)
    mean = sum(segmentation_value(name, part, weight=7.0) for part in parts) / 2
    assert (mean - value).abs() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_workers_gradient_is_that_of_one_with_the_whole_batch(name):
    """Own sums with, the others' without a graph: no worker needs another's activations."""
    logits, mask = batch()
    whole = logits.clone().requires_grad_()
    sums = segmentation_sums(name, whole, mask, weight=7.0)
    segmentation_value(name, sums, weight=7.0).backward()
    for part in (slice(0, 1), slice(1, 4)):
        own = logits[part].clone().requires_grad_()
        mine = segmentation_sums(name, own, mask[part], weight=7.0)
        total = mine + (sums.detach() - mine.detach())
        segmentation_value(name, total, weight=7.0).backward()
        torch.testing.assert_close(own.grad, whole.grad[part], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_against_differences(name):
    """Central differences of the loops."""
    logits, mask = batch(1, scale=1.0)
    logits, mask = logits[:1, :, :2, :2, :2].clone().requires_grad_(), mask[:1, :2, :2, :2]
    mask = mask.clone()
    mask[0, 0, 0] = torch.tensor([-1, 1])
    value = segmentation_value(name, segmentation_sums(name, logits, mask, weight=7.0), weight=7.0)
    value.backward()
    exact = logits.detach().double()
    for place in [(0, 0, 0, 0, 0), (0, 0, 0, 0, 1), (0, 1, 0, 0, 1), (0, 1, 1, 1, 0)]:
        up, down = exact.clone(), exact.clone()
        up[place] += 1e-5
        down[place] -= 1e-5
        slope = (by_loops(name, up, mask, 7.0) - by_loops(name, down, mask, 7.0)) / 2e-5
        assert logits.grad[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)
    assert (logits.grad[0, :, 0, 0, 0] == 0).all()


def test_known_values():
    """Even logits: cross entropy ln 2; k = 7 on a quarter of the voxels: (7 + 3) / 4 ln 2."""
    logits, mask = torch.zeros(1, 2, 1, 2, 2), torch.tensor([[[[1, 0], [0, 0]]]])
    sums = segmentation_sums("weighted_ce", logits, mask, weight=7.0)
    assert segmentation_value("weighted_ce", sums).item() == pytest.approx(2.5 * math.log(2))
    sums = segmentation_sums("dice", logits, mask)
    assert sums.tolist() == [0.5, 2.0, 1.0]
    assert segmentation_value("dice", sums).item() == pytest.approx(1 - 2 / 4)
    perfect = torch.stack([1 - mask, mask], dim=1).float() * 200
    assert segmentation_value("dice", segmentation_sums("dice", perfect, mask)).item() == 1 - 3 / 3


def test_weighted_dice_of_hard_masks_trades_false_negatives():
    """2kTP / (2kTP + FP + k FN), up to the smoothing."""
    truth = torch.zeros(1, 1, 100, 100, dtype=torch.int64)
    truth[..., :40] = 1
    guess = torch.zeros_like(truth)
    guess[..., 10:60] = 1
    logits = torch.stack([1 - guess, guess], dim=1).float() * 100
    sums = segmentation_sums("weighted_dice", logits, truth)
    for k in (1.0, 7.0):
        expected = 1 - 2 * k * 3000 / (2 * k * 3000 + 2000 + k * 1000)
        value = segmentation_value("weighted_dice", sums, weight=k).item()
        assert value == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extreme_half_precision_logits_stay_finite(name, dtype):
    mask = torch.tensor([[[[1, 0, 1, 0, -1]]]])
    logits = torch.tensor([3e4, -3e4, -3e4, 3e4, 3e4]).to(dtype)
    logits = torch.stack([-logits, logits])[None, :, None, None].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        sums = segmentation_sums(name, logits, mask, weight=7.0)
        value = segmentation_value(name, sums, weight=7.0)
    assert sums.dtype == value.dtype == torch.float32
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_ignored_voxels(name):
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    sums = segmentation_sums(name, logits, torch.full((1, 2, 2, 2), -1))
    value = segmentation_value(name, sums)
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()
    empty = segmentation_sums(name, logits[:0], torch.zeros(0, 2, 2, 2, dtype=torch.int64))
    assert segmentation_value(name, empty).item() == 0


def test_masks_may_be_any_integers():
    logits, mask = batch()
    for kind in (torch.int8, torch.int32):
        sums = segmentation_sums("dice", logits, mask.to(kind))
        assert torch.equal(sums, segmentation_sums("dice", logits, mask))


def test_segmentation_mistakes_of_the_caller():
    logits, mask = batch()
    with pytest.raises(ValueError, match="one of weighted_ce, balanced_ce, dice, weighted_dice, g"):
        segmentation_sums("focal", logits, mask)
    with pytest.raises(ValueError, match="got 'focal'"):
        segmentation_value("focal", torch.zeros(2))
    with pytest.raises(ValueError, match=r"weight must be > 0, got 0"):
        segmentation_value("dice", torch.zeros(3), weight=0)
    with pytest.raises(ValueError, match=r"logits must be \(batch, 2, depth"):
        segmentation_sums("dice", logits[:, :1], mask)
    with pytest.raises(ValueError, match=r"mask must be \(batch, depth, height, width\) like"):
        segmentation_sums("dice", logits, mask[:, None])


def softmax(row):
    exponents = [math.exp(v - max(row)) for v in row]
    return [v / sum(exponents) for v in exponents]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [(), (0.466, 2.818, 2.0)])
def test_cross_entropy_against_loops(smoothing, weights):
    logits, labels = torch.randn(7, 3) * 3, torch.tensor([0, 1, 2, 2, -1, 0, 1])
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            target = [smoothing / 3 + (1 - smoothing) * (c == label) for c in range(3)]
            loss = -sum(t * math.log(p) for t, p in zip(target, softmax(row), strict=True))
            total += loss * (weights[label] if weights else 1.0)
    sums = cross_entropy_sums(logits, labels, class_weights=weights, label_smoothing=smoothing)
    assert sums[1].item() == 6
    assert mean_value(sums).item() == pytest.approx(total / 6, rel=1e-5)
    parts = [
        cross_entropy_sums(
            logits[part], labels[part], class_weights=weights, label_smoothing=smoothing
        )
        for part in (slice(0, 2), slice(2, 7))
    ]
    torch.testing.assert_close(mean_value(sum(parts)), mean_value(sums))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_binary_against_loops(smoothing, weight):
    logits, labels = torch.randn(6, 1) * 3, torch.tensor([0, 1, 1, 0, -1, 1])
    total = 0.0
    for (logit,), label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            p, y = 1 / (1 + math.exp(-logit)), label * (1 - smoothing) + smoothing / 2
            loss = -(y * math.log(p) + (1 - y) * math.log(1 - p))
            total += loss * (weight if label else 1)
    settings = {"positive_weight": weight, "label_smoothing": smoothing}
    sums = binary_sums(logits, labels, **settings)
    assert mean_value(sums).item() == pytest.approx(total / 5, rel=1e-5)
    parts = [binary_sums(logits[p], labels[p], **settings) for p in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(mean_value(sum(parts)), mean_value(sums))


def test_binary_is_two_class_cross_entropy():
    logits, labels = torch.randn(5, 1), torch.tensor([0, 1, 1, 0, 1])
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(
        binary_sums(logits, labels, positive_weight=3.0, label_smoothing=0.1),
        cross_entropy_sums(two, labels, class_weights=(1.0, 3.0), label_smoothing=0.1),
    )


def test_classification_gradients_against_differences():
    logits = torch.randn(4, 3, dtype=torch.float64) * 2
    labels = torch.tensor([2, 0, -1, 1])
    for loss, columns in (
        (lambda x: mean_value(cross_entropy_sums(x, labels, class_weights=(1, 2, 3))), 3),
        (lambda x: mean_value(binary_sums(x, labels.clamp(max=1), positive_weight=3.0)), 1),
    ):
        x = logits[:, :columns].clone().requires_grad_()
        loss(x).backward()
        for place in np.ndindex(4, columns):
            step = torch.zeros_like(x)
            step[place] = 0.01
            slope = (loss(x.detach() + step) - loss(x.detach() - step)).item() / 0.02
            assert x.grad[place].item() == pytest.approx(slope, abs=2e-4)
        assert (x.grad[2] == 0).all()


def test_classification_of_extreme_half_precision_logits():
    labels = torch.tensor([0, 1])
    logits = torch.tensor([[-6e4, 6e4], [6e4, -6e4]], dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        sums = cross_entropy_sums(logits, labels), binary_sums(logits[:, :1], 1 - labels)
    for value in sums:
        assert value.dtype == torch.float32
        assert mean_value(value).isfinite()


def test_no_labels_no_loss():
    none = torch.tensor([-1, -1])
    assert mean_value(cross_entropy_sums(torch.randn(2, 3), none)).item() == 0
    assert mean_value(binary_sums(torch.randn(2, 1), none)).item() == 0


def test_classification_mistakes_of_the_caller():
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"logits must be \(batch, classes\) and labels"):
        cross_entropy_sums(torch.randn(2, 3), labels[:1])
    with pytest.raises(ValueError, match=r"class_weights must be 3 numbers, got \(1.0, 2.0\)"):
        cross_entropy_sums(torch.randn(2, 3), labels, class_weights=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\), got 1"):
        cross_entropy_sums(torch.randn(2, 3), labels, label_smoothing=1)
    with pytest.raises(ValueError, match=r"logits must be \(batch, 1\) and labels \(batch,\), got"):
        binary_sums(torch.randn(2, 2), labels)
    with pytest.raises(ValueError, match="positive_weight must be > 0, got -1"):
        binary_sums(torch.randn(2, 1), labels, positive_weight=-1)
