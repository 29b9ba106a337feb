"""YOLOv5 against numbers of the published network, its suppression against torchvision's."""

import math

import pytest
import torch

from medray.nn.nms import Selection, best_boxes, pair_iou, suppressed, suppressed_by_torchvision
from medray.nn.yolo import Yolo, YoloConfig, named_config
from medray.nn.yolo_decode import decode_outputs, detect

GOLDEN_LAYERS = {
    0: (0.023325, 0.175325),
    2: (0.021987, 0.114040),
    4: (0.036211, 0.219147),
    9: (0.009718, 0.104430),
}
GOLDEN = {
    80: {
        "decoded": ((2, 378, 85), 2.295599, 14.259763),
        "p3": (0.001051, 0.258496),
        "p4": (0.001371, 0.327808),
        "p5": (0.001539, 0.504810),
        "p3 first": (0.330897, 0.214666, -0.140058, -0.023497, -0.206296, -0.385946),
        "p3 last": (-0.459801, -0.141427, -0.303942, 0.064556, 0.129173, 0.294196),
        "p5 last": (-0.479036, 0.413890, -0.648396, 1.150108, -0.277229, 0.063081),
        "row 0": (5.311640, 4.855382, 8.650587, 12.696344, 0.448608, 0.404694),
        "row last": (72.478704, 54.529291, 175.891739, 752.260250, 0.431133, 0.515765),
        "row 100": (35.863070, 2.832691, 13.737731, 22.789838, 0.402006, 0.514376),
    },
    1: {
        "decoded": ((2, 378, 6), 27.404040, 46.071857),
        "p3": (-0.005495, 0.252929),
        "p4": (0.024828, 0.303941),
        "p5": (0.024782, 0.527572),
        "p3 first": (0.330897, 0.214666, -0.140058, -0.023497, -0.206296, -0.385946),
        "p3 last": (-0.128381, -0.397910, -0.090130, -0.371475, -0.013927, 0.140677),
        "p5 last": (0.050814, -0.603604, 0.721820, -0.629866, 0.923705, -0.470067),
        "row 0": (5.311640, 4.855382, 8.650587, 12.696344, 0.448608, 0.404694),
        "row last": (80.812850, 38.625260, 675.785437, 157.503248, 0.715796, 0.384600),
        "row 100": (35.622740, 3.891342, 22.607500, 44.277363, 0.543505, 0.531492),
    },
}


def numbers(count: int, p: int) -> torch.Tensor:
    """Return U(n, p): the reference's fill of a tensor."""
    i = torch.arange(count, dtype=torch.int64)
    return ((2654435761 * i + 40503 * p + 12345) % 2**32).double() / 2**32 - 0.5


def filled(num_classes: int) -> Yolo:
    network = Yolo(named_config("s", num_classes=num_classes)).double().eval()
    state = network.state_dict()
    for key, value in state.items():
        u = numbers(value.numel(), sum(map(ord, key)) % 97).view(value.shape)
        if key.endswith("running_var"):
            state[key] = 1 + 0.5 * u
        elif key.endswith("running_mean"):
            state[key] = 0.2 * u
        elif value.ndim == 4:
            state[key] = u * math.sqrt(33.6 / math.prod(value.shape[1:]))
        elif key.endswith("bn.weight"):
            state[key] = 1 + 0.4 * u
        elif key.endswith("bias"):
            state[key] = 0.4 * u
    network.load_state_dict(state)
    return network


def golden_image() -> torch.Tensor:
    i = torch.arange(2 * 3 * 64 * 96, dtype=torch.float64)
    return (0.5 + 0.5 * torch.sin(0.05 * i)).view(2, 3, 64, 96)


