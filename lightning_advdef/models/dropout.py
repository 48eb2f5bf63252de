"""Dropout masks that stay the same for all forwards of one training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

# Layers that multiply their input by random numbers. AlphaDropout also adds, so it is not among them.
_MULTIPLICATIVE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, StochasticDepth)


class SharedDropoutMasks:
    """The masks of one training step; made by ``shared_dropout_masks``.

    The first forward draws one mask per layer and image and so defines the batch. Later forwards reuse them.
    """

    def __init__(self) -> None:
        self._masks: dict[nn.Module, Tensor] = {}
        self._rows: Tensor | None = None

    def select(self, rows: Tensor | None) -> None:
        """States which images of the batch the next forwards will get.

        Args:
            rows: Position in the original batch of each image, int64, shape ``(M,)``; repetition is allowed. ``None``
                stands for the whole batch in its order.
        """
        self._rows = rows

    def apply(self, layer: nn.Module, draw: Callable[[Tensor], Tensor], activations: Tensor) -> Tensor:
        """What ``layer`` gives for ``activations`` ``(M, ...)`` with the mask of the step.

        Args:
            layer: A dropout layer; in eval mode it does nothing.
            draw: The layer's own forward.
            activations: The layer's input.

        Raises:
            ValueError: If the selected rows do not fit the activations, or the step begins with selected rows.
        """
        if not layer.training:
            return activations
        if layer not in self._masks:
            if self._rows is not None:
                raise ValueError("the first forward inside shared_dropout_masks must get the whole batch: select(None)")
            # the layer itself draws, so the numbers and the scale are those of ordinary dropout
            self._masks[layer] = draw(torch.ones_like(activations))
        mask = self._masks[layer] if self._rows is None else self._masks[layer][self._rows]
        if mask.shape != activations.shape:
            raise ValueError(
                f"dropout mask {tuple(mask.shape)} does not fit activations {tuple(activations.shape)}: "
                "call select(rows) with one position in the original batch per image"
            )
        return activations * mask


@contextmanager
def shared_dropout_masks(network: nn.Module) -> Iterator[SharedDropoutMasks]:
    """Keeps one dropout mask per image for every forward inside the ``with`` block.

    Deep Defense needs it: the cross-entropy forward and all steps of its unrolled attack must see the same network.
    Works for ordinary dropout layers and stochastic depth of any network in train mode, and lets gradients of any
    order pass. A layer that is used twice in one forward gets the same mask both times.

    Args:
        network: Network whose dropout layers share masks; unchanged after the block.

    Yields:
        The masks, whose ``select(rows)`` serves forwards of only some of the images.

    Raises:
        ValueError: If the network is already inside such a block.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
        >>> images = torch.rand(4, 1, 2, 2)
        >>> with shared_dropout_masks(network) as masks:
        ...     whole = network(images)
        ...     masks.select(torch.tensor([2, 0, 2]))
        ...     part = network(images[[2, 0, 2]])
        >>> torch.equal(part, whole[[2, 0, 2]])
        True
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _MULTIPLICATIVE)]
    if any("forward" in vars(layer) for layer in layers):
        raise ValueError("shared_dropout_masks cannot be nested: use the masks of the outer block")
    masks = SharedDropoutMasks()
    for layer in layers:
        layer.forward = partial(masks.apply, layer, layer.forward)  # type: ignore[method-assign]
    try:
        yield masks
    finally:
        for layer in layers:
            del layer.forward
