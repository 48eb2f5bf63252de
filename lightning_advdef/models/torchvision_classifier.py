"""The classification networks of torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lightning_advdef.errors import CheckpointError
from lightning_advdef.models.base import Classifier, require_image_size
from lightning_advdef.models.wrapped import rename_split, split_head
from lightning_advdef.types import ImageSpec

# Networks with one embedding per grid cell: the smallest size they take is the only one.
_FIXED_SIZE = ("maxvit_", "vit_")
# Networks with a second classifier for training, which would change the type of the output.
_AUXILIARY = ("googlenet", "inception_v3")


class TorchvisionClassifier(Classifier):
    """A classification network of torchvision, split into its last linear layer and all before.

    SqueezeNet has no linear layer; there ``head`` is the identity and ``features`` gives the logits. The second output
    that Inception and GoogLeNet have for training is left out.

    Args:
        spec: Shape, classes and pixel statistics of the data; three channels.
        name: Torchvision's name of the network, e.g. ``resnet50``, ``alexnet``, ``vgg19``, ``inception_v3``.
        weights: Published weights, e.g. ``IMAGENET1K_V1`` or ``DEFAULT``; downloaded once. Without, weights are random.
        normalization: ``[mean, std]`` in place of the statistics that belong to the published weights or else to the
            data set.

    Raises:
        ValueError: If torchvision has no such network or weights, or the images or classes do not fit them.
        CheckpointError: If the published weights cannot be downloaded.
    """

    def __init__(
        self,
        spec: ImageSpec,
        name: str = "resnet18",
        weights: str | None = None,
        normalization: list[list[float]] | None = None,
    ) -> None:
        published = _published_weights(name, weights)
        if normalization is None and published is not None:
            preprocessing = published.transforms()
            normalization = [list(preprocessing.mean), list(preprocessing.std)]
        super().__init__(spec, normalization)
        _require_fitting_data(name, spec, published)
        network = _build(name, spec.classes, published)
        self.maybe_trained = published is not None
        self._head_name = _last_linear(network)
        self.features, self.head = split_head(network, self._head_name)

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights by the names that they have in here, from a state dict of torchvision's network."""
        return rename_split(state, self._head_name)


def _published_weights(name: str, weights: str | None) -> Any:
    """Torchvision's description of published weights, or ``None``; refuses unknown names."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no classification network named {name!r}, choose one of {', '.join(known)}")
    if weights is None:
        return None
    choices = {"DEFAULT", *torchvision.models.get_model_weights(name).__members__}
    if weights not in choices:
        raise ValueError(
            f"torchvision has no weights {weights!r} for {name}, choose one of {', '.join(sorted(choices))}"
        )
    return torchvision.models.get_model_weights(name)[weights]


def _require_fitting_data(name: str, spec: ImageSpec, published: Any) -> None:
    """Refuses images or classes that the network cannot take.

    Raises:
        ValueError: If channels, size or number of classes do not fit.
    """
    if spec.channels != 3:
        raise ValueError(
            f"{name} needs images with 3 channels, but the data ({spec.name}) has {spec.channels}: "
            "choose another network with --model.network"
        )
    facts = (published or torchvision.models.get_model_weights(name).DEFAULT).meta
    smallest = max(facts["min_size"])
    require_image_size(name, spec, minimum=smallest, exact=(smallest,) if name.startswith(_FIXED_SIZE) else ())
    if published is not None and len(facts["categories"]) != spec.classes:
        raise ValueError(
            f"the published weights of {name} know {len(facts['categories'])} classes, but the data ({spec.name}) has "
            f"{spec.classes}: leave out weights to train from random ones"
        )


def _build(name: str, classes: int, published: Any) -> nn.Module:
    """The network with published or random weights.

    Raises:
        CheckpointError: If the weights cannot be downloaded.
    """
    options: dict[str, Any] = {}
    if name in _AUXILIARY:
        options["aux_logits"] = False
    if published is None:
        options["num_classes"] = classes
        if name in _AUXILIARY:
            options["init_weights"] = True
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=published, **options)
    except OSError as error:
        raise CheckpointError(
            f"the weights {published} could not be downloaded ({error}): put the file {published.url} into "
            f"{torch.hub.get_dir()}/checkpoints, or leave out weights"
        ) from error
    return network


def _last_linear(network: nn.Module) -> str | None:
    """Name of the last linear layer, which in torchvision's networks gives the logits."""
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    return names[-1] if names else None
