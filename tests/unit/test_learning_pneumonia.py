"""How pneumonia_detection learns: draws, steps, rows, the challenge's measure, answers."""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch

from medray.boxes import box_iou
from medray.config import override
from medray.engine.learning_rate import LearningRate
from medray.errors import DataError
from medray.metrics.box_matching import box_row
from medray.metrics.challenge_map import (
    CHALLENGE_LEVELS,
    best_submission,
    challenge_hits,
    challenge_map,
)
from medray.nn.foreign_weights import load_detector_weights
from medray.tasks import get_recipe

RECIPE = get_recipe("pneumonia_detection")
LEARNING = RECIPE.learning
TINY = dataclasses.replace(
    RECIPE.tiny_hparams,
    size=64,
    width=8,
    channels=16,
    hidden=16,
    anchors_per_image=64,
    rois_per_image=32,
)
BOXES = [[[8.0, 10, 30, 28], [36, 30, 60, 58]], [], [[20, 20, 44, 50]], []]


def examples(*, compat="none", side=64):
    rng = np.random.default_rng(0)
    found = []
    for true_boxes in BOXES:
        boxes = true_boxes
        image = rng.integers(20, 60, (1, side, side)).astype(np.uint8)
        for x1, y1, x2, y2 in boxes:
            image[0, int(y1) : int(y2), int(x1) : int(x2)] += 150
        labels = [0] * len(boxes)
        if not true_boxes and compat != "none":
            boxes, labels = [[0, 0, side - 1, side - 1]], [int(compat == "whole_image")]
        arrays = {
            "image": image,
            "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
            "box_labels": np.array(labels, dtype=np.int64),
        }
        found.append(arrays)
    return found


def batch_of(*, compat="none", side=64):
    arrays = LEARNING.collate(examples(compat=compat, side=side))
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {**batch, "label": torch.tensor([1, 0, 1, 0])}


def loss_of(network, batch, hp):
    outputs = network(LEARNING.inputs(batch, hp))
    return LEARNING.loss_value(LEARNING.loss_sums(outputs, batch, hp), hp)


