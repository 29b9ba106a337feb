"""Faster R-CNN: counts, equality with torchvision's own losses and detections, freezing, draws."""

import pytest
import torch
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from medray.nn.faster_rcnn import FasterRcnn, FasterRcnnConfig
from medray.nn.region_losses import NUM_SUMS, SeededSampler

SMALL = {
    "backbone": "resnet18",
    "channels": 16,
    "hidden": 32,
    "anchor_px": 8,
    "proposals": 64,
    "anchors_per_image": 32,
    "rois_per_image": 32,
}


def build(**settings):
    torch.manual_seed(0)
    return FasterRcnn(FasterRcnnConfig(**{**SMALL, **settings}))


def batch_of(side=96):
    generator = torch.Generator().manual_seed(1)
    boxes = torch.tensor(
        [
            [[10.0, 12, 40, 50], [50, 50, 80, 90]],
            [[0, 0, 0, 0], [0, 0, 0, 0]],
            [[5, 5, 60, 44], [0, 0, 0, 0]],
        ]
    )
    return {
        "image": torch.rand(3, 1, side, side, generator=generator),
        "boxes": boxes,
        "num_boxes": torch.tensor([2, 0, 1]),
        "labels": torch.tensor([[0, 1], [0, 0], [0, 0]]),
        "seed": torch.tensor([5, 6, 7]),
    }


def part_of(batch, at):
    return {name: tensor[at] for name, tensor in batch.items()}


def counted(**settings):
    with torch.device("meta"):
        network = FasterRcnn(FasterRcnnConfig(**settings))
    return network, sum(p.numel() for p in network.parameters())


def test_parameters_are_those_of_the_published_detector():
    network, number = counted(norm="frozen_batch", num_classes=90, trainable_layers=3)
    assert number == 41_755_286
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 41_532_886
    assert len(network.state_dict()) == 295
    assert counted(norm="batch", num_classes=1)[1] == 41_352_281
    assert counted(norm="group", num_classes=1)[1] == 41_352_281
    original, _ = counted(norm="frozen_batch", trainable_layers=3, predictor_only=True)
    assert sum(p.numel() for p in original.parameters() if p.requires_grad) == 10_250


def test_names_are_torchvisions():
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    with torch.device("meta"):
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    ours, _ = counted(norm="batch")
    assert list(ours.state_dict()) == list(theirs.state_dict())


def torchvisions(network, side):
    transform = GeneralizedRCNNTransform(side, side, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return GeneralizedRCNN(network.backbone, network.rpn, network.roi_heads, transform)


@pytest.mark.parametrize("shown_px", [0, 64])
def test_losses_are_torchvisions_own(shown_px):
    network, batch = build(num_classes=2, shown_px=shown_px).train(), batch_of()
    sums = network(batch)["sums"]
    assert sums.shape == (3, NUM_SUMS)
    total = sums.sum(dim=0)
    theirs = torchvisions(network, shown_px or 96).train()
    targets = [
        {"boxes": boxes[:number], "labels": labels[:number] + 1}
        for boxes, labels, number in zip(
            batch["boxes"], batch["labels"], batch["num_boxes"].tolist(), strict=True
        )
    ]
    wanted = theirs(list(batch["image"]), targets)
    ours = {
        "loss_objectness": total[0] / total[2],
        "loss_rpn_box_reg": total[1] / total[2],
        "loss_classifier": total[3] / total[5],
        "loss_box_reg": total[4] / total[5],
    }
    assert set(ours) == set(wanted)
    for name, value in ours.items():
        assert float(value.detach()) == pytest.approx(float(wanted[name].detach()), rel=1e-4), name
    assert total[6:].tolist() == [0.0, 0.0]


def test_detections_are_torchvisions_own():
    network, batch = build(num_classes=2, detections=12).eval(), batch_of()
    with torch.no_grad():
        found = network({"image": batch["image"]})
        wanted = torchvisions(network, 96).eval()(list(batch["image"]))
    assert set(found) == {"boxes", "scores", "classes"}
    assert found["boxes"].shape == (3, 12, 4)
    for index, one in enumerate(wanted):
        number = len(one["scores"])
        assert number
        assert torch.allclose(found["boxes"][index, :number], one["boxes"], atol=1e-3)
        assert torch.allclose(found["scores"][index, :number], one["scores"], atol=1e-6)
        assert found["classes"][index, :number].tolist() == (one["labels"] - 1).tolist()
        assert not found["scores"][index, number:].any()


def test_boxes_come_back_in_pixels_of_the_given_image():
    network, batch = build(shown_px=192).eval(), batch_of()
    with torch.no_grad():
        boxes = network({"image": batch["image"]})["boxes"]
    assert 48 < float(boxes.max()) <= 96.001


def test_images_add_over_workers():
    network, batch = build(num_classes=2, gate=True).train(), batch_of()
    whole = network(batch)["sums"]
    parts = [network(part_of(batch, at))["sums"] for at in (slice(0, 1), slice(1, 3))]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-4, atol=1e-5)
    turned = network(part_of(batch, [2, 1, 0]))["sums"]
    assert torch.allclose(whole, turned.flip(0), rtol=1e-4, atol=1e-5)


