"""Torchattacks, https://github.com/Harry24k/adversarial-attacks-pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torchattacks as library
from torch import nn

from benchmarks.attacks.cases import CW_SEARCH_STEPS, FAB_RADIUS, Run, Setting

_NORMS = {"linf": "Linf", "l2": "L2"}


def make(network: nn.Module, s: Setting) -> Run | None:
    """The run of this case."""
    stepping: dict[str, Any] = {"eps": s.eps, "alpha": s.step_size, "steps": s.steps}
    if s.norm == "linf":
        flat: dict[str, Callable[[], Run]] = {
            "FGSM": lambda: library.FGSM(network, eps=s.eps),
            "BIM": lambda: library.BIM(network, **stepping),
            "PGD": lambda: library.PGD(network, **stepping),
            "MIM": lambda: library.MIFGSM(network, **stepping),
        }
    else:
        flat = {
            "BIM": lambda: library.PGDL2(network, **stepping, random_start=False),
            "PGD": lambda: library.PGDL2(network, **stepping),
            "DeepFool": lambda: library.DeepFool(network, steps=s.steps),
            # no search for c: as many steps as the others in all, with its own c = 1
            "CW": lambda: library.CW(network, steps=s.steps * CW_SEARCH_STEPS),
        }
    maker = (flat | _auto_attack_family(network, s)).get(s.attack)
    return None if maker is None else maker()


def _auto_attack_family(network: nn.Module, s: Setting) -> dict[str, Callable[[], Run]]:
    common: dict[str, Any] = {"norm": _NORMS[s.norm], "eps": s.eps, "seed": s.seed}

    def apgd(loss: str) -> Run:
        return library.APGD(network, **common, steps=s.steps, loss=loss)

    def apgd_t() -> Run:
        return library.APGDT(network, **common, steps=s.steps, n_classes=s.classes)

    def fab(targeted: bool, eps: float = s.eps) -> Run:
        options = common | {"eps": eps, "n_classes": s.classes}
        return library.FAB(network, **options, steps=s.steps, multi_targeted=targeted)

    def square(queries: int) -> Run:
        return library.Square(network, **common, n_queries=queries, resc_schedule=False)

    return {
        "APGD": lambda: apgd("ce"),
        "APGD-DLR": lambda: apgd("dlr"),
        "APGD-T": apgd_t,
        "FAB": lambda: fab(False),
        "FAB-T": lambda: fab(True),
        "FAB-norm": lambda: fab(False, FAB_RADIUS),
        "Square": lambda: square(s.steps),
        # its own AutoAttack takes 10 steps; this is the same chain with the reference's 100
        "AutoAttack": lambda: library.MultiAttack([apgd("ce"), apgd_t(), fab(True), square(5000)]),
    }
