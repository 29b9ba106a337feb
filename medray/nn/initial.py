"""Initial weights as Keras draws them; torch's own defaults are others."""

from torch import nn

_LAYERS = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)


def he_uniform(module: nn.Module) -> None:
    """Draw every kernel from U(-l, l), l = sqrt(6 / fan_in), and set biases to zero.

    Keras `he_uniform`. A transposed kernel's fan_in is (output channels x kernel voxels) there
    and here.
    """
    for layer in module.modules():
        if isinstance(layer, _LAYERS):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            _zero_bias(layer)


def glorot_uniform(module: nn.Module) -> None:
    """Draw every kernel from U(-l, l), l = sqrt(6 / (fan_in + fan_out)), and set biases to zero.

    Keras `glorot_uniform`, the default of its layers.
    """
    for layer in module.modules():
        if isinstance(layer, _LAYERS):
            nn.init.xavier_uniform_(layer.weight)
            _zero_bias(layer)


def _zero_bias(layer: nn.Conv3d | nn.ConvTranspose3d | nn.Linear) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