def test_what_is_judged_follows_the_seed_and_evaluation_needs_none():
    network, batch = build(num_classes=2).train(), batch_of()
    first, again = network(batch)["sums"], network(batch)["sums"]
    assert torch.equal(first, again)
    other = network({**batch, "seed": batch["seed"] + 1})["sums"]
    assert not torch.equal(first, other)
    network.eval()
    with torch.no_grad():
        found = network({name: t for name, t in batch.items() if name != "seed"})
    assert torch.isfinite(found["sums"]).all()
    assert {"boxes", "scores", "classes"} <= set(found)


def test_the_sampler_keeps_torchvisions_shares():
    sampler = SeededSampler(8, 0.25, stream=0)
    sampler.seeds = [3, 4, 5]
    labels = [
        torch.tensor([1.0] * 10 + [0.0] * 20 + [-1.0] * 5),
        torch.tensor([1.0] + [0.0] * 20),
        torch.tensor([0.0] * 3),
    ]
    positive, negative = sampler(labels)
    assert [int(one.sum()) for one in positive] == [2, 1, 0]
    assert [int(one.sum()) for one in negative] == [6, 7, 3]
    assert not (negative[0][30:] | positive[0][30:]).any()


def test_healthy_images_alone_train_all_but_nothing_to_place():
    network, batch = build(gate=True).train(), batch_of()
    healthy = part_of(batch, slice(1, 2))
    healthy["boxes"] = torch.zeros(1, 1, 4)
    healthy["labels"] = torch.zeros(1, 1, dtype=torch.int64)
    sums = network(healthy)["sums"].sum(dim=0)
    assert sums[1] == 0
    assert sums[4] == 0
    assert sums[7] == 1
    (sums[0] + sums[1] + sums[3] + sums[4] + sums[6]).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("layers", "frozen"), [(5, 0), (3, 15), (0, 60)], ids=["all", "three", "none"]
)
def test_layers_of_the_body_are_frozen_from_the_first(layers, frozen):
    network = build(trainable_layers=layers)
    names = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert all(name.startswith("backbone.body.") for name in names)
    assert len(names) == frozen
    if layers == 3:
        assert {name.split(".")[2] for name in names} == {"conv1", "bn1", "layer1"}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="trainable_layers"):
        FasterRcnnConfig(trainable_layers=6)
    with pytest.raises(ValueError, match="shown_px"):
        FasterRcnnConfig(shown_px=100)
    with pytest.raises(ValueError, match="at least 1"):
        FasterRcnnConfig(hidden=0)
    with pytest.raises(ValueError, match="score_floor"):
        FasterRcnnConfig(score_floor=1.0)
    with pytest.raises(ValueError, match="training needs boxes"):
        build().train()({"image": torch.zeros(1, 1, 64, 64)})
