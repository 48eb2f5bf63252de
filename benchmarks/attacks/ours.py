"""Our side of each case."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.attacks.cases import CW_SEARCH_STEPS, Setting
from lightning_advdef import attacks
from lightning_advdef.attacks import Attack

_MAKERS: dict[str, Callable[[Setting], Attack]] = {
    "FGSM": lambda s: attacks.FGSM(s.eps, s.norm),
    "BIM": lambda s: attacks.BIM(s.eps, s.norm, steps=s.steps, step_size=s.step_size),
    "PGD": lambda s: attacks.PGD(s.eps, s.norm, steps=s.steps, step_size=s.step_size),
    "MIM": lambda s: attacks.MIM(s.eps, s.norm, steps=s.steps, step_size=s.step_size),
    "APGD": lambda s: attacks.APGD(s.eps, s.norm, steps=s.steps),
    "APGD-DLR": lambda s: attacks.APGD(s.eps, s.norm, steps=s.steps, loss="dlr"),
    "APGD-T": lambda s: attacks.TargetedAPGD(s.eps, s.norm, steps=s.steps),
    "FAB": lambda s: attacks.FAB(norm=s.norm, steps=s.steps, enough=s.eps),
    "FAB-T": lambda s: attacks.TargetedFAB(norm=s.norm, steps=s.steps, enough=s.eps),
    "FAB-norm": lambda s: attacks.FAB(norm=s.norm, steps=s.steps),
    "Square": lambda s: attacks.Square(s.eps, s.norm, queries=s.steps),
    "AutoAttack": lambda s: attacks.AutoAttack(s.eps, s.norm, version="standard"),
    "CW-linf": lambda s: attacks.CarliniWagnerLinf(s.eps, steps=s.steps),
    "DeepFool": lambda s: attacks.DeepFool(steps=s.steps),
    "DDN": lambda s: attacks.DDN(steps=s.steps),
    "FMN": lambda s: attacks.FMN(norm=s.norm, steps=s.steps),
    "CW": lambda s: attacks.CarliniWagnerL2(steps=s.steps, search_steps=CW_SEARCH_STEPS),
}


def our_attack(setting: Setting) -> Attack:
    """The attack of this package."""
    return _MAKERS[setting.attack](setting)