VARIANTS = [(), ("gate=head",), ("compat=whole_image",), ("norm=batch",)]


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_loss_falls_on_one_repeated_batch(settings):
    hp = override(TINY, ["lr=0.01", *settings])
    torch.manual_seed(0)
    network = LEARNING.model(hp).train()
    batch = LEARNING.augment(batch_of(compat=hp.compat), [1, 2, 3, 4], hp)
    optimizer, losses = LEARNING.optimizer(network, hp), []
    for _ in range(10):
        loss = loss_of(network, batch, hp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert min(losses[-3:]) < 0.8 * losses[0]


@pytest.mark.parametrize("compat", ["none", "original"])
def test_two_steps_of_the_full_network(compat):
    hp = dataclasses.replace(RECIPE.hparams, shown_px=64, proposals=50, compat=compat)
    hp = dataclasses.replace(hp, norm="frozen_batch") if compat == "original" else hp
    torch.manual_seed(0)
    network = LEARNING.model(hp).train()
    batch = LEARNING.augment(batch_of(compat=compat), [1, 2, 3, 4], hp)
    batch = {name: tensor[:2] for name, tensor in batch.items()}
    optimizer = LEARNING.optimizer(network, hp)
    before = [p.detach().clone() for p in network.roi_heads.box_predictor.parameters()]
    for _ in range(2):
        loss = loss_of(network, batch, hp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    after = list(network.roi_heads.box_predictor.parameters())
    assert not any(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_two_workers_are_one_with_the_doubled_batch():
    hp = dataclasses.replace(TINY, gate="head")
    torch.manual_seed(0)
    network = LEARNING.model(hp).train()
    batch = LEARNING.augment(batch_of(), [1, 2, 3, 4], hp)

    def sums(part):
        return LEARNING.loss_sums(network(LEARNING.inputs(part, hp)), part, hp)

    halves = [{n: t[at] for n, t in batch.items()} for at in (slice(0, 2), slice(2, 4))]
    whole = LEARNING.loss_value(sums(batch), hp)
    parts = LEARNING.loss_value(sums(halves[0]) + sums(halves[1]), hp)
    assert float(whole.detach()) == pytest.approx(float(parts.detach()), rel=1e-4)


@pytest.mark.parametrize("settings", VARIANTS[:3], ids=" ".join)
def test_evaluation_repeats_and_rows_are_plain(settings):
    hp = override(TINY, list(settings))
    torch.manual_seed(0)
    network, batch = LEARNING.model(hp).eval(), batch_of(compat=hp.compat)
    found = []
    for _ in range(2):
        with torch.no_grad():
            outputs = network(LEARNING.inputs(batch, hp))
            assert torch.isfinite(LEARNING.loss_sums(outputs, batch, hp)).all()
            found.append(LEARNING.measure(LEARNING.probabilities(outputs, hp), batch, hp))
    assert found[0] == found[1]
    json.dumps(found[0], allow_nan=False)
    assert [len(row["true_boxes_xyxy"]) for row in found[0]] == [2, 0, 1, 0]
    rows = [{"key": str(n), "patient_id": str(n), **row} for n, row in enumerate(found[0])]
    chosen = LEARNING.choose(rows)
    numbers = LEARNING.metrics(rows, chosen)
    assert LEARNING.objective.metric in numbers
    assert set(LEARNING.baseline(rows, [0, 1])) == set(numbers)
    alone = LEARNING.collate([{"image": one["image"]} for one in examples()])
    assert set(alone) == {"image"}
    alone = {"image": torch.from_numpy(alone["image"]), "label": batch["label"]}
    with torch.no_grad():
        outputs = network(LEARNING.inputs(alone, hp))
    assert "sums" not in outputs
    assert LEARNING.measure(LEARNING.probabilities(outputs, hp), alone, hp)
    one = {n: t[:1] for n, t in batch.items() if n != "num_boxes"}
    probs = {n: t[:1] for n, t in LEARNING.probabilities(outputs, hp).items()}
    assert len(LEARNING.measure(probs, one, hp)[0]["true_boxes_xyxy"]) == 2


def test_whole_image_boxes_of_the_original_are_no_truth():
    hp = override(TINY, ["compat=original"])
    batch = batch_of(compat="original")
    probs = {
        "boxes": batch["boxes"], "scores": torch.ones(4, 2), "classes": torch.zeros(4, 2),
        "image": torch.ones(4, 1),
    }  # fmt: skip
    rows = LEARNING.measure(probs, batch, hp)
    assert [len(row["true_boxes_xyxy"]) for row in rows] == [2, 0, 1, 0]


def test_an_epoch_has_as_many_ill_as_healthy_images():
    cases = [{"label": int(n % 4 == 0), "num_boxes": 0} for n in range(40)]
    drawn = LEARNING.sampler(cases, 0, TINY)
    assert len(drawn) == len(set(drawn)) == 20
    assert sum(cases[n]["label"] for n in drawn) == 10
    assert drawn == LEARNING.sampler(cases, 0, TINY)
    assert sorted(drawn) != sorted(LEARNING.sampler(cases, 1, TINY))
    more = LEARNING.sampler(cases, 0, dataclasses.replace(TINY, per_class=25))
    times = np.bincount(more, minlength=40)
    assert len(more) == 50
    assert set(times[::4].tolist()) == {2, 3}
    unlabelled = [{"label": -1, "num_boxes": n % 2} for n in range(6)]
    assert sorted(LEARNING.sampler(unlabelled, 0, TINY)) == list(range(6))
    healthy = [{"label": 0, "num_boxes": 0}] * 3
    assert sorted(LEARNING.sampler(healthy, 0, TINY)) == [0, 1, 2]


def test_the_rate_warms_up_and_falls_as_given():
    plan = LearningRate(
        schedule=LEARNING.schedule(RECIPE.hparams),
        objective=LEARNING.objective,
        num_steps=500,
        base_lrs=(0.005,),
    )
    assert plan.rates(0, 0)[0] == pytest.approx(5e-6)
    assert plan.rates(99, 0)[0] == pytest.approx(0.005)
    assert plan.rates(299, 2)[0] == pytest.approx(0.005)
    assert plan.rates(300, 3)[0] == pytest.approx(0.0005)


def published_value(images, threshold):
    """The challenge's rule, image by image, box by box."""
    values = []
    for boxes, scores, truth in images:
        kept = [b for s, b in sorted(zip(scores, boxes, strict=True), key=lambda p: -p[0])
                if s >= threshold]  # fmt: skip
        if not len(truth) and not kept:
            continue
        precisions = []
        for level in CHALLENGE_LEVELS:
            free, right = list(range(len(truth))), 0
            for box in kept:
                overlaps = [(box_iou(np.array([box]), truth[[n]])[0, 0], n) for n in free]
                if overlaps and max(overlaps)[0] >= level:
                    free.remove(max(overlaps)[1])
                    right += 1
            precisions.append(right / (len(kept) + len(truth) - right))
        values.append(np.mean(precisions))
    return float(np.mean(values)) if values else float("nan")


def random_images(count=30, seed=0):
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        corners = rng.uniform(0, 60, (number % 4, 2))
        truth = np.concatenate([corners, corners + rng.uniform(10, 40, corners.shape)], axis=1)
        near = truth + rng.normal(0, 4, truth.shape)
        noise = rng.uniform(0, 50, (int(rng.integers(0, 3)), 2))
        boxes = np.concatenate([near, np.concatenate([noise, noise + 20], axis=1)])
        images.append((boxes, rng.random(len(boxes)).round(3), truth))
    return images


def rows_of(images):
    rows = []
    for number, (boxes, scores, truth) in enumerate(images):
        row = box_row(boxes, scores, truth)
        kept = np.array(row["boxes_xyxy"]).reshape(-1, 4)
        row["hits_challenge"] = challenge_hits(kept, truth)
        row["image_score"] = max([0.0, *row["box_scores"]])
        rows.append({"key": str(number), "patient_id": str(number), **row})
    return rows


def test_the_challenges_measure_is_the_published_rule():
    images = random_images()
    rows = rows_of(images)
    for threshold in (0.01, 0.3, 0.7, 1.1):
        wanted = published_value(images, threshold)
        assert challenge_map(rows, threshold=threshold) == pytest.approx(wanted, abs=1e-9)
    nothing = rows_of([(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 4)))])
    assert np.isnan(challenge_map(nothing, threshold=0.5))
    false = rows_of([(np.array([[0, 0, 5, 5.0]]), np.array([0.9]), np.zeros((0, 4)))])
    assert challenge_map(false, threshold=0.5) == 0.0
    assert np.isnan(challenge_map(false, threshold=0.5, gate=0.95))
    assert best_submission(nothing, with_gate=True).threshold == 0.5


def test_a_gate_is_chosen_where_it_helps():
    box = np.array([[10.0, 10, 30, 30], [50, 50, 60, 60]])
    ill = [(box, np.array([0.9, 0.4]), box)] * 3
    healthy = [(box[:1], np.array([0.6]), np.zeros((0, 4)))] * 3
    rows = rows_of(ill + healthy)
    open_gate = best_submission(rows, with_gate=False)
    gated = best_submission(rows, with_gate=True)
    assert gated.value == 1.0 > open_gate.value
    assert gated.threshold == pytest.approx(0.4)
    assert 0.6 < gated.gate < 0.9
    inference = {"threshold": gated.threshold, "gate": gated.gate}
    numbers = LEARNING.metrics(rows, inference)
    assert numbers["challenge_map"] == numbers["f1"] == numbers["image_auroc"] == 1.0
    assert LEARNING.choose(rows) == inference


def test_numbers_of_a_hundred_rows_are_fast():
    rows = rows_of(random_images(100))
    LEARNING.metrics(rows, {"threshold": 0.3, "gate": 0.2})
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        LEARNING.metrics(rows, {"threshold": 0.3, "gate": 0.2})
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.03


FACTS = {"meta": {"scale_yx": [0.5, 0.5], "offset_yx_px": [4, 0], "original_shape": [112, 128]}}
PROBS = {
    "boxes": np.array([[10.0, 14, 30, 34], [2, 8, 60, 60], [0, 0, 0, 0]]),
    "scores": np.array([0.8, 0.3, 0.0]),
    "classes": np.array([0, 0, 0]),
    "image": np.array([0.8]),
}


def test_answers_are_boxes_of_the_original_image():
    found = LEARNING.decode(PROBS, FACTS, TINY, {"threshold": 0.5, "gate": 0.7})
    assert found.boxes_xyxy_px.tolist() == [[20.0, 20.0, 60.0, 60.0]]
    assert (found.label, found.score, found.box_labels) == (0, 0.8, (0,))
    shut = LEARNING.decode(PROBS, FACTS, TINY, {"threshold": 0.5, "gate": 0.9})
    assert shut.label == -1
    assert len(shut.boxes_xyxy_px) == 0


def test_a_healthy_answer_is_the_whole_image_where_that_is_the_convention():
    hp = override(TINY, ["compat=whole_image"])
    assert RECIPE.class_names_of(hp) == ("pneumonia", "normal")
    found = LEARNING.decode(PROBS, FACTS, hp, {"threshold": 0.9})
    assert found.boxes_xyxy_px.tolist() == [[0.0, 0.0, 128.0, 112.0]]
    assert (found.label, found.box_labels) == (1, (1,))
    assert found.box_scores[0] == pytest.approx(0.2)
    normal = {**PROBS, "classes": np.array([1, 1, 0])}
    assert LEARNING.decode(normal, FACTS, hp, {"threshold": 0.5}).label == 1


def test_augmentation_depends_on_the_seed_alone_and_the_original_has_none():
    batch, seeds = batch_of(), [11, 12, 13, 14]
    whole = LEARNING.augment(batch, seeds, TINY)
    single = LEARNING.augment({n: t[2:3] for n, t in batch.items()}, [13], TINY)
    for name in ("image", "boxes", "num_boxes", "seed"):
        assert torch.equal(whole[name][2:3], single[name]), name
    assert not torch.equal(whole["image"], batch["image"])
    hp = override(TINY, ["compat=original"])
    still = LEARNING.augment(batch, seeds, hp)
    assert all(torch.equal(still[name], batch[name]) for name in batch)


def test_weights_of_torchvision_are_taken_strictly():
    hp = override(TINY, ["norm=frozen_batch"])
    torch.manual_seed(1)
    network, donor = LEARNING.model(hp), LEARNING.model(hp)
    whole = dict(donor.state_dict())
    whole["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(91, 16)
    old = {name.replace("rpn.head.conv.0.0.", "rpn.head.conv."): t for name, t in whole.items()}
    report = load_detector_weights(network, old)
    assert report.left_out == ("roi_heads.box_predictor.cls_score.weight",)
    assert report.missing == report.left_out
    body = {
        name.removeprefix("backbone.body."): tensor
        for name, tensor in whole.items()
        if name.startswith("backbone.body.")
    }
    report = load_detector_weights(network, {**body, "fc.weight": torch.zeros(1000, 8)})
    assert report.left_out == ("fc.weight",)
    assert not [name for name in report.missing if name.startswith("backbone.body.")]
    del body["layer4.1.conv2.weight"]
    with pytest.raises(DataError, match=r"1 entries do not fit.*layer4\.1\.conv2"):
        load_detector_weights(network, body)
