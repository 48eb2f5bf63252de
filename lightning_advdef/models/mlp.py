"""The multilayer perceptron of Deep Defense."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from lightning_advdef.models.base import Classifier
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec


class MLP(Classifier):
    """Fully connected network with ReLU, by default 784-500-150-10 on MNIST.

    Source: Yan et al., 2018, "Deep Defense"; with ``batch_norm`` the MLPBN of the authors' code.

    Args:
        spec: Shape, classes and pixel statistics of the data.
        hidden: Width of each hidden layer; ``[]`` makes a linear classifier.
        batch_norm: Whether batch normalisation follows each hidden layer.
        normalization: ``[mean, std]`` in place of the statistics of the data set.

    Raises:
        ValueError: If a width is not positive.
    """

    def __init__(
        self,
        spec: ImageSpec,
        hidden: Sequence[int] = (500, 150),
        batch_norm: bool = False,
        normalization: list[list[float]] | None = None,
    ) -> None:
        super().__init__(spec, normalization)
        if any(width < 1 for width in hidden):
            raise ValueError(f"MLP needs hidden widths of at least 1, got hidden={list(hidden)}")
        widths = [prod(spec.shape), *hidden]
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            layers[f"fc{number}"] = nn.Linear(before, after)
            if batch_norm:
                layers[f"bn{number}"] = nn.BatchNorm1d(after)
            layers[f"relu{number}"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        self.head = nn.Linear(widths[-1], spec.classes)
        kaiming_init(self)
