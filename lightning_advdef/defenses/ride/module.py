"""RIDEModule: Robust Iterative Data Estimation before any trained classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_advdef.attacks import SurrogateFactory
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.defenses.purification import TrainingFreeModule
from lightning_advdef.defenses.ride.figures import before_and_after, course, course_figure
from lightning_advdef.defenses.ride.presets import PRESETS, VARIANTS, Estimator, Preset, Variant, per_image_network
from lightning_advdef.defenses.ride.progress import progress
from lightning_advdef.defenses.ride.purifier import RIDE
from lightning_advdef.defenses.ride.surrogates import FastBPDA, UnrolledEstimation
from lightning_advdef.models import NetworkFactory
from lightning_advdef.rng import SampleRNG

# standard deviations of the noise that are the same on ImageNet's pixels
_NOISE = {"unit": 0.1, "normalized": 0.5}
_SHOWN = 2


class RIDEModule(TrainingFreeModule):
    """Robust Iterative Data Estimation (RIDE), DAE, I-DIP and DIP.

    Source: Lin et al., 2019, "White-Box Adversarial Defense via Self-Supervised Data Estimation",
    https://arxiv.org/abs/1909.06271. A small network is trained on each image alone, as a denoising autoencoder whose
    target moves slowly towards what it makes of it; the classifier sees the last estimate. Nothing is trained before
    the test: all that is needed are the classifier's weights.

    Args:
        network: Architecture of the classifier, called with the data set's ``ImageSpec``.
        variant: The paper's method, or one of those that it compares with.
        preset: The paper's settings, those of the authors' released code, or a fifth of the steps at ten times the
            learning rate. A number below that is None is the preset's.
        space: Whether the networks work on pixels in [0, 1] with a sigmoid, or on normalised ones without.
        estimator: Network of each image: the paper's, or a U-Net.
        rounds: Updates of the image (T).
        iterations: Steps of Adam in each round (K).
        noise: Standard deviation of the noise in the unit of ``space`` (sigma).
        noisy_target: Whether the target has noise of its own.
        mixing: Share of the old image in the new one (alpha).
        suppression: Whether pixels that change less than the median are taken over as a whole (Eq. 14).
        masked: Share of the pixels that the loss of a step leaves out (p).
        dropout: Share of the activations that dropout removes.
        forwards: Outputs whose mean is the estimate.
        pairs: Noisy pairs in each step (n).
        lr: Adam's learning rate.
        weight_decay: Adam's weight decay.
        returned: The last estimate, or the image mixed with it (x^(T)).
        bfloat16: Whether the networks of the images compute in bfloat16.
        chunk: Images whose networks are trained together; bounds the memory.
        kwargs: See :class:`DefenseModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    purifier: RIDE

    def __init__(
        self,
        network: NetworkFactory,
        variant: Variant = "ride",
        preset: Preset = "paper",
        space: Literal["unit", "normalized"] = "unit",
        estimator: Estimator = "fcn",
        rounds: int | None = None,
        iterations: int | None = None,
        noise: float | None = None,
        noisy_target: bool | None = None,
        mixing: float | None = None,
        suppression: bool | None = None,
        masked: float | None = None,
        dropout: float | None = None,
        forwards: int | None = None,
        pairs: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        returned: Literal["estimate", "image"] | None = None,
        bfloat16: bool | None = None,
        chunk: int | None = None,
        **kwargs: Any,
    ) -> None:
        arguments = locals()
        given = {field.name: arguments.get(field.name) for field in fields(RIDE)}
        super().__init__(network, **kwargs)
        settings = {"noise": _NOISE[space], **PRESETS[preset], **VARIANTS[variant]}
        if space == "normalized":
            settings |= {"mean": self.spec.mean, "std": self.spec.std}
        settings |= {name: value for name, value in given.items() if value is not None}
        self.put_before(RIDE(per_image_network(estimator, self.spec), **settings))

    def purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Estimates of the images, with a progress bar if they take long."""
        with progress(self.purifier, len(images)) as watch:
            return self.purifier.run(images, rng, watch)

    def adaptive_surrogates(self) -> Mapping[str, SurrogateFactory]:
        """Attackers who know RIDE: see the README of this folder."""
        return {
            "fast_bpda": FastBPDA,
            "fast_unrolled": UnrolledEstimation,
        }

    def figures(self, clean: Tensor, adversarial: Tensor) -> Mapping[str, Figure]:
        """Scores and distances while some images are purified (Fig. 2), and the images before and after."""
        clean, adversarial = clean[:_SHOWN], adversarial[:_SHOWN]
        with attack_mode(self.classifier), torch.no_grad():
            labels, wrong = (self.classifier(images).argmax(dim=1) for images in (clean, adversarial))
            found = course(self.purifier, self.classifier, clean, adversarial)
            return {
                "course": course_figure(found, labels, wrong),
                "purified": before_and_after(
                    self.classifier, clean=clean, attacked=adversarial, purified=found.purified
                ),
            }
