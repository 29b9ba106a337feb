"""SE-ResNeXt against the published structure in plain torch, and weights of other libraries."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from medray.errors import DataError
from medray.nn.foreign_weights import (
    TIMM_TO_MONAI,
    load_foreign_weights,
    read_foreign_weights,
)
from medray.nn.se_resnext import SeResNext, SeResNextConfig

STEM = "layer0.conv1.weight"


def timm_weights(*, blocks=(3, 4, 6, 3), planes=64, groups=32, width=4, outputs=1, se=True):
    """Random weights under timm's documented names for `seresnext50_32x4d`."""
    generator = torch.Generator().manual_seed(0)
    found = {}

    def conv(name, out, inner, side):
        weight = torch.randn(out, inner, side, side, generator=generator)
        found[f"{name}.weight"] = weight * (2 / (inner * side * side)) ** 0.5

    def norm(name, channels):
        found[f"{name}.weight"] = 1 + 0.2 * torch.randn(channels, generator=generator)
        found[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=generator)
        found[f"{name}.running_mean"] = 0.1 * torch.randn(channels, generator=generator)
        found[f"{name}.running_var"] = 1 + 0.3 * torch.rand(channels, generator=generator)
        found[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", planes, 3, 7)
    norm("bn1", planes)
    before = planes
    for stage, count in enumerate(blocks):
        wide = planes * 2**stage * width // 64 * groups
        out = 4 * planes * 2**stage
        for block in range(count):
            at = f"layer{stage + 1}.{block}"
            for index, (o, i, side) in enumerate(
                ((wide, before, 1), (wide, wide // groups, 3), (out, wide, 1)), start=1
            ):
                conv(f"{at}.conv{index}", o, i, side)
                norm(f"{at}.bn{index}", o)
            if se:
                conv(f"{at}.se.fc1", out // 16, out, 1)
                found[f"{at}.se.fc1.bias"] = 0.1 * torch.randn(out // 16, generator=generator)
                conv(f"{at}.se.fc2", out, out // 16, 1)
                found[f"{at}.se.fc2.bias"] = 0.1 * torch.randn(out, generator=generator)
            if not block:
                conv(f"{at}.downsample.0", out, before, 1)
                norm(f"{at}.downsample.1", out)
            before = out
    found["fc.weight"] = torch.randn(outputs, before, generator=generator) / before**0.5
    found["fc.bias"] = torch.randn(outputs, generator=generator)
    return found


def published(weights, image, *, groups=32):
    """The network as published, from timm's names alone."""

    def norm(x, name):
        w = [
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        ]
        return functional.batch_norm(x, w[0], w[1], w[2], w[3], eps=1e-5)

    x = functional.conv2d(image, weights["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(norm(x, "bn1").relu(), 3, stride=2, padding=1)
    blocks = sorted({tuple(map(int, re.findall(r"\d+", n)[:2])) for n in weights if "layer" in n})
    for stage, block in blocks:
        at = f"layer{stage}.{block}"
        stride = 2 if stage > 1 and block == 0 else 1
        y = norm(functional.conv2d(x, weights[f"{at}.conv1.weight"]), f"{at}.bn1").relu()
        y = functional.conv2d(
            y, weights[f"{at}.conv2.weight"], stride=stride, padding=1, groups=groups
        )
        y = norm(y, f"{at}.bn2").relu()
        y = norm(functional.conv2d(y, weights[f"{at}.conv3.weight"]), f"{at}.bn3")
        gate = y.mean((2, 3), keepdim=True)
        for number, activation in ((1, torch.relu), (2, torch.sigmoid)):
            name = f"{at}.se.fc{number}"
            gate = functional.conv2d(gate, weights[f"{name}.weight"], weights[f"{name}.bias"])
            gate = activation(gate)
        if f"{at}.downsample.0.weight" in weights:
            x = functional.conv2d(x, weights[f"{at}.downsample.0.weight"], stride=stride)
            x = norm(x, f"{at}.downsample.1")
        x = (y * gate + x).relu()
    return functional.linear(x.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_parameters_and_entries_are_those_of_the_published_network():
    rgb = SeResNext(SeResNextConfig(in_channels=3))
    assert count(rgb) == 25_512_945
    assert len(rgb.state_dict()) == 384
    assert count(SeResNext(SeResNextConfig(in_channels=3, num_outputs=1000))) == 27_559_896
    grey = SeResNext(SeResNextConfig())
    assert count(rgb) - count(grey) == 64 * 2 * 49


@pytest.mark.slow  # importing MONAI alone takes 6 s
def test_structure_and_names_are_those_of_monai():
    from monai.networks.nets import SEResNext50

    theirs = SEResNext50(spatial_dims=2, in_channels=3, num_classes=1).eval().double()
    theirs.layer0.pool = nn.MaxPool2d(3, stride=2, padding=1)
    ours = SeResNext(SeResNextConfig(in_channels=3)).eval().double()
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(ours(image), theirs(image), atol=1e-6)


def test_timm_weights_fit_wholly_and_answer_as_the_published_network():
    weights = timm_weights()
    network = SeResNext(SeResNextConfig(in_channels=3)).eval()
    report = load_foreign_weights(network, weights, renames=TIMM_TO_MONAI, stem=STEM)
    assert not report.missing
    assert not report.left_out
    assert len(report.loaded) == 384
    # In float64, so that 1e-6 is of the map and not of the order in which a processor adds.
    image = torch.rand(2, 3, 65, 97, dtype=torch.float64)
    exact = {
        name: value.double() if value.is_floating_point() else value
        for name, value in weights.items()
    }
    with torch.no_grad():
        wanted, found = published(exact, image), network.double()(image)
    assert float((wanted - found).abs().max()) < 1e-6


def test_a_grey_stem_answers_as_grey_in_rgb(tmp_path):
    weights = timm_weights(blocks=(1, 1), planes=16, groups=4, width=8)
    path = tmp_path / "small.pth"
    torch.save(weights, path)
    config = SeResNextConfig(blocks=(1, 1), planes=16, groups=4, group_width=8)
    network = SeResNext(config).eval()
    report = load_foreign_weights(
        network, read_foreign_weights(path.read_bytes()), renames=TIMM_TO_MONAI, stem=STEM
    )
    assert not report.missing
    assert not report.left_out
    grey = torch.rand(2, 1, 40, 33)
    with torch.no_grad():
        wanted = published(weights, grey.expand(-1, 3, -1, -1), groups=4)
        assert torch.allclose(network(grey), wanted, atol=1e-5)


def test_everything_left_out_is_said():
    weights = timm_weights(blocks=(1, 1), planes=16, groups=4, width=8, outputs=1000, se=False)
    network = SeResNext(SeResNextConfig(blocks=(1, 1), planes=16, groups=4, group_width=8))
    report = load_foreign_weights(network, weights, renames=TIMM_TO_MONAI, stem=STEM)
    assert report.left_out == ("fc.weight", "fc.bias")
    assert sum("se_layer" in name for name in report.missing) == 8
    assert {"last_linear.weight", "last_linear.bias"} <= set(report.missing)
    assert "2 left out: fc.weight, fc.bias" in str(report)
    with pytest.raises(DataError, match="none of the file's entries fits"):
        load_foreign_weights(network, {"a": torch.zeros(2)}, renames=TIMM_TO_MONAI)


def test_weights_are_tensors_and_nothing_else(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert set(read_foreign_weights((tmp_path / "a.safetensors").read_bytes())) == {"a"}
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    (tmp_path / "b.safetensors").write_bytes(b"no")
    (tmp_path / "c.onnx").write_bytes(b"no")
    for name in ("whole.pt", "b.safetensors", "c.onnx"):
        with pytest.raises(DataError, match="no weights"):
            read_foreign_weights((tmp_path / name).read_bytes())
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(DataError, match="no table of tensors"):
        read_foreign_weights((tmp_path / "list.pt").read_bytes())


def test_a_network_of_another_shape_is_refused():
    for wrong, said in (
        ({"blocks": ()}, "blocks"),
        ({"groups": 0}, "groups"),
        ({"planes": 8, "group_width": 4}, "planes x group_width"),
        ({"reduction": 1000}, "reduction"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ValueError, match=said):
            SeResNextConfig(**wrong)
    network = SeResNext(SeResNextConfig(blocks=(1,), planes=16, groups=4, group_width=8))
    with pytest.raises(ValueError, match=r"\(batch, 1, height, width\)"):
        network(torch.zeros(1, 3, 32, 32))
