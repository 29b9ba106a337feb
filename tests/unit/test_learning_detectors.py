"""How lung_detection and breast_roi learn, measure and decode."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from medray.config import override
from medray.datasets.record import Sample
from medray.errors import ConfigError
from medray.metrics.box_placing import boxes_of_original
from medray.metrics.box_rows import best_box_iou, one_box_rows
from medray.nn.yolo_weights import transfer
from medray.tasks import get_recipe
from medray.volume import Image2D

TASKS = ("lung_detection", "breast_roi")
SMALL = (
    "size=64",
    "width=0.125",
    "depth=0.1",
    "objectness_gain=1",
    "warmup_steps=0",
    "lr=0.003",
)
VARIANTS = [
    ("lung_detection",),
    ("lung_detection", "pixels=windows"),
    ("lung_detection", "stream=fused"),
    ("lung_detection", "compat=original", "optimizer=sgd", "lr=0.01"),
    ("breast_roi",),
    ("breast_roi", "optimizer=sgd", "lr=0.01"),
]


def task_of(name: str, *settings: str) -> tuple[Any, Any]:
    recipe = get_recipe(name)
    return recipe.learning, override(recipe.tiny_hparams, [*SMALL, *settings])


def examples_of(name: str, hp: Any, count: int = 4, *, seed: int = 0) -> list[dict]:
    """Return dark frames with a bright ellipse in each box; one frame has no box."""
    rng = np.random.default_rng(seed)
    grey = name == "breast_roi" or (hp.stream == "ct" and hp.pixels == "hu" and hp.compat == "none")
    hounsfield = name == "lung_detection" and grey
    examples = []
    for index in range(count):
        boxes = []
        image = rng.normal(0, 0.03, (hp.size, hp.size)) + 0.2
        for _ in range(index % 3):
            x, y = rng.integers(2, hp.size - 34, 2)
            w, h = rng.integers(14, 32, 2)
            boxes.append((x, y, x + w, y + h))
            rows, columns = np.mgrid[: hp.size, : hp.size]
            inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2
            image[inside < 1] = 0.8
        pixels = np.repeat(image[None], 1 if grey else 3, axis=0)
        examples.append(
            {
                "image": (1400 * pixels - 1000).astype(np.int16) if hounsfield
                else (255 * pixels).clip(0, 255).astype(np.uint8),
                "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
                "box_labels": np.zeros(len(boxes), dtype=np.int64),
            }
        )  # fmt: skip
    return examples


def batch_of(learning: Any, examples: list[dict]) -> dict[str, torch.Tensor]:
    arrays = learning.collate(examples)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return batch | {"label": torch.full((len(examples),), -1)}


def loss_of(learning: Any, hp: Any, network: torch.nn.Module, batch: Any) -> torch.Tensor:
    outputs = network(learning.inputs(batch, hp))
    return learning.loss_value(learning.loss_sums(outputs, batch, hp), hp)


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_loss_falls_on_one_repeated_batch(variant: tuple[str, ...]) -> None:
    learning, hp = task_of(*variant)
    torch.manual_seed(0)
    network = learning.model(hp).train()
    batch = batch_of(learning, examples_of(variant[0], hp))
    optimizer = learning.optimizer(network, hp)
    losses = []
    for _ in range(10):
        loss = loss_of(learning, hp, network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert min(losses[-3:]) < 0.95 * losses[0]


@pytest.mark.parametrize("task", TASKS)
def test_the_full_preset_makes_two_steps(task: str) -> None:
    """The published size s on small frames, with augmentation."""
    recipe = get_recipe(task)
    learning, hp = recipe.learning, dataclasses.replace(recipe.hparams, size=64)
    torch.manual_seed(0)
    network = learning.model(hp).train()
    missing_colours = 2 * 32 * 36 if task == "breast_roi" else 0
    assert sum(p.numel() for p in network.parameters()) == 7_022_326 - missing_colours
    batch = batch_of(learning, examples_of(task, hp))
    optimizer = learning.optimizer(network, hp)
    before = network.state_dict()["model.9.cv1.conv.weight"].clone()
    for step in range(2):
        changed = learning.augment(batch, range(4 * step, 4 * step + 4), hp)
        loss = loss_of(learning, hp, network, changed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert not torch.equal(network.state_dict()["model.9.cv1.conv.weight"], before)


@pytest.mark.parametrize("task", TASKS)
def test_two_workers_have_the_loss_of_one_with_the_whole_batch(task: str) -> None:
    learning, hp = task_of(task)
    torch.manual_seed(0)
    network = learning.model(hp).eval()
    examples = examples_of(task, hp, 6)
    whole = loss_of(learning, hp, network, batch_of(learning, examples))
    sums = []
    for part in (examples[:3], examples[3:]):
        batch = batch_of(learning, part)
        sums.append(learning.loss_sums(network(learning.inputs(batch, hp)), batch, hp))
    assert sums[0].dtype == torch.float32
    assert learning.loss_value(sums[0] + sums[1], hp).item() == pytest.approx(
        whole.item(), rel=1e-5
    )


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_plain_and_the_numbers_have_a_baseline(task: str) -> None:
    learning, hp = task_of(task)
    torch.manual_seed(0)
    network = learning.model(hp).eval()
    batch = batch_of(learning, examples_of(task, hp))
    found = []
    for _ in range(2):
        with torch.no_grad():
            probs = learning.probabilities(network(learning.inputs(batch, hp)), hp)
        assert probs["boxes"].shape == (4, hp.most_boxes, 4)
        assert probs["scores"].shape == probs["classes"].shape == (4, hp.most_boxes)
        assert all(value.dtype == torch.float32 for value in probs.values())
        found.append(learning.measure(probs, batch, hp))
    assert found[0] == found[1]
    json.dumps(found[0], allow_nan=False)
    assert [len(row["true_boxes_xyxy"]) for row in found[0]] == [0, 1, 2, 0]
    rows = [row | {"patient_id": str(n), "key": str(n)} for n, row in enumerate(found[0])]
    numbers = learning.metrics(rows, learning.choose(rows))
    assert learning.objective.metric in numbers
    assert set(learning.baseline(rows, [-1])) == set(numbers)


def _perfect(truth: np.ndarray, hp: Any) -> dict[str, np.ndarray]:
    boxes, scores = np.zeros((hp.most_boxes, 4), np.float32), np.zeros(hp.most_boxes, np.float32)
    boxes[: len(truth)], scores[: len(truth)] = truth, 0.9
    boxes[len(truth)], scores[len(truth)] = (1, 1, 5, 5), 0.2
    return {"boxes": boxes, "scores": scores, "classes": np.zeros(hp.most_boxes, np.float32)}


@pytest.mark.parametrize("task", TASKS)
def test_perfect_boxes_have_perfect_numbers(task: str) -> None:
    learning, hp = task_of(task)
    examples = examples_of(task, hp, 6)
    batch = batch_of(learning, examples)
    each = [_perfect(example["boxes"], hp) for example in examples]
    probs = {name: torch.from_numpy(np.stack([one[name] for one in each])) for name in each[0]}
    rows = learning.measure(probs, batch, hp)
    rows = [row | {"patient_id": str(n // 2), "key": str(n)} for n, row in enumerate(rows)]
    chosen = learning.choose(rows)
    assert 0.2 < chosen["threshold"] < 0.9
    numbers = learning.metrics(rows, chosen)
    assert [numbers["map50"], numbers["map50_95"]] == pytest.approx([0.995, 0.995])
    assert numbers["f1"] == 1.0
    assert numbers["false_positives"] == 0.0
    if task == "lung_detection":
        assert numbers["froc_slice_0.125"] == numbers["froc_patient"] == 1.0
    else:
        assert numbers["iou"] == pytest.approx(1.0)


def test_a_trivial_answer_is_one_box_in_each_image() -> None:
    learning, hp = task_of("breast_roi")
    examples = examples_of("breast_roi", hp, 6)
    batch = batch_of(learning, examples)
    nothing = {"boxes": torch.zeros(6, 2, 4), "scores": torch.zeros(6, 2),
               "classes": torch.zeros(6, 2)}  # fmt: skip
    rows = learning.measure(nothing, batch, hp)
    assert best_box_iou(rows) == 0.0
    trivial = one_box_rows(rows)
    assert all(len(row["boxes_xyxy"]) == 1 for row in trivial)
    assert 0 <= best_box_iou(trivial) < 0.9
    assert one_box_rows([rows[0]])[0]["boxes_xyxy"] == []
    assert np.isnan(best_box_iou([rows[0]]))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("compat", ["none", "original"])
def test_boxes_come_back_to_the_original_image(task: str, compat: str) -> None:
    """What `prepare` placed in the frame, `decode` brings back."""
    recipe = get_recipe(task)
    learning, hp = task_of(task, f"compat={compat}")
    truth = np.array([[10.0, 20, 60, 90], [70, 5, 100, 30]])
    pixels = np.random.default_rng(0).integers(0, 200, (120, 200))
    image = Image2D(
        array=pixels.astype(np.int16 if task == "lung_detection" else np.uint8),
        spacing_yx_mm=(0.7, 0.7),
        meta={"modality": "CT" if task == "lung_detection" else "MG"},
    )
    prepared = recipe.prepare(
        Sample(image=image, boxes_xyxy_px=truth, box_labels=np.zeros(2, np.int64)), hp
    )
    facts = {"meta": json.loads(json.dumps(dict(prepared.meta)))}
    found = _perfect(prepared.arrays["boxes"], hp)
    prediction = learning.decode(found, facts, hp, {"threshold": 0.5})
    assert prediction.boxes_xyxy_px is not None
    assert np.allclose(prediction.boxes_xyxy_px, truth, atol=1e-3)
    assert prediction.box_scores == pytest.approx((0.9, 0.9))
    assert prediction.box_labels == (0, 0)
    assert prediction.score == pytest.approx(0.9)
    network = learning.model(hp).eval()
    batch = batch_of(learning, [prepared.arrays])
    assert torch.isfinite(network(learning.inputs(batch, hp))["p3"]).all()


def test_decoded_boxes_stay_within_the_image_and_come_best_first() -> None:
    found = {
        "boxes": np.array([[-5.0, 4, 20, 90], [10, 10, 20, 20]]),
        "scores": np.array([0.5, 0.8]),
        "classes": np.array([0.0, 1.0]),
    }
    facts = {"meta": {"scale_yx": [0.5, 0.5], "offset_yx_px": [4, 0], "original_shape": [80, 100]}}
    boxes, scores, labels = boxes_of_original(found, facts, {})
    assert boxes.tolist() == [[20, 12, 40, 32], [0, 0, 40, 80]]
    assert (scores, labels) == ((0.8, 0.5), (1, 0))


def test_examples_of_a_batch_may_have_any_number_of_boxes_or_none() -> None:
    learning, hp = task_of("lung_detection")
    examples = examples_of("lung_detection", hp)
    del examples[0]["boxes"], examples[0]["box_labels"]
    arrays = learning.collate(examples)
    assert arrays["boxes"].shape == (4, 2, 4)
    assert arrays["num_boxes"].tolist() == [0, 1, 2, 0]
    assert arrays["box_labels"].dtype == np.int64
    alone = learning.collate([{"image": examples[0]["image"]}])
    assert alone["boxes"].shape == (1, 1, 4)
    network = learning.model(hp).eval()
    batch = {"image": torch.from_numpy(alone["image"])}
    with torch.no_grad():
        probs = learning.probabilities(network(learning.inputs(batch, hp)), hp)
    assert learning.measure(probs, batch, hp)[0]["true_boxes_xyxy"] == []


@pytest.mark.parametrize("variant", VARIANTS[:5], ids=" ".join)
def test_augmentation_keeps_types_and_is_decided_by_seeds(variant: tuple[str, ...]) -> None:
    learning, hp = task_of(*variant)
    batch = batch_of(learning, examples_of(variant[0], hp))
    one, same = (learning.augment(batch, [1, 2, 3, 4], hp) for _ in range(2))
    other = learning.augment(batch, [5, 6, 7, 8], hp)
    assert one["image"].dtype == batch["image"].dtype
    assert one["image"].shape == batch["image"].shape
    assert torch.equal(one["image"], same["image"])
    assert torch.equal(one["boxes"], same["boxes"])
    assert not torch.equal(one["image"], other["image"])


def test_hounsfield_units_are_seen_through_three_windows() -> None:
    """The same three that are stored where `pixels=windows`."""
    recipe = get_recipe("lung_detection")
    hu = np.random.default_rng(0).integers(-1024, 1500, (64, 64)).astype(np.int16)
    sample = Sample(image=Image2D(array=hu, meta={"modality": "CT"}))
    seen = []
    for pixels in ("hu", "windows"):
        learning, hp = task_of("lung_detection", f"pixels={pixels}")
        batch = batch_of(learning, [recipe.prepare(sample, hp).arrays])
        seen.append(learning.inputs(batch, hp))
    assert seen[0].shape == seen[1].shape == (1, 3, 64, 64)
    assert (seen[0] - seen[1]).abs().max() <= 0.51 / 255


def test_inputs_lie_between_zero_and_one() -> None:
    for variant in VARIANTS[:5]:
        learning, hp = task_of(*variant)
        batch = batch_of(learning, examples_of(variant[0], hp))
        seen = learning.inputs(batch, hp)
        assert seen.dtype == torch.float32
        assert seen.min() >= 0
        assert 0.7 < seen.max() <= 1


def test_the_originals_sampler_draws_by_the_number_of_boxes() -> None:
    cases = [{"num_boxes": n % 3, "key": str(n), "patient_id": str(n), "label": -1}
             for n in range(30)]  # fmt: skip
    learning, hp = task_of("breast_roi")
    assert list(learning.sampler(cases, 3, hp)) == list(range(30))
    original = dataclasses.replace(hp, compat="original")
    drawn = learning.sampler(cases, 3, original)
    assert len(drawn) == 30
    assert all(cases[index]["num_boxes"] for index in drawn)
    assert drawn == learning.sampler(cases, 3, original)
    assert drawn != learning.sampler(cases, 4, original)


@pytest.mark.parametrize("task", TASKS)
def test_published_weights_fit_the_full_preset(task: str) -> None:
    from medray.nn.yolo import Yolo, named_config

    recipe = get_recipe(task)
    published = Yolo(named_config("s", num_classes=80)).state_dict()
    network = recipe.learning.model(recipe.hparams)
    assert len(transfer(network, published).taken) == 343


@pytest.mark.parametrize(
    ("task", "setting", "words"),
    [
        ("lung_detection", "size=100", "multiple of 32"),
        ("lung_detection", "hsv=0.1,0.2", "three shares"),
        ("lung_detection", "gain=1.0", "gain must lie"),
        ("lung_detection", "width=0", "depth, width and lr"),
        ("lung_detection", "epochs=0", "at least 1"),
        ("breast_roi", "mosaic=2", "mosaic and flip"),
        ("breast_roi", "scale=1", "scale and translate"),
        ("breast_roi", "nms_iou=0", "nms_iou"),
        ("breast_roi", "gain=-0.1", "gain must lie"),
    ],
)
def test_hyperparameters_are_checked(task: str, setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        override(get_recipe(task).hparams, [setting])
