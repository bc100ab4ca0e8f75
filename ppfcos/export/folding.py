"""Batch norms that follow a convolution, folded into it."""

from __future__ import annotations

import copy

from paddle import nn

from ppfcos.modeling.norm_folding import folded_weights, norms_behind_convolutions, replace_layer


def folded_copy(model: nn.Layer) -> nn.Layer:
    """A copy of a model for inference, in which convolutions do the work of the batch norms behind them.

    Args:
        model: a PPFCOS; it stays as it is.

    Returns:
        The copy, in evaluation mode. A norm that is not behind one convolution alone stays.
    """
    model = copy.deepcopy(model)
    model.eval()
    for norm, conv in norms_behind_convolutions(model):
        _fold(norm, conv)
        replace_layer(model, norm, nn.Identity())
    return model


def _fold(norm: nn.Layer, conv: nn.Layer) -> None:
    weight, bias = folded_weights(conv, norm)
    conv.weight.set_value(weight)
    if conv.bias is None:
        conv.bias = conv.create_parameter([len(bias)], is_bias=True)
    conv.bias.set_value(bias)
