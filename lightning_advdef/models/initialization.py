"""How weights start."""

from __future__ import annotations

from typing import Literal

from torch import nn


def kaiming_init(network: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Draws weights of linear and (transposed) convolutional layers anew and sets their biases to zero, in place.

    Source: He et al., 2015, https://arxiv.org/abs/1502.01852, normal distribution with the gain of ReLU.

    Args:
        network: Its other layers, such as batch normalisation, keep their values.
        mode: Whether the variance is kept in the forward (``fan_in``) or in the backward pass.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
