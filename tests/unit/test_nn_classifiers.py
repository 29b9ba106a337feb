"""Classifiers: counts of the originals, layers in order, shapes, keys, two real steps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medray.nn import attention_unet, encoder_classifier
from medray.nn.attention_unet import AttentionUNet
from medray.nn.blocks import ResidualBlock
from medray.nn.cnn3d import PlainCnn3d, PlainCnn3dConfig, ResidualCnn3d, ResidualCnn3dConfig
from medray.nn.encoder_classifier import (
    EncoderClassifier,
    EncoderClassifierConfig,
    MaskAndClass,
)
from medray.nn.heads import FlattenHead, PoolHead

SMALL = (4, 6, 8)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def two_steps(model: nn.Module, image: torch.Tensor, loss_of) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss = loss_of(model(image))
        loss.backward()
        assert [k for k, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        assert math.isfinite(loss.item())
    assert all(p.isfinite().all() for p in model.parameters())


def binary(logits: torch.Tensor) -> torch.Tensor:
    target = torch.arange(len(logits)).remainder(2).float()[:, None]
    return nn.functional.binary_cross_entropy_with_logits(logits, target)


def test_plain_counts():
    assert count(PlainCnn3d(PlainCnn3dConfig())) == 294_915
    assert count(PlainCnn3d(PlainCnn3dConfig(num_classes=4))) == 294_915 + 129


def test_plain_layers_are_the_originals_in_order():
    """Convolution, ReLU, norm, pool, thrice; mean; dense, ReLU; dense: with torch's functions."""
    torch.manual_seed(0)
    model = PlainCnn3d(PlainCnn3dConfig(widths=(4, 5, 6), hidden=7)).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.1 * ("running_var" in name) - 0.3)
                if "running_var" in name:
                    value.abs_()
    s = model.state_dict()
    x = image = torch.randn(2, 1, 16, 9, 11)
    for k in range(3):
        x = nn.functional.conv3d(
            x, s[f"stages.{k}.conv.weight"], s[f"stages.{k}.conv.bias"], padding=1
        ).relu()
        mean, var = (
            s[f"stages.{k}.norm.running_{n}"][:, None, None, None] for n in ("mean", "var")
        )
        gain, bias = (s[f"stages.{k}.norm.{n}"][:, None, None, None] for n in ("weight", "bias"))
        x = (x - mean) / (var + 1e-3).sqrt() * gain + bias
        x = nn.functional.max_pool3d(x, 2)
    x = (x.mean(dim=(2, 3, 4)) @ s["hidden.weight"].T + s["hidden.bias"]).relu()
    expected = x @ s["logits.weight"].T + s["logits.bias"]
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)


def test_plain_constants_and_first_weights_are_those_of_keras():
    model = PlainCnn3d(PlainCnn3dConfig())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]
    assert [(n.eps, n.momentum) for n in norms] == [(1e-3, 0.01)] * 3
    assert [s.dropout.p for s in model.stages] == [0.2, 0.2, 0.3]
    assert model.dropout.p == 0.5
    for layer in model.modules():
        if isinstance(layer, nn.Conv3d | nn.Linear):
            outputs, inputs = layer.weight.shape[:2]
            voxels = math.prod(layer.weight.shape[2:])
            limit = math.sqrt(6 / ((inputs + outputs) * voxels))
            assert 0.97 * limit < layer.weight.abs().max() <= limit
            assert (layer.bias == 0).all()


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_plain_without_batch_norm_does_not_mix_examples_and_sees_the_image(norm):
    torch.manual_seed(0)
    config = PlainCnn3dConfig(
        widths=(4, 8, 8), norm=norm, dropouts=(0.0, 0.0, 0.0), hidden_dropout=0.0
    )
    model = PlainCnn3d(config)
    images = torch.randn(2, 1, 16, 16, 16)
    images[1, :, :8] += 2
    out = model(images)
    torch.testing.assert_close(out, torch.cat([model(images[:1]), model(images[1:])]))
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_plain_state_keys():
    assert {k.split(".")[0] for k in PlainCnn3d(PlainCnn3dConfig()).state_dict()} == {
        "stages", "hidden", "logits",
    }  # fmt: skip


