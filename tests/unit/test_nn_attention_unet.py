"""Attention U-Net: counts of the originals, arithmetic by hand, what may and may not mix."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medray.nn import attention_unet
from medray.nn.attention_gate import AttentionGate
from medray.nn.attention_unet import AttentionUNet, AttentionUNetConfig
from medray.nn.blocks import BlockStyle, ResidualBlock, upsample_nearest

SMALL = (4, 6, 8)
PRESETS = {
    "g1": attention_unet.g1(),
    "g2": attention_unet.g2(),
    "preset": attention_unet.preset(),
}


def small(name: str, **changes) -> AttentionUNet:
    torch.manual_seed(0)
    return AttentionUNet(replace(PRESETS[name], filters=SMALL, **changes))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def filled(module: nn.Module, seed: int, *, limit: float = 1.0) -> None:
    """Weights and biases from -limit to limit; a zero bias would hide a wrong one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_((torch.rand(value.shape, generator=generator) * 2 - 1) * limit)


@pytest.mark.parametrize(
    ("name", "number"), [("g1", 2_575_741), ("g2", 8_218_637), ("preset", 8_328_077)]
)
def test_parameter_counts(name, number):
    assert count(AttentionUNet(PRESETS[name])) == number


def test_state_keys_are_stable():
    keys = list(small("g2").state_dict())
    assert {key.split(".")[0] for key in keys} == {
        "encoder", "up", "gates", "decoder", "heads", "fuse",
    }  # fmt: skip
    for key in (
        "encoder.blocks.0.conv1.weight",
        "encoder.blocks.2.shortcut.1.running_var",
        "up.1.weight",
        "gates.0.theta.weight",
        "gates.0.psi.bias",
        "gates.0.norm.weight",
        "decoder.1.norm2.bias",
        "heads.0.weight",
        "fuse.bias",
    ):
        assert key in keys
    assert "gate_signal.0.weight" in small("preset").state_dict()
    assert len(small("g1").state_dict()) == 39


