"""The output of a layer inside a network, without running what comes after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from lightning_advdef.models.base import Normalize
from lightning_advdef.models.modes import same_modes

# traced through, its buffers would be copies that stay behind when the network moves to another device
_LEAVES = {"leaf_modules": [Normalize]}


class FeatureTap:
    """Gives the output of one layer, alone or beside the logits.

    The layers are traced with torchvision's feature extraction and are those of the network itself: weights, buffers
    and modes are shared. No later layer is in the shortened network. It is no module, so that a defense that holds one
    has no weights twice.

    Args:
        network: Images ``(N, C, H, W)`` to logits.
        layer: A name of :func:`layer_names`, such as ``features.group0``; a module's name stands for its output.

    Raises:
        ValueError: If the network has no such layer before its output or cannot be traced.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        names = layer_names(network)
        if layer not in _with_modules(names) - _with_modules(names[-1:]):
            raise ValueError(
                f"{type(network).__name__} has no layer {layer!r} before its output: choose one of "
                f"{', '.join(names[:-1])}"
            )
        self.network = network
        self.layer = layer
        self._output = names[-1]
        self._device = _device(network)
        self._shortened: GraphModule | None = None
        self._whole: GraphModule | None = None

    def features(self, images: Tensor) -> Tensor:
        """The layer's output ``(N, ...)``; nothing after it runs."""
        self._follow()
        if self._shortened is None:
            self._shortened = self._extract({self.layer: "features"})
        found: Tensor = self._with_mode(self._shortened)(images)["features"]
        return found

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output ``(N, ...)`` and the logits ``(N, K)``, from one forward pass."""
        self._follow()
        if self._whole is None:
            self._whole = _with_copied_features(self._extract({self.layer: "features", self._output: "logits"}))
        found = self._with_mode(self._whole)(images)
        return found["features"], found["logits"]

    def _extract(self, nodes: dict[str, str]) -> GraphModule:
        with torch.inference_mode(False), same_modes(self.network):
            found: GraphModule = create_feature_extractor(
                self.network, return_nodes=nodes, tracer_kwargs=_LEAVES, suppress_diff_warning=True
            )
        return found

    def _follow(self) -> None:
        """Traces anew after a move to another device, since parameters and buffers of traced modules may be copies."""
        device = _device(self.network)
        if device != self._device:
            self._device, self._shortened, self._whole = device, None, None

    def _with_mode(self, extractor: GraphModule) -> GraphModule:
        """In the mode of the network, as functional layers need it, while its layers keep the modes that they have."""
        if extractor.training != self.network.training:
            with same_modes(self.network):
                extractor.train(self.network.training)
        return extractor


def _with_copied_features(extractor: GraphModule) -> GraphModule:
    """Returns the features as they leave the tap, which a layer behind it may change in place."""
    graphs: Any = extractor.train_graph, extractor.eval_graph
    for graph in graphs:
        (output,) = graph.find_nodes(op="output")
        with graph.inserting_after(output.args[0]["features"]):
            features = graph.call_method("clone", (output.args[0]["features"],))
        output.update_arg(0, {**output.args[0], "features": features})
    extractor.recompile()
    return extractor


def layer_names(network: nn.Module) -> list[str]:
    """What may be tapped, in the order of execution; the last is the output of the network.

    Raises:
        ValueError: If the network cannot be traced.
    """
    try:
        names: list[str] = []
        with same_modes(network):
            names, _ = get_graph_node_names(network, tracer_kwargs=_LEAVES, suppress_diff_warning=True)
    except Exception as error:  # tracing runs the code of any network
        raise ValueError(
            f"{type(network).__name__} cannot be traced for its layers ({error}): take a network whose forward has no "
            "branches that depend on tensors"
        ) from error
    return names


def _with_modules(names: list[str]) -> set[str]:
    """The names and those of the modules that hold them."""
    parts = [name.split(".") for name in names]
    return {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}


def _device(network: nn.Module) -> torch.device:
    return next((weight.device for weight in network.parameters()), torch.device("cpu"))
