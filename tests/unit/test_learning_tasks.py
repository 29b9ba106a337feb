"""The learning halves of the tasks: loss, augmentation, inputs, measures, decoding."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from medray.config import override
from medray.datasets.record import Sample
from medray.errors import ConfigError
from medray.learning import Prediction
from medray.metrics import mask_rows
from medray.metrics.class_rows import many_class_numbers, two_class_numbers, youden_threshold
from medray.nn.augment3d import Augmentation, augment_volumes
from medray.nn.heads import PooledNorm
from medray.preprocess.native_mask import mask_on_grid, pack_mask, unpack_mask
from medray.tasks import get_recipe
from medray.volume import Volume

SMALL = {
    "pancreas_segmentation": ("size=16", "filters=4,8", "lr=0.01"),
    "pancreas_classification": ("size=16", "filters=4,8", "lr=0.01"),
    "lung_classification": ("size=16", "filters=4,8", "lr=0.01"),
}
JOINT = ("pancreas_classification", "joint=true")
VARIANTS = [
    *[(task,) for task in SMALL],
    JOINT,
    ("pancreas_classification", "mask_channel=off"),
    ("pancreas_segmentation", "loss=weighted_ce"),
    ("pancreas_segmentation", "loss=weighted_dice"),
    ("pancreas_segmentation", "loss=balanced_ce"),
    ("lung_classification", "network=original", "norm=instance"),
    ("lung_classification", "class_names=normal,ill"),
    ("lung_classification", "pet_channel=true"),
]


def task_of(name: str, *settings: str) -> tuple[Any, Any]:
    recipe = get_recipe(name)
    return recipe.learning, override(recipe.tiny_hparams, [*SMALL[name], *settings])


def batch_of(count: int = 4, *, size: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((count, size, size, size), np.uint8)
    for index in range(count):
        mask[index, 3 : 9 + index, 4:11, 5:12] = 1
    image = rng.normal(-100, 30, mask.shape) + 250 * mask
    labels = np.arange(count) % 2
    image += (labels * 150)[:, None, None, None] * mask
    return {
        "image": torch.from_numpy(image.astype(np.int16)),
        "mask": torch.from_numpy(mask),
        "pet": torch.from_numpy(mask.astype(np.uint16) * 400),
        "label": torch.from_numpy(labels.astype(np.int64)),
    }


def loss_of(learning: Any, hp: Any, network: torch.nn.Module, batch: Any) -> torch.Tensor:
    outputs = network(learning.inputs(batch, hp))
    value = learning.loss_value(learning.loss_sums(outputs, batch, hp), hp)
    return value + learning.penalty(network, hp)


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_loss_falls_on_one_repeated_batch(variant):
    learning, hp = task_of(*variant)
    torch.manual_seed(0)
    network, batch = learning.model(hp).train(), batch_of()
    optimizer = learning.optimizer(network, hp)
    losses = []
    for _ in range(12):
        loss = loss_of(learning, hp, network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert min(losses[-4:]) < 0.9 * losses[0]


@pytest.mark.parametrize("variant", [*[(t,) for t in SMALL], JOINT], ids=" ".join)
def test_evaluation_is_deterministic_and_rows_are_plain(variant):
    import json

    learning, hp = task_of(*variant)
    torch.manual_seed(0)
    network, batch = learning.model(hp).eval(), batch_of()
    found = []
    for _ in range(2):
        with torch.no_grad():
            probs = learning.probabilities(network(learning.inputs(batch, hp)), hp)
        found.append(learning.measure(probs, batch, hp))
    assert found[0] == found[1]
    assert len(found[0]) == 4
    json.dumps(found[0], allow_nan=False)
    chosen = learning.choose(found[0])
    numbers = learning.metrics(found[0], chosen)
    assert learning.objective.metric in numbers
    assert set(learning.baseline(found[0], [0, 1, 1])) == set(numbers)


@pytest.mark.parametrize("task", SMALL)
def test_augmentation_depends_on_the_seed_alone(task):
    learning, hp = task_of(task)
    hp = dataclasses.replace(hp, flip=0.5, scale=0.1, rotate_deg=15.0)
    batch, seeds = batch_of(), [11, 12, 13, 14]
    whole = learning.augment(batch, seeds, hp)
    single = learning.augment({n: t[2:3] for n, t in batch.items()}, [13], hp)
    turned = learning.augment({n: t.flip(0) for n, t in batch.items()}, seeds[::-1], hp)
    for name, tensor in whole.items():
        assert tensor.dtype == batch[name].dtype
        assert torch.equal(tensor[2:3], single[name]), name
        assert torch.equal(tensor.flip(0), turned[name]), name
    assert not torch.equal(whole["image"], batch["image"])
    assert not torch.equal(whole["image"], learning.augment(batch, [1, 2, 3, 4], hp)["image"])


def test_image_and_mask_move_together_and_nothing_moves_at_strength_zero():
    mask = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    mask[:, 4:12, 6:15, 5:16] = 1
    volumes = {"image": mask.to(torch.int16) * 100, "mask": mask}
    how = Augmentation(flip=0.5, scale=0.1, rotate_deg=20.0, shift=0.1)
    for seed in range(5):
        moved = augment_volumes(volumes, [seed], how)
        assert set(moved["mask"].unique().tolist()) <= {0, 1}
        agree = ((moved["image"] > 50) == (moved["mask"] == 1)).float().mean()
        assert agree > 0.99
    still = augment_volumes(volumes, [3], Augmentation())
    assert all(torch.equal(still[name], volumes[name]) for name in volumes)


def test_a_turn_and_a_scale_agree_with_scipy():
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(0, 1, (18, 20, 22)), 2).astype(np.float32)
    how = Augmentation(scale=0.2, rotate_deg=30.0)
    moved = augment_volumes({"image": torch.from_numpy(image)[None]}, [5], how)["image"][0]
    draws = torch.rand(16, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    angle = np.deg2rad(30 * (2 * draws[6] - 1))
    first, second = (n for n in range(3) if n != int(draws[7] * 3))
    turn = np.eye(3)
    turn[first, first] = turn[second, second] = np.cos(angle)
    turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
    matrix = turn / (1 + 0.2 * (2 * draws[3:6] - 1))
    middle = (np.array(image.shape) - 1) / 2
    expected = ndimage.affine_transform(
        image, matrix, offset=middle - matrix @ middle, order=1, mode="nearest"
    )
    np.testing.assert_allclose(moved.numpy(), expected, atol=2e-5)


def test_the_originals_crop_is_random_in_training_and_absent_or_central_after():
    learning, hp = task_of("pancreas_segmentation", "compat=original", "size=16")
    batch = batch_of(2, size=18)
    cropped = learning.augment(batch, [0, 1], hp)
    assert cropped["image"].shape == cropped["mask"].shape == (2, 16, 16, 16)
    assert learning.inputs(batch, hp).shape == (2, 1, 18, 18, 18)
    learning, hp = task_of("pancreas_classification", "compat=original", "size=16")
    batch = batch_of(2, size=20)
    values = learning.inputs(batch, hp)
    expected = batch["image"][:, 2:18, 2:18, 2:18].float().clamp(-1024, 1024) / 1024
    torch.testing.assert_close(values[:, 0], expected)


@pytest.mark.parametrize(
    ("task", "settings", "hu", "expected"),
    [
        ("pancreas_segmentation", (), [-2000, -512, 256, 1024, 3000], [-1, -1, 0, 1, 1]),
        ("pancreas_classification", ("organ_only=false",), [-900, -40, 100, 240], [-1, -1, 0, 1]),
        ("lung_classification", (), [-1024, -1000, -300, 400, 900], [0, 0, 0.5, 1, 1]),
        (
            "lung_classification",
            ("window_low_hu=0", "window_high_hu=255"),
            [0, 51, 255],
            [0, 0.2, 1],
        ),
    ],
)
def test_windows_are_exact(task, settings, hu, expected):
    learning, hp = task_of(task, *settings)
    batch = batch_of(1)
    batch["image"].view(-1)[: len(hu)] = torch.tensor(hu, dtype=torch.int16)
    values = learning.inputs(batch, hp)[0, 0].flatten()[: len(hu)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32))


def test_the_organs_surroundings_are_the_windows_middle():
    learning, hp = task_of("pancreas_classification")
    batch = batch_of(2)
    values = learning.inputs(batch, hp)
    assert values.shape == (2, 2, 16, 16, 16)
    assert (values[:, 0][batch["mask"] == 0] == 0).all()
    assert torch.equal(values[:, 1], batch["mask"].float())
    del batch["mask"]
    with pytest.raises(ConfigError, match=r"takes the organ mask and these examples have none"):
        learning.inputs(batch, hp)


def test_masks_are_packed_and_come_back():
    rng = np.random.default_rng(0)
    for shape in ((5, 7, 9), (1, 1, 1), (3, 20, 4)):
        mask = (rng.random(shape) > 0.8).astype(np.uint8)
        bits, box = pack_mask(mask)
        assert bits.dtype == np.uint8
        assert bits.ndim == 1
        np.testing.assert_array_equal(unpack_mask(bits, box, shape), mask)
    empty = np.zeros((4, 5, 6), np.uint8)
    np.testing.assert_array_equal(unpack_mask(*pack_mask(empty), empty.shape), empty)
    with pytest.raises(ValueError, match="2 bytes do not fill the box"):
        unpack_mask(np.zeros(2, np.uint8), ((0, 2), (0, 2), (0, 2)), (4, 4, 4))
    with pytest.raises(ValueError, match="do not fill the box"):
        unpack_mask(np.zeros(1, np.uint8), ((0, 2), (0, 2), (3, 5)), (4, 4, 4))


def test_prepare_keeps_the_mask_of_the_original_grid():
    mask = np.zeros((10, 14, 12), np.uint8)
    mask[2:6, 3:9, 4:11] = 1
    volume = Volume(array=np.full(mask.shape, 40, np.int16), affine_lps=np.diag([4.0, 2, 2, 1]))
    recipe = get_recipe("pancreas_segmentation")
    hp = override(recipe.tiny_hparams, ["size=16"])
    sample = Sample(image=volume, mask=volume.with_array(mask))
    prepared = recipe.prepare(sample, hp)
    box = prepared.meta["native_mask_box_kji"]
    assert box == [[2, 6], [3, 9], [4, 11]]
    bits = prepared.arrays["native_mask_bits"]
    np.testing.assert_array_equal(unpack_mask(bits, box, mask.shape), mask)
    bare = recipe.prepare(Sample(image=volume), hp)
    assert set(bare.arrays) == {"image"}
    assert "native_mask_box_kji" not in bare.meta


def facts_of(affine: np.ndarray, original: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "affine_lps": affine.ravel().tolist(),
        "meta": {
            "original_shape": list(shape),
            "original_affine_lps": original.ravel().tolist(),
        },
    }


def test_decode_is_exact_on_its_own_grid():
    learning, hp = task_of("pancreas_segmentation")
    probs = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)
    affine = np.array([[0, 0, 1.5, 3], [0, 2, 0, -4], [5, 0, 0, 7], [0, 0, 0, 1]], float)
    facts = facts_of(affine, affine, probs.shape)
    found = learning.decode({"mask": probs}, facts, hp, {"threshold": 0.25})
    np.testing.assert_array_equal(found.mask, probs >= 0.25)
    assert found.mask.dtype == np.uint8
    assert found.volume_ml == pytest.approx((probs >= 0.25).sum() * 15.0 / 1000)


def test_decode_agrees_with_scipy_on_a_mirrored_grid_of_other_spacing():
    """Slabs of another grid, row and slice axes mirrored, sampled linearly by coordinates."""
    rng = np.random.default_rng(1)
    probs = ndimage.gaussian_filter(rng.random((12, 14, 16)), 1.0).astype(np.float32)
    affine = np.array([[0, 0, 3.0, -20], [0, 2.5, 0, 10], [4.0, 0, 0, 5], [0, 0, 0, 1]])
    original = np.array([[0, 0, 2.0, -18], [0, -2.0, 0, 40], [-3.0, 0, 0, 47], [0, 0, 0, 1]])
    shape = (14, 15, 21)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    to_source = np.linalg.inv(affine) @ original
    places = np.einsum("ab,bkji->akji", to_source[:3, :3], index) + to_source[:3, 3].reshape(
        3, 1, 1, 1
    )
    expected = ndimage.map_coordinates(probs, places, order=1, mode="nearest")
    inside = np.all(
        [(p >= 0) & (p <= n - 1) for p, n in zip(places, probs.shape, strict=True)], axis=0
    )
    threshold = float(np.median(probs))
    found = mask_on_grid(probs, affine, grid=(shape, original), threshold=threshold)
    sure = inside & (np.abs(expected - threshold) > 1e-5)
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(found[sure] == 1, expected[sure] >= threshold)


def test_slabs_change_nothing(monkeypatch):
    probs = np.random.default_rng(2).random((9, 6, 7)).astype(np.float32)
    affine, finer = np.diag([2.0, 2, 2, 1]), np.diag([1.1, 1.3, 0.9, 1])
    grid = ((15, 9, 13), finer)
    whole = mask_on_grid(probs, affine, grid=grid, threshold=0.5)
    monkeypatch.setattr("medray.preprocess.native_mask._SLAB_VOXELS", 1)
    np.testing.assert_array_equal(mask_on_grid(probs, affine, grid=grid, threshold=0.5), whole)


def test_compare_on_a_hand_example():
    """8 of 12 voxels found, one slice of 4 mm off: Dice 0.8."""
    learning, _ = task_of("pancreas_segmentation")
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[1:4, 2:4, 2:4] = 1
    found = truth.copy()
    found[3] = 0
    bits, box = pack_mask(truth)
    affine = np.diag([4.0, 1.0, 1.0, 1.0])
    prediction = Prediction(mask=found, affine_lps=affine, volume_ml=8 * 4 / 1000)
    facts = {"meta": {"native_mask_box_kji": [list(ends) for ends in box]}}
    row = learning.compare(prediction, {"native_mask_bits": bits}, facts)
    assert row["native_dice"] == pytest.approx(16 / 20)
    assert row["native_volume_error_ml"] == pytest.approx(-0.016)
    assert row["native_hd95_mm"] == pytest.approx(4.0)
    assert row["native_nsd"] == pytest.approx(16 / 20)  # the slice of 4 is farther than 2 mm


def test_native_means_leave_out_what_has_no_answer():
    learning, _ = task_of("pancreas_segmentation")
    counts = {"found_true": [4] * 128, "found_false": [0] * 128}
    native = {"native_dice": 0.8, "native_nsd": 0.5, "native_volume_error_ml": -2.0}
    rows = [
        {**counts, **native, "native_hd95_mm": 3.0},
        {**counts, **native, "native_hd95_mm": float("nan"), "native_volume_error_ml": 4.0},
    ]
    numbers = learning.metrics(rows, {})
    assert numbers["native_hd95_mm"] == 3.0
    assert numbers["native_hd95_missing"] == 1.0
    assert numbers["native_volume_error_ml"] == 1.0
    assert numbers["native_absolute_volume_error_ml"] == 3.0
    assert numbers["dice"] == 1.0


def test_voxel_counts_equal_comparing_voxel_by_voxel():
    rng = np.random.default_rng(0)
    probs, mask = rng.random((2, 5, 6, 7)).astype(np.float32), rng.random((2, 5, 6, 7)) > 0.6
    rows = mask_rows.voxel_counts(torch.from_numpy(probs), torch.from_numpy(mask))
    for k in (0, 1, 40, 64, 127):
        cut = probs >= k / 128
        for row, hit, true in zip(rows, cut, mask, strict=True):
            assert row["found_true"][k] == (hit & true).sum()
            assert row["found_false"][k] == (hit & ~true).sum()
    best = mask_rows.best_mask_threshold(rows)
    dices = [mask_rows.mask_numbers(mask_rows.counts_at(rows, k / 128))["dice"] for k in range(128)]
    assert max(dices) == pytest.approx(dices[round(best * 128)])


def test_class_numbers_by_hand():
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    numbers = two_class_numbers(scores, labels, threshold=0.3)
    assert numbers["auroc"] == 0.75
    assert (numbers["sensitivity"], numbers["specificity"], numbers["accuracy"]) == (1, 0.5, 0.75)
    assert youden_threshold(np.array([0.2, 0.9]), np.array([1, 1])) == 0.5
    two = many_class_numbers(np.stack([1 - scores, scores], 1), labels, threshold=0.3)
    assert two["auroc"] == numbers["auroc"]
    assert two["balanced_accuracy"] == numbers["balanced_accuracy"]
    one_class = two_class_numbers(scores, np.zeros(4, int), threshold=0.5)
    assert np.isnan(one_class["auroc"])


def test_two_named_classes_decide_by_the_threshold_and_more_by_the_greatest():
    learning, hp = task_of("lung_classification", "class_names=normal,ill")
    probs = {"class": np.array([0.6, 0.4], np.float32)}
    assert learning.decode(probs, {}, hp, {"threshold": 0.3}).label == 1
    assert learning.decode(probs, {}, hp, {}).label == 0
    assert get_recipe("lung_classification").class_names_of(hp) == ("normal", "ill")
    learning, hp = task_of("lung_classification", "large_cell=true")
    found = learning.decode({"class": np.array([0.1, 0.2, 0.3, 0.4])}, {}, hp, {})
    assert (found.label, found.score) == (3, None)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("pancreas_segmentation", ["filters=8"], "filters must be at least two numbers > 0"),
        ("pancreas_segmentation", ["window_low_hu=2000"], "window_high_hu must be above"),
        ("pancreas_segmentation", ["crop=24"], "crop must be 0 or a multiple of 16"),
        ("pancreas_segmentation", ["flip=2"], "flip must lie in 0..1"),
        ("pancreas_segmentation", ["dice_weight=0"], "dice_weight must be > 0"),
        ("pancreas_segmentation", ["epochs=0"], "must be at least 1"),
        ("pancreas_classification", ["joint=true", "mask_channel=on"], "predicts the mask"),
        ("pancreas_classification", ["positive_weight=0"], "positive_weight must be > 0"),
        ("lung_classification", ["class_names=one"], "at least two different ones"),
        (
            "lung_classification",
            ["class_names=a,b", "large_cell=true"],
            "not together with class_names",
        ),
        ("lung_classification", ["class_weights=1,2"], "class_weights must be 3 numbers"),
        ("lung_classification", ["dropout=1"], "dropout and jitter must lie in 0..1"),
        ("lung_classification", ["flipp=1"], "did you mean 'flip'"),
    ],
)
def test_wrong_hyperparameters_are_explained(task, settings, message):
    with pytest.raises(ConfigError, match=message):
        override(get_recipe(task).hparams, settings)


FULL = [
    ("pancreas_segmentation", ["network=g1"], 2_575_741),
    ("pancreas_segmentation", ["network=g2"], 8_218_637),
    ("pancreas_segmentation", [], None),
    ("pancreas_classification", [], None),
    ("pancreas_classification", ["joint=true"], None),
    ("pancreas_classification", ["compat=original"], None),
    ("lung_classification", ["network=original"], 294_915),
    ("lung_classification", [], None),
]


@pytest.mark.parametrize(("task", "settings", "num_parameters"), FULL)
def test_full_size_networks_are_built(task, settings, num_parameters):
    recipe = get_recipe(task)
    learning, hp = recipe.learning, override(recipe.hparams, settings)
    network = learning.model(hp)
    count = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    assert count == num_parameters if num_parameters else count > 0
    assert learning.optimizer(network, hp).param_groups[0]["lr"] > 0
    assert learning.schedule(hp).kind in {"plateau", "one_cycle"}
    penalised = settings in (["network=g2"], ["network=original"], ["compat=original"])
    assert (float(learning.penalty(network, hp).detach()) > 0) is penalised


@pytest.mark.parametrize(("task", "settings"), [(task, settings) for task, settings, _ in FULL])
def test_two_steps_of_the_full_networks(task, settings):
    """All weights of the published widths and depths; only the cube is small."""
    recipe = get_recipe(task)
    learning, hp = recipe.learning, override(recipe.hparams, [*settings, "size=32"])
    torch.manual_seed(0)
    network, batch = learning.model(hp).train(), batch_of(2, size=32)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = learning.optimizer(network, hp)
    for _ in range(2):
        loss = loss_of(learning, hp, network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    learned = {n for n, w in network.named_parameters() if not torch.equal(w.detach(), before[n])}
    assert learned == {n for n, w in network.named_parameters() if w.requires_grad}


def test_a_single_example_is_normed_by_what_was_seen():
    norm = PooledNorm(3).train()
    seen = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    for _ in range(60):
        norm(seen)
    single = norm(seen[:1])
    assert torch.isfinite(single).all()
    torch.testing.assert_close(single, norm.eval()(seen[:1]))
