"""The networks of some images while they are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Adam

from lightning_advdef.attacks.lp_ball import per_image
from lightning_advdef.defenses.ride.networks import Drop
from lightning_advdef.rng import SampleRNG

if TYPE_CHECKING:
    from lightning_advdef.defenses.ride.purifier import RIDE

# Deep Image Prior's choice for the noise that a network sees
_SOURCE_HIGH = 0.1


class Estimation:
    """One network per image, its optimiser, and the images as they move.

    Tensors of activations have shape ``(R, N * C, H, W)``: R inputs for each of N networks.

    Args:
        settings: Of the purifier.
        images: Pixels in [0, 1], shape ``(N, C, H, W)``.
        rng: The images' random numbers.

    Attributes:
        images: As they are now (x^(t)), in the pixel units of the networks.
        parameters: Of all networks, stacked.
        steps: Taken so far.
    """

    def __init__(self, settings: RIDE, images: Tensor, rng: SampleRNG) -> None:
        self.settings = settings
        self._mean = images.new_tensor(settings.mean or 0.0).view(-1, 1, 1)
        self._std = images.new_tensor(settings.std or 1.0).view(-1, 1, 1)
        self.images = self.from_pixels(images.to(torch.promote_types(images.dtype, torch.float32)))
        self._rng = {name: rng.stream("ride", name) for name in ("network", "noise", "mask", "dropout", "source")}
        initial = settings.architecture.initial(images.shape[1], self._rng["network"])
        self.parameters = [parameter.to(self.images.dtype).requires_grad_() for parameter in initial]
        self.optimizer = Adam(
            self.parameters,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            amsgrad=settings.amsgrad,
            fused=True,
        )
        self.steps = 0

    # Algorithm 1

    def train(self) -> None:
        """One step of Adam on the loss (Eq. 7)."""
        gradients = torch.autograd.grad(self.losses(self.parameters).sum(), self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.contiguous()  # the fused step goes through memory, not through strides
        self.optimizer.step()
        self.steps += 1

    def losses(self, parameters: list[Tensor]) -> Tensor:
        """Loss of this step for networks with these parameters, shape ``(N,)``."""
        noise = self._noise(2, self.settings.pairs, stream=self.steps)
        inputs = self._inputs(noise[0])
        targets = self._stack(self.images) + noise[1] * self.settings.noisy_target
        difference = targets - self._forward(inputs, parameters, self.steps)
        kept = self._kept().to(difference.dtype)
        squared = self._split(difference.square()) * kept
        if self.settings.loss == "norm":
            # the tiny number keeps the derivative of the root finite where a step leaves out all pixels
            return (squared.sum(dim=(0, 2, 3, 4)) + 1e-30).sqrt()
        count = kept.expand_as(squared).sum(dim=(0, 2, 3, 4)).clamp(min=1)
        return squared.sum(dim=(0, 2, 3, 4)) / count

    def estimate(self) -> Tensor:
        """Mean of some outputs, each with noise and dropout, of the networks as they are, shape of the images."""
        with torch.no_grad():
            return self.expectation(self.parameters)

    def expectation(self, parameters: list[Tensor]) -> Tensor:
        """The same for networks with these parameters, with a graph (Eq. 9)."""
        stream = f"estimate {self.steps}"
        inputs = self._inputs(self._noise(1, self.settings.forwards, stream=stream)[0])
        return self._split(self._forward(inputs, parameters, stream)).mean(dim=0)

    # Algorithm 2

    def move_images(self, estimate: Tensor) -> None:
        """Images for the next round (Eq. 8 and 14)."""
        alpha = self.settings.mixing
        mixed = alpha * self.images + (1 - alpha) * estimate
        if self.settings.suppression:
            change = (self.images - estimate).abs().sum(dim=1, keepdim=True)
            small = change < per_image(change.flatten(1).median(dim=1).values)
            mixed = torch.where(small, estimate, mixed)
        self.images = mixed

    def as_pixels(self, images: Tensor) -> Tensor:
        """Images in [0, 1] units; normalised ones may leave that range."""
        return images * self._std + self._mean

    def from_pixels(self, images: Tensor) -> Tensor:
        """Images in the pixel units of the networks."""
        return (images - self._mean) / self._std

    # what a step draws

    def _noise(self, kinds: int, inputs: int, stream: int | str) -> Tensor:
        """Normal numbers times sigma, shape ``(kinds, inputs, N * C, H, W)``."""
        drawn = self._rng["noise"].stream(stream).normal(kinds, inputs, *self.images.shape[1:])
        return drawn.mul_(self.settings.noise).permute(1, 2, 0, 3, 4, 5).flatten(2, 3)

    def _inputs(self, noise: Tensor) -> Tensor:
        """What the networks see, shape of the noise."""
        if self.settings.source == "image":
            return self._stack(self.images) + noise
        source = self._rng["source"].uniform(*self.images.shape[1:], high=_SOURCE_HIGH).to(self.images.dtype)
        return self._stack(source).expand_as(noise)

    def _kept(self) -> Tensor:
        """Pixels whose loss counts, shared by channels, bool, shape ``(n, N, 1, H, W)``."""
        shape = (self.settings.pairs, 1, *self.images.shape[2:])
        kept = self._rng["mask"].stream(self.steps).chance(*shape, probability=1 - self.settings.masked)
        return kept.transpose(0, 1)

    def _forward(self, inputs: Tensor, parameters: list[Tensor], stream: int | str) -> Tensor:
        """Outputs in the pixel units of the networks, shape and dtype of the inputs."""
        reduced = self.settings.bfloat16 or torch.is_autocast_enabled(inputs.device.type)
        # parameters change between steps, so no copy of them may be kept
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=reduced, cache_enabled=False):
            outputs = self.settings.architecture(inputs, parameters, self._dropout(stream)).to(inputs.dtype)
        return outputs.sigmoid() if self.settings.mean is None else outputs

    def _dropout(self, stream: int | str) -> Drop:
        """Dropout of one pass; what all its places keep is drawn at once, as soon as a shape is known."""
        rate, rng = self.settings.dropout, self._rng["dropout"].stream(stream)
        kept: list[Tensor] = []

        def drop(activations: Tensor) -> Tensor:
            if rate == 0:
                return activations
            if not kept:
                split = self._split(activations)
                places = [rng.stream(place) for place in self.settings.architecture.places]
                drawn = SampleRNG.cat(places).chance(len(split), *split.shape[2:], probability=1 - rate)
                kept.extend(reversed(drawn.transpose(0, 1).chunk(len(places), dim=1)))
            factor = kept.pop().to(activations.dtype).mul_(1 / (1 - rate))
            return activations * factor.flatten(1, 2)

        return drop

    def _stack(self, images: Tensor) -> Tensor:
        return images.flatten(0, 1).unsqueeze(0)

    def _split(self, activations: Tensor) -> Tensor:
        """From ``(R, N * C, H, W)`` to ``(R, N, C, H, W)``."""
        inputs, _, *size = activations.shape
        return activations.view(inputs, len(self.images), -1, *size)