def test_residual_starts_as_its_shortcuts_and_halves_each_stage():
    torch.manual_seed(0)
    model = ResidualCnn3d(ResidualCnn3dConfig(widths=(4, 6, 8), blocks=2))
    blocks = [m for m in model.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 6
    assert all((b.norm2.weight == 0).all() for b in blocks)
    sizes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape[1:])))
    assert model(torch.randn(2, 1, 16, 24, 32)).shape == (2, 3)
    assert sizes == [(4, 8, 12, 16), (6, 4, 6, 8), (8, 2, 3, 4)]
    x = torch.randn(1, 4, 4, 4, 4)
    assert torch.equal(blocks[1](x), x.relu())


def test_residual_does_not_depend_on_the_batch():
    model = ResidualCnn3d(ResidualCnn3dConfig(widths=(8, 16))).eval()
    images = torch.randn(3, 1, 9, 8, 8)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)


def block_count(before: int, after: int, *, shortcut: bool) -> int:
    """Two convolutions with bias and norm, and a 1x1x1 one with norm on the way past them."""
    convolutions = 27 * before * after + 27 * after * after + 2 * after
    return convolutions + 4 * after + shortcut * (before * after + 3 * after)


def test_residual_counts_and_keys():
    model = ResidualCnn3d(ResidualCnn3dConfig())
    stem = 27 * 16 + 3 * 16
    blocks = block_count(16, 16, shortcut=False) + sum(
        block_count(c, 2 * c, shortcut=True) for c in (16, 32, 64)
    )
    assert count(model) == stem + blocks + 2 * 128 * 3 + 3 == 898_851
    assert {k.split(".")[0] for k in model.state_dict()} == {"stem", "stem_norm", "stages", "head"}
    assert "stages.1.0.shortcut.0.weight" in model.state_dict()


def test_pool_head_by_hand():
    head = PoolHead(2, 1, dropout=0.0)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
        head.linear.bias.fill_(0.5)
    x = torch.tensor([[1.0, 3.0], [-4.0, -2.0]]).reshape(1, 2, 1, 1, 2)
    assert head(x).item() == 2 - 30 + 300 - 2000 + 0.5


def test_flatten_head_is_bound_to_its_size():
    head = FlattenHead(2, 3, size_zyx=(1, 2, 3), dropout=0.0)
    x = torch.randn(4, 2, 1, 2, 3)
    expected = x.numpy().reshape(4, 12) @ head.linear.weight.detach().numpy().T
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"made for features of size \(1, 2, 3\) got \(2, 2, 3\)"):
        head(torch.randn(4, 2, 2, 2, 3))


def test_encoder_classifier_counts():
    """The original's: the segmentation network's encoder and 6^3 x 256 weights with one bias."""
    encoder = count(AttentionUNet(attention_unet.g2()).encoder)
    assert count(EncoderClassifier(encoder_classifier.g2())) == encoder + 6**3 * 256 + 1
    pairs = [(1, 16), (16, 32), (32, 64), (64, 128), (128, 256)]
    blocks = sum(block_count(*pair, shortcut=True) for pair in pairs)
    assert encoder == blocks
    assert count(EncoderClassifier(encoder_classifier.preset())) == blocks + 513 == 3_580_977


def test_encoder_weights_pass_between_the_networks():
    config = replace(encoder_classifier.preset(), unet=attention_unet.preset(SMALL))
    classifier, unet = EncoderClassifier(config), AttentionUNet(config.unet)
    state = {k: v for k, v in unet.state_dict().items() if k.startswith("encoder.")}
    left = classifier.load_state_dict(state, strict=False)
    assert left.unexpected_keys == []
    assert left.missing_keys == ["head.linear.weight", "head.linear.bias"]


@pytest.mark.parametrize("head", ["pool", "flatten"])
def test_encoder_classifier_gives_one_logit(head):
    config = EncoderClassifierConfig(
        unet=attention_unet.preset(SMALL), head=head, size_zyx=(8, 8, 16)
    )
    assert EncoderClassifier(config)(torch.randn(3, 1, 8, 8, 16)).shape == (3, 1)


