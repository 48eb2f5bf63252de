"""Any network as a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from lightning_advdef.models.base import Classifier
from lightning_advdef.models.modes import same_modes
from lightning_advdef.models.outputs import refuse_probabilities
from lightning_advdef.types import ImageSpec


class WrappedClassifier(Classifier):
    """Any network as a classifier; in YAML ``module`` is a class path with its arguments.

    .. code-block:: yaml

        network:
          class_path: WrappedClassifier
          init_args:
            module: {class_path: my_package.MyNet, init_args: {width: 32}}
            head: fc

    Args:
        spec: Shape, classes and pixel statistics of the data.
        module: Takes normalised images ``(N, C, H, W)`` and gives logits ``(N, K)``. It is copied.
        head: Name of the last layer within ``module``, e.g. ``fc`` or ``classifier.6``. Without, ``head`` is the
            identity and ``features`` gives the logits; methods that work on embeddings need it.
        normalization: ``[mean, std]`` in place of the statistics of the data set; ``[[0], [1]]`` where ``module``
            normalises on its own.

    Raises:
        ValueError: If ``module`` cannot take the images, does not give one logit per class, gives probabilities, or
            has no such last layer.
    """

    maybe_trained = True  # nobody knows of somebody else's module

    def __init__(
        self,
        spec: ImageSpec,
        module: nn.Module,
        head: str | None = None,
        normalization: list[list[float]] | None = None,
    ) -> None:
        super().__init__(spec, normalization)
        module = deepcopy(module)
        name = type(module).__name__
        logits = _logits_of_one_image(module, spec)
        _require_logits(name, logits, spec)
        self.features, self.head = split_head(module, head)
        self._head_name = head
        if not _gives(nn.Sequential(self.features, self.head), logits, spec):
            raise ValueError(f"head={head!r} is not the last layer of {name}: name the layer that gives the logits")

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights by the names that they have in here, from a state dict of ``module``."""
        return rename_split(state, self._head_name)


def split_head(module: nn.Module, name: str | None) -> tuple[nn.Module, nn.Module]:
    """Takes the last layer out of a network and puts the identity in its place.

    Args:
        module: Network, changed in place.
        name: Name of the layer within ``module``; ``None`` takes nothing out.

    Returns:
        The network up to the layer, and the layer.

    Raises:
        ValueError: If there is no layer of that name.
    """
    if name is None:
        return module, nn.Identity()
    if name not in dict(module.named_modules()) or not name:
        last = [candidate for candidate, layer in module.named_modules() if isinstance(layer, nn.Linear)][-1:]
        hint = f"; its last linear layer is {last[0]!r}" if last else ""
        raise ValueError(f"{type(module).__name__} has no layer named {name!r} to be the head{hint}")
    head = module.get_submodule(name)
    module.set_submodule(name, nn.Identity())
    return module, head


def rename_split(state: Mapping[str, Tensor], name: str | None) -> dict[str, Tensor]:
    """Weights of a network by the names that they have once :func:`split_head` has taken out the layer ``name``."""
    start = f"{name}."
    return {
        f"head.{key.removeprefix(start)}" if key.startswith(start) else f"features.{key}": value
        for key, value in state.items()
    }


def _logits_of_one_image(module: nn.Module, spec: ImageSpec) -> Tensor:
    """What the network gives in eval mode for a fixed image; modes are put back."""
    parameter = next(module.parameters(), torch.zeros(()))
    image = torch.linspace(-1, 1, spec.channels * spec.height * spec.width, device=parameter.device)
    try:
        with same_modes(module), torch.no_grad():
            output = module.eval()(image.view(1, *spec.shape))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"{type(module).__name__} cannot take images of shape {spec.shape} ({spec.name}): {error}"
        ) from error
    return output if isinstance(output, Tensor) else torch.empty(0)


def _gives(module: nn.Module, logits: Tensor, spec: ImageSpec) -> bool:
    """Whether the network still gives the logits it gave for the fixed image."""
    try:
        again = _logits_of_one_image(module, spec)
    except ValueError:
        return False
    return again.shape == logits.shape and torch.allclose(again, logits, rtol=1e-4, atol=1e-5)


def _require_logits(name: str, logits: Tensor, spec: ImageSpec) -> None:
    """Refuses a network that does not give one logit per class.

    Raises:
        ValueError: If the shape is another, or the output is the softmax of logits.
    """
    if logits.shape != (1, spec.classes):
        raise ValueError(
            f"{name} must give logits of shape (N, {spec.classes}) for {spec.name}, "
            f"got {tuple(logits.shape) if logits.numel() else 'no tensor'} for one image"
        )
    refuse_probabilities(name, logits)
