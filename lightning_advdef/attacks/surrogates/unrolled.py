"""Unrolled: the gradient through the steps of an iterative purifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.attacks.surrogates.bpda import replace_value
from lightning_advdef.checkpoints import plain
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Access, IterativePurifier


class _Steps(torch.autograd.Function):
    """Steps of a purifier; keeps one state per segment and repeats the segment for the backward pass.

    Finished images leave the batch between segments, unless its shape is ``fixed``.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, purifier: IterativePurifier, steps: int, every: int, fixed: bool) -> Tensor:
        ctx.purifier, ctx.segments = purifier, []
        kind = images.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), False)
        images, rows = images.clone(), torch.arange(len(images), device=images.device)
        for first in range(0, steps, every):
            if not len(rows):
                break
            state, length = images[rows], min(every, steps - first)
            ctx.segments.append((rows, state, length))
            for _ in range(length):
                state, moving = purifier.step(state)
            images[rows] = state
            rows = rows if fixed and moving.any() else rows[moving]
        return images

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient = gradients[0].clone()
        with torch.autocast(*ctx.autocast):
            for rows, start, length in reversed(ctx.segments):
                gradient[rows] = _pull_back(ctx.purifier, start, length, gradient[rows])
        return gradient, None, None, None, None


def _pull_back(purifier: IterativePurifier, start: Tensor, length: int, gradient: Tensor) -> Tensor:
    """The gradient before some steps, given that after them."""
    states = [start]
    for _ in range(length - 1):
        states.append(purifier.step(states[-1])[0])
    for state in reversed(states):
        with torch.enable_grad():
            leaf = state.detach().requires_grad_()
            stepped, _ = purifier.step(leaf)
        (gradient,) = torch.autograd.grad(stepped, leaf, gradient)
    return gradient


class Unrolled(Surrogate):
    """White box for a defense with an iterative purifier: the chain rule through its steps.

    The steps before the last ones are taken for the identity, as BPDA does with all of them. The answer is that of the
    purifier, whose data-dependent end is a constant for the gradient.

    Args:
        defense: The deployed defense.
        last: Steps of each image that are differentiated; None for all.
        checkpoint_every: Of so many states one is kept; what lies between is computed again.
        purifier: Another one in place of the defense's own, such as a coarse version of it.

    Raises:
        ValueError: If a number is below 1, or the defense has no iterative purifier.
    """

    access: Access = "adaptive"

    def __init__(
        self,
        defense: nn.Module,
        last: int | None = None,
        checkpoint_every: int = 20,
        purifier: IterativePurifier | None = None,
    ) -> None:
        super().__init__(defense)
        if (last is not None and last < 1) or checkpoint_every < 1:
            raise ValueError(f"Unrolled needs at least 1 of last and checkpoint_every, got {last}, {checkpoint_every}")
        if purifier is None and not hasattr(self.defense, "purifier"):
            raise ValueError(f"{type(defense).__name__} has no iterative purifier to unroll: attack it with BPDA")
        self._given = purifier
        self.last = last
        self.checkpoint_every = checkpoint_every

    @property
    def purifier(self) -> IterativePurifier:
        """What is unrolled."""
        own: IterativePurifier = self._given or self.defense.purifier  # type: ignore[attr-defined]
        return own

    def settings(self) -> dict[str, Any]:
        """What is differentiated, and of which purifier if it is not the defense's own."""
        return {"last": self.last, "checkpoint_every": self.checkpoint_every, "purifier": plain(self._given)}

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits of the defense, shape ``(1, N, K)``."""
        return self.defense.deploy(images, rng.stream("defense"), self._purify).unsqueeze(0)

    def _purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        purifier, steps = self.purifier, self.purifier.max_iter
        state = purifier.init(images, rng)
        if self.last is not None:
            limits = (purifier.run(state).steps - self.last).clamp(min=0)
            state, steps = replace_value(state, purifier.run(state, limits).images), min(self.last, steps)
        found: Tensor = _Steps.apply(state, purifier, steps, self.checkpoint_every, self.defense.fixed_shape)
        return found
