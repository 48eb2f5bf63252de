"""Foolbox, https://github.com/bethgelab/foolbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import foolbox
from foolbox import attacks
from torch import Tensor, nn

from benchmarks.attacks.cases import CASES, CW_SEARCH_STEPS, Run, Setting


def make(network: nn.Module, s: Setting) -> Run | None:
    """The run of this case; ``None`` as budget asks foolbox for the smallest perturbation."""
    maker = (_linf(s) if s.norm == "linf" else _l2(s)).get(s.attack)
    if maker is None:
        return None
    attack = maker()
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=s.device)
    budget = None if CASES[s.attack].minimal else s.eps

    def run(images: Tensor, labels: Tensor) -> Tensor:
        _, clipped, _ = attack(model, images, labels, epsilons=budget)
        adversarial: Tensor = clipped
        return adversarial

    return run


def _linf(s: Setting) -> dict[str, Callable[[], Any]]:
    stepping: dict[str, Any] = {"abs_stepsize": s.step_size, "steps": s.steps}
    return {
        "FGSM": lambda: attacks.FGSM(),
        "BIM": lambda: attacks.LinfBasicIterativeAttack(**stepping),
        "PGD": lambda: attacks.LinfPGD(**stepping),
        "MIM": lambda: attacks.LinfMomentumIterativeFastGradientMethod(**stepping),
        "FMN": lambda: attacks.LInfFMNAttack(steps=s.steps),
    }


def _l2(s: Setting) -> dict[str, Callable[[], Any]]:
    stepping: dict[str, Any] = {"abs_stepsize": s.step_size, "steps": s.steps}
    return {
        "FGSM": lambda: attacks.L2FastGradientAttack(),
        "BIM": lambda: attacks.L2BasicIterativeAttack(**stepping),
        "PGD": lambda: attacks.L2PGD(**stepping),
        "MIM": lambda: attacks.L2MomentumIterativeFastGradientMethod(**stepping),
        "FMN": lambda: attacks.L2FMNAttack(steps=s.steps),
        "DDN": lambda: attacks.DDNAttack(steps=s.steps),
        "DeepFool": lambda: attacks.L2DeepFoolAttack(steps=s.steps),
        "CW": lambda: attacks.L2CarliniWagnerAttack(binary_search_steps=CW_SEARCH_STEPS, steps=s.steps),
    }
