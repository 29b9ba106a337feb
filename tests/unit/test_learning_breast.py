"""How breast_classification learns: draws, augmentation of images and boxes, steps, rows."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from medray.config import override
from medray.datasets.record import Sample
from medray.learning import Prediction
from medray.nn.augment2d import Augmentation2d, augment_images, augment_with_boxes
from medray.tasks import get_recipe
from medray.tasks.breast_classification.recipe import adopt_weights
from medray.volume import Image2D

RECIPE = get_recipe("breast_classification")
LEARNING = RECIPE.learning
TINY = RECIPE.tiny_hparams


def batch_of(count=4, *, height=64, width=32, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    image = rng.integers(9000, 20000, (count, 1, height, width))
    image[:, :, 20:40, 8:20] += labels[:, None, None, None] * 30000
    return {
        "image": torch.from_numpy(image.astype(np.uint16)),
        "side": torch.from_numpy((labels[:, None]).astype(np.uint8)),
        "site": torch.from_numpy(labels[:, None].astype(np.int32) + 1),
        "machine": torch.full((count, 1), -1, dtype=torch.int32),
        "label": torch.from_numpy(labels.astype(np.int64)),
    }


def named(rows):
    return [
        {"key": str(n), "patient_id": str(n // 2), "label": row["label"], **row}
        for n, row in enumerate(rows)
    ]


@pytest.mark.parametrize("settings", [(), ("loss=focal_batch",), ("compat=original",)])
def test_loss_falls_on_one_repeated_batch(settings):
    hp = override(TINY, ["lr=0.003", *settings])
    torch.manual_seed(0)
    network, batch = LEARNING.model(hp).train(), batch_of()
    optimizer, losses = LEARNING.optimizer(network, hp), []
    for _ in range(12):
        outputs = network(LEARNING.inputs(batch, hp))
        loss = LEARNING.loss_value(LEARNING.loss_sums(outputs, batch, hp), hp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert min(losses[-4:]) < 0.5 * losses[0]


def test_two_steps_of_the_full_network():
    torch.manual_seed(0)
    hp = dataclasses.replace(RECIPE.hparams, height=64, width=32)
    network, batch = LEARNING.model(hp).train(), batch_of(2)
    assert sum(p.numel() for p in network.parameters()) == 25_512_945 - 64 * 2 * 49
    optimizer = LEARNING.optimizer(network, hp)
    for _ in range(2):
        loss = LEARNING.loss_value(
            LEARNING.loss_sums(network(LEARNING.inputs(batch, hp)), batch, hp), hp
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)


@pytest.mark.parametrize("loss", ["focal", "focal_batch"])
def test_two_workers_are_one_with_the_doubled_batch(loss):
    hp = dataclasses.replace(TINY, loss=loss)
    torch.manual_seed(0)
    network, batch = LEARNING.model(hp).eval(), batch_of(6)

    def sums(part):
        outputs = network(LEARNING.inputs(part, hp))
        return LEARNING.loss_sums(outputs, part, hp)

    halves = [{n: t[at] for n, t in batch.items()} for at in (slice(0, 2), slice(2, 6))]
    whole = LEARNING.loss_value(sums(batch), hp)
    parts = LEARNING.loss_value(sums(halves[0]) + sums(halves[1]), hp)
    assert float(whole.detach()) == pytest.approx(float(parts.detach()), rel=1e-6)


def test_rows_are_plain_and_numbers_match_the_baseline():
    torch.manual_seed(0)
    network, batch = LEARNING.model(TINY).eval(), batch_of()
    with torch.no_grad():
        probs = LEARNING.probabilities(network(LEARNING.inputs(batch, TINY)), TINY)
    rows = named(LEARNING.measure(probs, batch, TINY))
    json.dumps(rows, allow_nan=False)
    assert [row["laterality"] for row in rows] == ["L", "R", "L", "R"]
    assert [row["site"] for row in rows] == [1, 2, 1, 2]
    chosen = LEARNING.choose(rows)
    assert set(chosen) == {"aggregation", "threshold"}
    numbers = LEARNING.metrics(rows, chosen)
    assert LEARNING.objective.metric in numbers
    assert "pf1_site_2" in numbers
    baseline = LEARNING.baseline(rows, [0, 1])
    assert set(baseline) == set(numbers)
    assert baseline["pf1"] == baseline["pf1_raw"] == pytest.approx(2 * 0.5 / 1.5)
    one = {name: tensor[1].numpy() for name, tensor in probs.items()}
    found = LEARNING.decode(one, {}, TINY, {"threshold": 0.0})
    assert isinstance(found, Prediction)
    assert (found.label, found.score) == (1, found.scores[1])
    without = {n: batch[n] for n in ("image", "label")}
    assert LEARNING.measure(probs, without, TINY)[0]["laterality"] == ""


def test_positives_are_drawn_until_they_are_half():
    cases = [{"label": int(n % 10 == 0), "key": str(n)} for n in range(95)]
    hp = dataclasses.replace(RECIPE.hparams, seed=3)
    drawn = LEARNING.sampler(cases, 0, hp)
    assert drawn == LEARNING.sampler(cases, 0, hp)
    times = np.bincount(drawn, minlength=95)
    positive = np.array([case["label"] == 1 for case in cases])
    assert times[~positive].tolist() == [1] * 85
    assert times[positive].sum() == 85
    assert times[positive].max() - times[positive].min() <= 1
    assert len(LEARNING.sampler(cases, 1, hp)) == len(drawn)
    assert LEARNING.sampler(cases, 1, hp) != drawn
    few = dataclasses.replace(hp, positive_copies=3)
    assert np.bincount(LEARNING.sampler(cases, 0, few))[positive].tolist() == [3] * 10
    original = dataclasses.replace(hp, compat="original")
    assert np.bincount(LEARNING.sampler(cases, 0, original))[positive].tolist() == [11] * 10
    for label in (0, 1):
        same = [{"label": label}] * 4
        assert sorted(LEARNING.sampler(same, 0, hp)) == [0, 1, 2, 3]


def test_augmentation_depends_on_the_seed_alone():
    batch, seeds = batch_of(), [11, 12, 13, 14]
    hp = dataclasses.replace(TINY, flip=0.5)
    whole = LEARNING.augment(batch, seeds, hp)["image"]
    single = LEARNING.augment({n: t[2:3] for n, t in batch.items()}, [13], hp)["image"]
    assert whole.dtype == torch.uint16
    assert torch.equal(whole[2:3].int(), single.int())
    assert not torch.equal(whole.int(), batch["image"].int())
    still = LEARNING.augment(batch, seeds, dataclasses.replace(TINY, augment="none"))["image"]
    assert torch.equal(still.int(), batch["image"].int())


def boxed(box, *, side=64):
    image = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[0, 0, y1:y2, x1:x2] = 200
    boxes = torch.tensor([[box, [0, 0, 0, 0]]], dtype=torch.float32)
    return image, boxes, torch.tensor([[1, 0]]), torch.tensor([1])


@pytest.mark.parametrize("seed", range(6))
def test_boxes_move_with_their_image(seed):
    image, boxes, labels, num = boxed((20, 14, 41, 27))
    how = Augmentation2d(
        flip=0.5, flip_vertical=0.5, affine=1.0, scale=0.2, shift_y=0.2, shift_x=0.2
    )
    moved = augment_with_boxes(image, boxes, labels, num, seeds=[seed], how=how)
    ys, xs = np.nonzero(moved.images[0, 0].numpy() > 100)
    drawn = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert moved.num_boxes.tolist() == [1]
    assert moved.boxes[0, 0].tolist() == pytest.approx(drawn, abs=1.0)
    assert moved.labels.tolist() == [[1, 0]]


def test_a_turned_ellipse_keeps_to_its_box_and_a_lost_box_goes():
    side = 96
    y, x = np.mgrid[:side, :side] + 0.5
    image = (((x - 48) / 30) ** 2 + ((y - 44) / 12) ** 2 < 1).astype(np.uint8) * 200
    boxes = torch.tensor([[[18.0, 32, 78, 56], [0, 0, 4, 4]]])
    how = Augmentation2d(affine=1.0, rotate_deg=40.0)
    for seed in range(4):
        moved = augment_with_boxes(
            torch.from_numpy(image)[None, None], boxes, torch.tensor([[0, 0]]), torch.tensor([2]),
            seeds=[seed], how=how,
        )  # fmt: skip
        ys, xs = np.nonzero(moved.images[0, 0].numpy() > 100)
        drawn = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert moved.boxes[0, 0].tolist() == pytest.approx(drawn, abs=1.5)
    image, boxes, labels, num = boxed((0, 0, 6, 6))
    far = Augmentation2d(affine=1.0, shift_x=0.9)
    gone = [
        augment_with_boxes(image, boxes, labels, num, seeds=[seed], how=far) for seed in range(8)
    ]
    assert {int(one.num_boxes) for one in gone} == {0, 1}
    assert all(not one.boxes.any() for one in gone if not int(one.num_boxes))


def test_strengths_of_zero_change_nothing_and_tones_leave_the_background():
    image, *_ = boxed((20, 14, 41, 27))
    assert torch.equal(augment_images(image, [5], Augmentation2d()), image)
    toned = augment_images(image, [5], Augmentation2d(tone=1.0, gamma=1.0))
    assert not torch.equal(toned, image)
    assert torch.equal(toned == 0, image == 0)
    full = torch.full((1, 1, 64, 64), 255, dtype=torch.uint8)
    holes = [augment_images(full, [s], Augmentation2d(holes=1.0, hole_px=4)) for s in range(4)]
    assert len({int((one == 0).sum()) for one in holes}) > 1
    blurred = augment_images(image, [3], Augmentation2d(blur=1.0)).float()
    assert float(blurred.mean()) == pytest.approx(float(image.float().mean()), rel=0.02)
    with pytest.raises(ValueError, match="flip must lie"):
        Augmentation2d(flip=1.5)
    with pytest.raises(ValueError, match="scale must lie"):
        Augmentation2d(scale=1.0)


def test_a_box_of_the_breast_is_taken_before_the_breast_is_outlined():
    rng = np.random.default_rng(0)
    values = np.full((200, 160), 20.0, dtype=np.float32) + rng.random((200, 160))
    values[40:160, 0:70] = 900
    values[:, 150:] = 1500  # a bright border
    image = Image2D(array=values, meta={"bits_stored": 12})
    box = np.array([[0.0, 30, 90, 170]])
    with_box = RECIPE.prepare(Sample(image=image, boxes_xyxy_px=box, meta={}), TINY)
    crop = with_box.meta["crop_xyxy_px"]
    assert crop[0] == 0
    assert 30 <= crop[1] <= 42
    assert 68 <= crop[2] <= 90
    assert with_box.arrays["side"].tolist() == [255]
    assert with_box.arrays["site"].tolist() == [-1]
    nothing = Sample(image=image, boxes_xyxy_px=np.zeros((0, 4)), meta={"laterality": "R"})
    assert RECIPE.prepare(nothing, TINY).arrays["side"].tolist() == [1]


def test_weights_of_a_plain_resnext_are_taken_as_far_as_they_go():
    network = LEARNING.model(TINY)
    report = adopt_weights(network, {"conv1.weight": torch.ones(16, 3, 7, 7)})
    assert report.loaded == ("layer0.conv1.weight",)
    assert float(network.layer0.conv1.weight.detach()[0, 0, 0, 0]) == 3.0