def test_the_joint_network_is_both_at_once():
    torch.manual_seed(0)
    config = encoder_classifier.preset(SMALL)
    joint = MaskAndClass(config).eval()
    image = torch.randn(2, 1, 8, 8, 8)
    out = joint(image)
    assert set(out) == {"mask", "class"}
    assert torch.equal(out["mask"], joint.unet(image))
    alone = EncoderClassifier(config).eval()
    alone.encoder.load_state_dict(joint.unet.encoder.state_dict())
    alone.head.load_state_dict(joint.head.state_dict())
    assert torch.equal(out["class"], alone(image))
    assert out["class"].shape == (2, 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [(lambda: PlainCnn3dConfig(widths=()), "widths must be counts of channels"),
     (lambda: PlainCnn3dConfig(hidden=0), "hidden must be at least 1"),
     (lambda: PlainCnn3dConfig(dropouts=(0.1,)), "dropouts must be one a stage: 3 widths"),
     (lambda: PlainCnn3dConfig(hidden_dropout=1.0), r"dropouts must lie in \[0, 1\)"),
     (lambda: PlainCnn3dConfig(norm="layer"), "norm must be one of"),
     (lambda: PlainCnn3dConfig(num_classes=0), "num_classes must be at least 1"),
     (lambda: ResidualCnn3dConfig(blocks=0), "blocks must be at least 1"),
     (lambda: ResidualCnn3dConfig(dropout=-0.1), r"dropout must lie in \[0, 1\)"),
     (lambda: ResidualCnn3dConfig(groups=0), "groups must be at least 1"),
     (lambda: EncoderClassifierConfig(head="mean"), "head must be pool or flatten, got 'mean'"),
     (lambda: EncoderClassifierConfig(dropout=1.0), r"dropout must lie in \[0, 1\)"),
     (lambda: EncoderClassifierConfig(size_zyx=(96, 96, 90)), "does not divide by the stride")],
)  # fmt: skip
def test_settings_that_make_no_network(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "make",
    [
        lambda: PlainCnn3d(PlainCnn3dConfig()),
        lambda: ResidualCnn3d(ResidualCnn3dConfig(widths=(4, 8, 8))),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 7), (1, 2, 8, 8, 8), (1, 8, 8, 8)])
def test_images_that_do_not_fit(make, shape):
    with pytest.raises(ValueError, match="with sides of at least 8 voxels, got shape"):
        make()(torch.randn(*shape))


@pytest.mark.parametrize(
    "make",
    [lambda: PlainCnn3d(PlainCnn3dConfig()), lambda: ResidualCnn3d(ResidualCnn3dConfig())],
)
def test_half_precision_and_channels_last_agree(make):
    torch.manual_seed(0)
    model = make().eval()
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        plain = model(image)
        model = model.to(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(model(image), plain, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(image).float() - plain).abs().max() < 0.1 * plain.abs().max() + 0.05


def test_two_steps_at_full_width():
    torch.manual_seed(0)
    labels = torch.tensor([0, 2])
    for model in (PlainCnn3d(PlainCnn3dConfig()), ResidualCnn3d(ResidualCnn3dConfig())):
        image = torch.randn(2, 1, 16, 16, 16)
        two_steps(model, image, lambda out: nn.functional.cross_entropy(out, labels))
    flat = replace(encoder_classifier.g2(), size_zyx=(32, 16, 16))
    two_steps(EncoderClassifier(flat), torch.randn(2, 1, 32, 16, 16), binary)
    two_steps(EncoderClassifier(encoder_classifier.preset()), torch.randn(2, 1, 16, 16, 16), binary)


def test_two_joint_steps():
    joint = MaskAndClass(encoder_classifier.preset((8, 16, 32)))
    two_steps(
        joint,
        torch.randn(2, 1, 16, 16, 16),
        lambda out: binary(out["class"]) + out["mask"].square().mean(),
    )