@pytest.mark.parametrize("name", PRESETS)
def test_initial_weights_are_those_of_keras(name):
    """he_uniform: |w| < sqrt(6 / fan_in), the bound nearly reached; biases zero."""
    model = AttentionUNet(replace(PRESETS[name], filters=(8, 16, 32)))
    checked = 0
    for layer in model.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            shape = layer.weight.shape
            inputs = shape[1]  # Keras counts a transposed kernel's outputs
            limit = math.sqrt(6 / (inputs * math.prod(shape[2:])))
            largest = layer.weight.abs().max().item()
            assert largest <= limit
            if layer.weight.numel() > 500:
                assert largest > 0.98 * limit
                assert layer.weight.mean().abs() < 4 * limit / math.sqrt(3 * layer.weight.numel())
            assert layer.bias is None or (layer.bias == 0).all()
            checked += 1
    assert checked >= 20


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(8, 12, 16), (4, 8, 8)])
def test_logits_have_the_images_size(name, size):
    model = small(name, in_channels=2, num_classes=3).eval()
    assert model(torch.randn(2, 2, *size)).shape == (2, 3, *size)
    features = model.encode(torch.randn(1, 2, *size))
    ratio = PRESETS[name].pool
    for level, feature in enumerate(features):
        expected = [side // r**level for side, r in zip(size, ratio, strict=True)]
        assert list(feature.shape) == [1, SMALL[level], *expected]


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_gets_a_gradient(name):
    """A layer without one would stop distributed training."""
    model = small(name)
    model(torch.randn(1, 1, 8, 8, 8)).square().sum().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    two = AttentionUNet(replace(PRESETS[name], filters=(4, 6)))
    two(torch.randn(1, 1, 8, 8, 8)).square().sum().backward()
    assert [k for k, p in two.named_parameters() if p.grad is None] == []


def test_g1_keeps_slices_apart():
    model = small("g1")
    filled(model, 1)
    image = torch.randn(1, 1, 6, 8, 8)
    changed = image.clone()
    changed[:, :, 3] = torch.randn(8, 8)
    same = (model(image) == model(changed)).all(dim=4).all(dim=3).all(dim=1)[0]
    assert same.tolist() == [True, True, True, False, True, True]
    deep = small("preset").eval()
    image, changed = image.expand(1, 1, 6, 8, 8)[:, :, :4], changed[:, :, :4]
    assert not (deep(image) == deep(changed)).all(dim=4).all(dim=3).all(dim=1)[0].any()


def gate_by_hand(x, g, w, *, ratio, slope):
    """The gate in loops over voxels, channels last, from the formula's text."""
    (channels, *size), (inner, _) = x.shape, w["phi.weight"].shape[:2]
    psi = np.zeros([s // r for s, r in zip(size, ratio, strict=True)])
    for place in np.ndindex(*psi.shape):
        corner = [p * r for p, r in zip(place, ratio, strict=True)]
        coarse = tuple(p * a // b for p, a, b in zip(place, g.shape[1:], psi.shape, strict=True))
        total = w["psi.bias"][0]
        for f in range(inner):
            value = w["phi.bias"][f] + sum(
                w["phi.weight"][f, c, 0, 0, 0] * g[(c, *coarse)] for c in range(len(g))
            )
            for c in range(channels):
                for step in np.ndindex(*ratio):
                    at = tuple(k + s for k, s in zip(corner, step, strict=True))
                    value += w["theta.weight"][(f, c, *step)] * x[(c, *at)]
            total += w["psi.weight"][0, f, 0, 0, 0] * (value if value > 0 else slope * value)
        psi[place] = 1 / (1 + math.exp(-total))
    out = np.zeros_like(x)
    for place in np.ndindex(*size):
        alpha = psi[tuple(p // r for p, r in zip(place, ratio, strict=True))]
        for k in range(channels):
            out[(k, *place)] = w["out.bias"][k] + sum(
                w["out.weight"][k, c, 0, 0, 0] * x[(c, *place)] * alpha for c in range(channels)
            )
    return out


@pytest.mark.parametrize(
    ("ratio", "gate_size", "slope"),
    [((1, 2, 2), (3, 2, 3), 0.0), ((1, 2, 2), (3, 1, 3), 0.3), ((2, 2, 2), (1, 1, 3), 0.0),
     ((1, 1, 1), (4, 4, 6), 0.3)],
)  # fmt: skip
def test_attention_gate_against_loops(ratio, gate_size, slope):
    size = (4, 4, 6) if ratio[0] != 1 or gate_size[0] == 4 else (3, 4, 6)
    gate = AttentionGate(4, 3, BlockStyle(norm="none", slope=slope), reduction=ratio).double()
    filled(gate, 2)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, *size, generator=generator).double()
    g = torch.randn(1, 3, *gate_size, generator=generator).double()
    weights = {name: value.detach().numpy() for name, value in gate.named_parameters()}
    expected = gate_by_hand(x[0].numpy(), g[0].numpy(), weights, ratio=ratio, slope=slope)
    np.testing.assert_allclose(gate(x, g)[0].detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_closed_gate_lets_only_the_bias_through():
    gate = AttentionGate(2, 2, BlockStyle(norm="none"), reduction=(1, 1, 1))
    with torch.no_grad():
        gate.psi.weight.zero_()
        gate.psi.bias.fill_(-100)
        gate.out.bias.copy_(torch.tensor([3.0, -1.0]))
    out = gate(torch.randn(1, 2, 2, 2, 2), torch.randn(1, 2, 2, 2, 2))
    assert out.amax(dim=(0, 2, 3, 4)).tolist() == [3.0, -1.0]
    assert out.amin(dim=(0, 2, 3, 4)).tolist() == [3.0, -1.0]


@pytest.mark.parametrize("name", PRESETS)
def test_fusion_equals_a_convolution_of_the_stacked_levels(name):
    """The published form: each prediction repeated to full size, stacked, one 1x1x1 convolution."""
    model = small(name, num_classes=3).double().eval()
    filled(model, 4, limit=0.3)
    decoded = []
    for block in model.decoder:
        block.register_forward_hook(lambda module, args, out: decoded.append(out))
    logits = model(torch.randn(1, 1, 8, 8, 8).double()).detach().numpy()
    stack = []
    for head, feature in zip(model.heads, decoded, strict=True):
        weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
        level = np.einsum("kc,cdhw->kdhw", weight[..., 0, 0, 0], feature[0].detach().numpy())
        level += bias[:, None, None, None]
        if model.config.dsv_softmax:
            level = np.exp(level) / np.exp(level).sum(axis=0)
        for axis in (1, 2, 3):
            level = np.repeat(level, 8 // level.shape[axis], axis=axis)
        stack.append(level)
    weight, bias = model.fuse.weight.detach().numpy(), model.fuse.bias.detach().numpy()
    expected = np.einsum("kc,cdhw->kdhw", weight[..., 0, 0, 0], np.concatenate(stack))
    np.testing.assert_allclose(logits[0], expected + bias[:, None, None, None], rtol=1e-9)


def test_instance_norm_is_over_each_volume_and_channel():
    norm = BlockStyle(norm="instance").make_norm(5)
    filled(norm, 6)
    x = np.random.default_rng(0).normal(3, 7, size=(2, 5, 3, 4, 6))
    centered = x - x.mean(axis=(2, 3, 4), keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(axis=(2, 3, 4), keepdims=True) + 1e-5)
    weight, bias = (v.detach().numpy()[:, None, None, None] for v in norm.parameters())
    out = norm(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(out, scaled * weight + bias, rtol=1e-4, atol=1e-5)


def test_batch_norm_has_keras_constants():
    norm = BlockStyle(norm="batch", momentum=0.2).make_norm(3)
    assert (norm.eps, norm.momentum) == (1e-3, 0.2)


def test_group_norm_takes_a_divisor():
    assert BlockStyle(norm="group", groups=8).make_norm(12).num_groups == 4


def test_residual_block_by_hand():
    style = BlockStyle(kernel=(1, 1, 1), norm="none", slope=0.5)
    block = ResidualBlock(1, 2, style)
    filled(block, 5)
    w = {name: value.detach().flatten().numpy() for name, value in block.named_parameters()}
    for value in (-2.0, 0.0, 1.5):
        leaky = [v if v > 0 else 0.5 * v for v in w["conv1.weight"] * value + w["conv1.bias"]]
        inner = w["conv2.weight"].reshape(2, 2) @ np.array(leaky) + w["conv2.bias"]
        total = inner + w["shortcut.0.weight"] * value + w["shortcut.0.bias"]
        expected = [v if v > 0 else 0.5 * v for v in total]
        out = block(torch.full((1, 1, 1, 1, 1), value)).flatten().tolist()
        assert out == pytest.approx(expected, rel=1e-5)
    assert isinstance(ResidualBlock(2, 2, style).shortcut, nn.Identity)


def test_upsampling_repeats_voxels():
    x = torch.randn(2, 3, 2, 3, 4)
    expected = x.repeat_interleave(2, 2).repeat_interleave(4, 4)
    assert torch.equal(upsample_nearest(x, (4, 3, 16)), expected)
    assert upsample_nearest(x, (2, 3, 4)) is x


@pytest.mark.parametrize("name", PRESETS)
def test_half_precision_and_channels_last_agree(name):
    model = small(name).eval()
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        plain = model(image)
        model = model.to(memory_format=torch.channels_last_3d)
        last = model(image.contiguous(memory_format=torch.channels_last_3d))
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(image)
    assert (half.float() - plain).abs().mean() < 0.05 * plain.abs().mean() + 0.05


def test_only_the_batch_norm_mixes_examples():
    images = torch.randn(2, 1, 8, 8, 8)
    for norm, mixes in (("instance", False), ("group", False), ("batch", True), ("none", False)):
        model = small("preset", norm=norm)
        alone = torch.cat([model(images[:1]), model(images[1:])])
        assert torch.allclose(model(images), alone, atol=1e-5) is not mixes


def test_dropout_acts_in_training_alone():
    for name in ("g1", "preset"):
        model = small(name, dropout=0.5)
        image = torch.randn(1, 1, 8, 8, 8)
        assert not torch.equal(model(image), model(image))
        model.eval()
        assert torch.equal(model(image), model(image))


@pytest.mark.slow
def test_the_graph_is_whole():
    """One graph without a break: what compilation needs to be worth its time."""
    model = small("preset").eval()
    image = torch.randn(1, 1, 8, 8, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.parametrize(
    ("size", "message"),
    [((8, 8, 10), r"of size \(8, 8, 10\) does not divide by the network's stride \(4, 4, 4\)"),
     ((2, 8, 8), "does not divide"), ((4, 4, 4), "leaves one voxel at stride")],
)  # fmt: skip
def test_sizes_that_do_not_fit(size, message):
    with pytest.raises(ValueError, match=message):
        small("preset")(torch.randn(1, 1, *size))


def test_images_of_another_rank_or_channel_count():
    for shape in ((1, 8, 8, 8), (1, 2, 8, 8, 8)):
        with pytest.raises(ValueError, match=r"must be \(batch, 1, depth, height, width\), got"):
            small("g1")(torch.randn(*shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"filters": (8,)}, "filters must be at least two"),
     ({"filters": (8, 0)}, "filters must be at least two"),
     ({"pool": (1, 2, 3)}, "pool must be 1 or 2"),
     ({"gate": "both"}, "gate must be bottleneck or decoder, got 'both'"),
     ({"num_classes": 1}, "num_classes at least 2"),
     ({"kernel": (2, 3, 3)}, "kernel must have odd sides"),
     ({"norm": "layer"}, "norm must be one of none, batch, instance, group, got 'layer'"),
     ({"momentum": 0.0}, r"momentum must lie in \(0, 1\]"),
     ({"groups": 0}, "groups must be at least 1"),
     ({"slope": 1.0}, r"slope must lie in \[0, 1\)"),
     ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)")],
)  # fmt: skip
def test_settings_that_make_no_network(changes, message):
    with pytest.raises(ValueError, match=message):
        AttentionUNetConfig(**changes)


@pytest.mark.parametrize("name", PRESETS)
def test_two_steps_at_full_width(name):
    torch.manual_seed(0)
    model = AttentionUNet(PRESETS[name])
    size = (2, 16, 16) if name == "g1" else (16, 16, 32)
    image, mask = torch.randn(2, 1, *size), (torch.rand(2, *size) > 0.7).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(image), mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(value) for value in losses)
    assert all(p.isfinite().all() for p in model.parameters())