@pytest.mark.parametrize("num_classes", [80, 1])
def test_the_network_gives_the_published_numbers(num_classes: int) -> None:
    network = filled(num_classes)
    seen: dict[int, torch.Tensor] = {}
    for number in GOLDEN_LAYERS:
        network.model[number].register_forward_hook(
            lambda _, __, out, number=number: seen.__setitem__(number, out)
        )
    with torch.no_grad():
        outputs = network(golden_image())
    golden = GOLDEN[num_classes]
    for number, expected in GOLDEN_LAYERS.items():
        assert (seen[number].mean().item(), seen[number].std().item()) == pytest.approx(
            expected, abs=2e-6
        )
    for level in ("p3", "p4", "p5"):
        found = (outputs[level].mean().item(), outputs[level].std().item())
        assert found == pytest.approx(golden[level], abs=2e-6)
    assert outputs["p3"][0, 0, 0, 0, :6].tolist() == pytest.approx(golden["p3 first"], abs=2e-6)
    assert outputs["p3"][1, 2, -1, -1, :6].tolist() == pytest.approx(golden["p3 last"], abs=2e-6)
    assert outputs["p5"][1, 2, -1, -1, :6].tolist() == pytest.approx(golden["p5 last"], abs=2e-6)
    rows = decode_outputs(outputs)
    shape, mean, std = golden["decoded"]
    assert tuple(rows.shape) == shape
    assert (rows.mean().item(), rows.std().item()) == pytest.approx((mean, std), abs=2e-6)
    assert rows[0, 0, :6].tolist() == pytest.approx(golden["row 0"], abs=2e-6)
    assert rows[1, -1, :6].tolist() == pytest.approx(golden["row last"], abs=2e-6)
    assert rows[0, 100, :6].tolist() == pytest.approx(golden["row 100"], abs=2e-6)


@pytest.mark.parametrize(("num_classes", "parameters"), [(80, 7_235_389), (1, 7_022_326)])
def test_the_state_dict_has_the_published_size_and_names(num_classes: int, parameters: int) -> None:
    network = Yolo(named_config("s", num_classes=num_classes))
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(state) == 349
    for name in ("model.0.conv.weight", "model.4.m.1.cv2.bn.running_var", "model.9.cv2.bn.bias",
                 "model.23.cv3.conv.weight", "model.24.m.2.bias", "model.24.anchors"):  # fmt: skip
        assert name in state
    assert state["model.24.anchors"][1, 2].tolist() == [59 / 16, 119 / 16]


def test_a_fresh_head_expects_few_objects() -> None:
    torch.manual_seed(0)
    head = Yolo(named_config("n", num_classes=4)).model[24]
    bias = head.m[0].bias.view(3, 9)
    fresh = 1 / math.sqrt(head.m[0].in_channels)
    assert (bias[:, 4] - math.log(8 / 80**2)).abs().max() <= fresh
    assert (bias[:, 5:] - math.log(0.6 / 3.00001)).abs().max() <= fresh


@pytest.mark.parametrize("size", ["n", "s", "m"])
def test_the_sizes_differ_in_depth_and_width(size: str) -> None:
    """Parameters at 80 classes as published (1.9, 7.2 and 21.2 million)."""
    network = Yolo(named_config(size, num_classes=80))  # type: ignore[arg-type]
    number = sum(p.numel() for p in network.parameters())
    assert number / 1e6 == pytest.approx({"n": 1.87, "s": 7.24, "m": 21.19}[size], abs=0.01)


def test_grey_images_go_in_as_one_channel() -> None:
    network = Yolo(YoloConfig(in_channels=1, width=0.125, depth=0.1)).eval()
    outputs = network(torch.rand(2, 1, 64, 32))
    assert outputs["p3"].shape == (2, 3, 8, 4, 6)
    assert outputs["p5"].shape == (2, 3, 2, 1, 6)
    assert outputs["anchors_px"][0, 0].tolist() == [10, 13]


