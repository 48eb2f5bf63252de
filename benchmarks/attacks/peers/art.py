"""Adversarial Robustness Toolbox, https://github.com/Trusted-AI/adversarial-robustness-toolbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.attacks import evasion
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from benchmarks.attacks.cases import CW_SEARCH_STEPS, Run, Setting

_ALL = 1 << 20  # batches of whatever size it is given


def make(network: nn.Module, s: Setting) -> Run | None:
    """The run of this case."""
    maker = _makers(s).get(s.attack)
    if maker is None:
        return None
    classifier = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        s.shape,
        s.classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if s.device == "cuda" else "cpu",
    )
    attack = maker(classifier)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        np.random.seed(s.seed)
        found = attack.generate(x=images.cpu().numpy(), y=labels.cpu().numpy())
        return torch.from_numpy(found).to(images)

    return run


def _makers(s: Setting) -> dict[str, Callable[[Any], Any]]:
    quiet: dict[str, Any] = {"batch_size": _ALL, "verbose": False}
    inside: dict[str, Any] = {"norm": np.inf if s.norm == "linf" else 2, "eps": s.eps}
    stepping: dict[str, Any] = inside | {"eps_step": s.step_size, "max_iter": s.steps} | quiet
    # its first step is an argument; 2 eps in the reference
    auto: dict[str, Any] = inside | {"eps_step": 2 * s.eps, "max_iter": s.steps, "nb_random_init": 1} | quiet
    norm_free: dict[str, Callable[[Any], Any]] = {
        "FGSM": lambda c: evasion.FastGradientMethod(c, **inside, batch_size=_ALL),
        "BIM": lambda c: evasion.ProjectedGradientDescentPyTorch(c, **stepping),
        "PGD": lambda c: evasion.ProjectedGradientDescentPyTorch(c, **stepping, num_random_init=1),
        "MIM": lambda c: evasion.MomentumIterativeMethod(c, **stepping),
        "APGD": lambda c: evasion.AutoProjectedGradientDescent(c, **auto, loss_type="cross_entropy"),
        "APGD-DLR": lambda c: evasion.AutoProjectedGradientDescent(c, **auto, loss_type="difference_logits_ratio"),
        "Square": lambda c: evasion.SquareAttack(c, **inside, max_iter=s.steps, p_init=0.8, **quiet),
        "CW-linf": lambda c: evasion.CarliniLInfMethod(c, max_iter=s.steps, learning_rate=0.03, **quiet),
    }
    if s.norm == "linf":
        return norm_free
    return norm_free | {
        "DeepFool": lambda c: evasion.DeepFool(c, max_iter=s.steps, epsilon=0.02, nb_grads=s.classes, **quiet),
        "CW": lambda c: evasion.CarliniL2Method(c, max_iter=s.steps, binary_search_steps=CW_SEARCH_STEPS, **quiet),
    }
