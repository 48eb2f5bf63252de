"""RIDE: a network is trained on each image, which moves slowly towards what the network makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_advdef.defenses.ride.estimation import Estimation
from lightning_advdef.defenses.ride.networks import Architecture
from lightning_advdef.purifiers import Purifier
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import slices

Watch = Callable[[Estimation], None]


@dataclass(frozen=True)
class RIDE(Purifier):
    """Robust Iterative Data Estimation (Algorithms 1 and 2), and its relatives as settings.

    Source: Lin et al., 2019, https://arxiv.org/abs/1909.06271. Every image has a network of its own; those of a chunk
    are trained at once.

    Args:
        architecture: Network of each image.
        mean: Of each channel, if the networks work on normalised pixels; None for [0, 1] and a sigmoid at the end.
        std: The same.
        rounds: Updates of the image (T).
        iterations: Steps of Adam in each round (K).
        noise: Standard deviation of the noise, in the pixel units of the networks (sigma).
        source: Whether the networks see the noisy image (DAE) or noise that stays the same (DIP).
        noisy_target: Whether the target has noise of its own.
        mixing: Share of the old image in the new one (alpha); 1 to keep the image.
        suppression: Whether pixels that change less than the median are taken over as a whole (Eq. 14).
        masked: Share of the pixels that the loss of a step leaves out (p).
        dropout: Share of the activations that dropout removes.
        forwards: Outputs whose mean is the estimate; each has noise and dropout of its own.
        pairs: Noisy pairs in each step (n).
        lr: Adam's learning rate.
        weight_decay: Adam's weight decay.
        amsgrad: Whether Adam is AMSGrad.
        loss: Mean squared error, or the norm of the difference.
        returned: The last estimate, or the image mixed with it (x^(T)).
        bfloat16: Whether the networks compute in bfloat16; weights, moments and images stay float32.
        chunk: Images whose networks are trained together; bounds the memory.

    Raises:
        ValueError: If a number is out of range.
    """

    architecture: Architecture
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    rounds: int = 5
    iterations: int = 2000
    noise: float = 0.1
    source: Literal["image", "noise"] = "image"
    noisy_target: bool = True
    mixing: float = 0.9
    suppression: bool = True
    masked: float = 0.9
    dropout: float = 0.5
    forwards: int = 8
    pairs: int = 1
    lr: float = 1e-4
    weight_decay: float = 1e-4
    amsgrad: bool = False
    loss: Literal["mse", "norm"] = "mse"
    returned: Literal["estimate", "image"] = "estimate"
    bfloat16: bool = False
    chunk: int = 64

    def __post_init__(self) -> None:
        for name in ("rounds", "iterations", "forwards", "pairs", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean and std belong together, got {self.mean} and {self.std}")
        for name in ("masked", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing must lie in [0, 1], got {self.mixing}")
        if min(self.noise, self.lr, self.weight_decay) < 0:
            raise ValueError(
                f"noise, lr and weight_decay must not be negative, got {self.noise}, {self.lr}, {self.weight_decay}"
            )

    @property
    def stochastic(self) -> bool:
        """True: networks start at random."""
        return True

    @property
    def untraceable(self) -> str | None:
        """Why no graph can hold it."""
        return "it trains a network on each image"

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Estimates of images ``(N, C, H, W)``."""
        return self.run(images, rng)

    def run(self, images: Tensor, rng: SampleRNG, watch: Watch = lambda estimation: None) -> Tensor:
        """The same; ``watch`` is called after every step, chunk by chunk."""
        with torch.inference_mode(False), torch.enable_grad():
            parts = slices(len(images), self.chunk)
            found = [self._purify(images[part], rng[part], watch) for part in parts]
            return torch.cat(found) if found else images.clone()

    def start(self, images: Tensor, rng: SampleRNG) -> Estimation:
        """The networks of some images before their first step."""
        return Estimation(self, images, rng)

    def advance(self, estimation: Estimation, steps: int, watch: Watch = lambda estimation: None) -> None:
        """Takes an estimation so many steps further, with the move of the images after every round but the last."""
        for _ in range(steps):
            estimation.train()
            watch(estimation)
            if estimation.steps % self.iterations == 0 and estimation.steps < self.rounds * self.iterations:
                estimation.move_images(estimation.estimate())

    def result(self, estimation: Estimation, estimate: Tensor) -> Tensor:
        """What is returned once the last estimate is known, in pixels."""
        if self.returned == "image":
            estimation.move_images(estimate)
            estimate = estimation.images
        return estimation.as_pixels(estimate)

    def _purify(self, images: Tensor, rng: SampleRNG, watch: Watch) -> Tensor:
        estimation = self.start(images.detach().clone(), rng)
        self.advance(estimation, self.rounds * self.iterations, watch)
        return self.result(estimation, estimation.estimate()).to(images.dtype)