def test_images_that_do_not_fit_are_refused() -> None:
    network = Yolo(YoloConfig(in_channels=1, width=0.125, depth=0.1))
    with pytest.raises(ValueError, match=r"must be \(batch, 1, height, width\)"):
        network(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="multiples of 32"):
        network(torch.rand(1, 1, 64, 40))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_classes": 0}, "at least 1"),
        ({"width": 0.0}, "must be > 0"),
        ({"anchors_px": (((1.0, 1.0),),)}, "3 levels of 3"),
    ],
)
def test_configurations_are_checked(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        YoloConfig(**settings)


def _scattered(seed: int, num: int = 300) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    corner = torch.rand(2, num, 2) * 60
    boxes = torch.cat([corner, corner + torch.rand(2, num, 2) * 40], dim=-1)
    return boxes, torch.rand(2, num), torch.randint(0, 3, (2, num))


@pytest.mark.parametrize("threshold", [0.2, 0.45, 0.6])
def test_suppression_is_torchvisions(threshold: float) -> None:
    torchvision_ops = pytest.importorskip("torchvision.ops")
    boxes, scores, classes = _scattered(3)
    found, kept, labels = best_boxes(
        boxes, scores, classes, Selection(least_score=0.1, iou_threshold=threshold)
    )
    for image in range(2):
        able = scores[image] > 0.1
        theirs = torchvision_ops.batched_nms(
            boxes[image][able], scores[image][able], classes[image][able], threshold
        )
        number = len(theirs)
        assert torch.equal(found[image, :number], boxes[image][able][theirs])
        assert torch.equal(kept[image, :number], scores[image][able][theirs])
        assert torch.equal(labels[image, :number], classes[image][able][theirs])
        assert not kept[image, number:].any()
        assert not found[image, number:].any()


@pytest.mark.parametrize("threshold", [0.2, 0.45, 0.6])
def test_suppression_in_plain_torch_is_torchvisions(threshold: float) -> None:
    boxes, scores, classes = _scattered(4)
    scores, order = scores.sort(dim=1, descending=True)
    boxes = boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    classes, usable = classes.gather(1, order), scores > 0.1
    ours = suppressed(boxes, classes, usable, iou_threshold=threshold)
    theirs = suppressed_by_torchvision(boxes, scores, classes, usable, iou_threshold=threshold)
    assert torch.equal(ours, theirs)
    assert 0 < ours.sum() < usable.sum()


def test_suppression_keeps_the_best_and_pads() -> None:
    boxes, scores, classes = _scattered(5, num=20)
    found, kept, _ = best_boxes(
        boxes,
        scores,
        classes,
        Selection(least_score=0.0, iou_threshold=1.0, most=30, most_candidates=8),
    )
    assert found.shape == (2, 30, 4)
    assert torch.equal(kept[:, :8], scores.sort(dim=1, descending=True).values[:, :8])
    assert not kept[:, 8:].any()


def test_overlap_of_pairs() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 5]])
    expected = torch.tensor([[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 0]])
    assert torch.allclose(pair_iou(boxes, boxes), expected)


def test_detections_are_boxes_of_the_frame() -> None:
    """One confident place, decoded by hand; several labels at one place where that is wanted."""
    network = Yolo(YoloConfig(num_classes=2, in_channels=1, width=0.125, depth=0.1)).eval()
    with torch.no_grad():
        outputs = network(torch.zeros(1, 1, 64, 64))
    for level in ("p3", "p4", "p5"):
        outputs[level][:] = -20.0
    outputs["p4"][0, 1, 2, 3] = torch.tensor([0.0, 0.0, 0.0, 0.0, 4.0, 2.0, 1.0])
    best = detect(outputs, Selection(least_score=0.1, iou_threshold=0.5, most=5))
    sigmoid = [1 / (1 + math.exp(-t)) for t in (4.0, 2.0, 1.0)]
    assert best["boxes"][0, 0].tolist() == pytest.approx(
        [3.5 * 16 - 31, 2.5 * 16 - 22.5, 3.5 * 16 + 31, 2.5 * 16 + 22.5], abs=1e-4
    )
    assert best["scores"][0].tolist() == pytest.approx([sigmoid[0] * sigmoid[1], 0, 0, 0, 0])
    both = detect(outputs, Selection(least_score=0.1, iou_threshold=0.5, most=5), multi_label=True)
    assert both["classes"][0, :2].tolist() == [0.0, 1.0]
    assert both["scores"][0, 1].item() == pytest.approx(sigmoid[0] * sigmoid[2])
