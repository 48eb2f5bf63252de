"""Attackers who know RIDE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_advdef.attacks import BPDA, Surrogate
from lightning_advdef.attacks.surrogates.bpda import replace_value
from lightning_advdef.defenses.ride.estimation import Estimation
from lightning_advdef.defenses.ride.presets import hastened
from lightning_advdef.defenses.ride.progress import progress
from lightning_advdef.defenses.ride.purifier import RIDE
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Access, slices

_LAST = 20


def _purifier_of(surrogate: Surrogate) -> RIDE:
    found = getattr(surrogate.defense, "purifier", None)
    if not isinstance(found, RIDE):
        raise ValueError(
            f"{type(surrogate).__name__} attacks RIDE alone, got {type(surrogate.defense).__name__}: take BPDA for it"
        )
    return found


class FastBPDA(BPDA):
    """BPDA for the search with a fifth of RIDE's steps; the verdict is that of the deployed number.

    Args:
        defense: A :class:`RIDEModule`.
        stand_in: See :class:`BPDA`.

    Raises:
        ValueError: If the defense is not RIDE.
    """

    access: Access = "adaptive"

    def __init__(self, defense: nn.Module, stand_in: nn.Module | None = None) -> None:
        super().__init__(defense, stand_in)
        self.purifier = hastened(_purifier_of(self))

    def deployed(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """What the fast purifier makes of images ``(N, C, H, W)``."""
        with progress(self.purifier, len(images)) as watch:
            return self.purifier.run(images, rng, watch).detach()


class UnrolledEstimation(Surrogate):
    """The chain rule through the last steps of Adam of the fast purifier.

    What the image does to these steps, as input, target and last estimate's input, is differentiated; the networks
    before them are constants, and what the rounds before made of the image is taken for the image, as BPDA does.

    Args:
        defense: A :class:`RIDEModule`.
        last: Steps that are differentiated, all of the last round; None for 20, or all if there are fewer.

    Raises:
        ValueError: If there are not so many steps, or the defense is not RIDE.
    """

    access: Access = "adaptive"

    def __init__(self, defense: nn.Module, last: int | None = None) -> None:
        super().__init__(defense)
        self.purifier = hastened(_purifier_of(self))
        last = min(_LAST, self.purifier.iterations) if last is None else last
        if not 1 <= last <= self.purifier.iterations:
            raise ValueError(f"last must lie in 1..{self.purifier.iterations}, the steps of a round, got {last}")
        self.last = last

    def settings(self) -> dict[str, Any]:
        """The number of steps."""
        return {"last": self.last}

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits of the defense with the fast purifier, shape ``(1, N, K)``."""
        return self.defense.deploy(images, rng.stream("defense"), self._purify).unsqueeze(0)

    def _purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        if not (images.requires_grad and torch.is_grad_enabled()):
            return self.purifier(images, rng)
        parts = slices(len(images), self.purifier.chunk)
        return torch.cat([self._of_chunk(images[part], rng[part]) for part in parts])

    def _of_chunk(self, images: Tensor, rng: SampleRNG) -> Tensor:
        estimation = self.purifier.start(images.detach().clone(), rng)
        self.purifier.advance(estimation, self.purifier.rounds * self.purifier.iterations - self.last)
        estimation.images = replace_value(estimation.from_pixels(images), estimation.images)
        return self.purifier.result(estimation, estimation.expectation(_steps(estimation, self.last)))


def _steps(estimation: Estimation, count: int) -> list[Tensor]:
    """Parameters after further steps of Adam, with a graph back to the images of the estimation."""
    settings, (beta, gamma) = estimation.settings, (0.9, 0.999)
    parameters = [parameter.detach().requires_grad_() for parameter in estimation.parameters]
    first, second, largest = (_moments(estimation, name) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
    for _ in range(count):
        losses = estimation.losses(parameters)
        gradients = torch.autograd.grad(losses.sum(), parameters, create_graph=True)
        estimation.steps += 1
        for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            gradient = gradient + settings.weight_decay * parameter
            first[place] = beta * first[place] + (1 - beta) * gradient
            second[place] = gamma * second[place] + (1 - gamma) * gradient.square()
            largest[place] = torch.maximum(largest[place], second[place]) if settings.amsgrad else second[place]
            mean = first[place] / (1 - beta**estimation.steps)
            # the tiny number keeps the derivative of the root finite where a weight never had a gradient
            size = (largest[place] / (1 - gamma**estimation.steps) + 1e-30).sqrt()
            parameters[place] = parameter - settings.lr * mean / (size + 1e-8)
    return parameters


def _moments(estimation: Estimation, name: str) -> list[Tensor]:
    """What Adam knows of each parameter by this name; zero before its first step."""
    state = estimation.optimizer.state
    return [state[parameter].get(name, torch.zeros_like(parameter)).clone() for parameter in estimation.parameters]
