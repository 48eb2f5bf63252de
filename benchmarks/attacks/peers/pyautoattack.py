"""pyautoattack, https://pypi.org/project/pyautoattack: the reference code of AutoAttack as a package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyautoattack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from benchmarks.attacks.cases import FAB_RADIUS, Run, Setting


def make(network: nn.Module, s: Setting) -> Run | None:
    """The run of this case."""
    norm = {"linf": "Linf", "l2": "L2"}[s.norm]
    common: dict[str, Any] = {"norm": norm, "eps": s.eps, "seed": s.seed, "device": s.device}
    steps: dict[str, Any] = {"n_iter": s.steps, "n_restarts": 1}

    def whole() -> Run:
        attack = pyautoattack.AutoAttack(network, version="standard", **common)

        def run(images: Tensor, labels: Tensor) -> Tensor:
            adversarial: Tensor = attack.run_standard_evaluation(images, labels, batch_size=len(images))[0]
            return adversarial

        return run

    makers: dict[str, Callable[[], Run]] = {
        "APGD": lambda: APGDAttack(network, **common, **steps, loss="ce").perturb,
        "APGD-DLR": lambda: APGDAttack(network, **common, **steps, loss="dlr").perturb,
        "APGD-T": lambda: APGDAttack_targeted(network, **common, **steps).perturb,
        "FAB": lambda: FABAttack_PT(network, **common, **steps).perturb,
        "FAB-T": lambda: FABAttack_PT(network, **common, **steps, targeted=True).perturb,
        "FAB-norm": lambda: FABAttack_PT(network, **(common | {"eps": FAB_RADIUS}), **steps).perturb,
        "Square": lambda: SquareAttack(network, **common, n_queries=s.steps, resc_schedule=False).perturb,
        "AutoAttack": whole,
    }
    maker = makers.get(s.attack)
    return None if maker is None else maker()
