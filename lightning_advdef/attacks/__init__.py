"""Attacks: settings at construction, ``attack(surrogate, images, labels, rng) -> images`` at call."""

from lightning_advdef.attacks.apgd import APGD, TargetedAPGD
from lightning_advdef.attacks.auto_attack import AutoAttack
from lightning_advdef.attacks.base import Attack, FixedBudgetAttack, MinimalNormAttack
from lightning_advdef.attacks.bisection import Bisection
from lightning_advdef.attacks.carlini_wagner import CarliniWagnerL2
from lightning_advdef.attacks.carlini_wagner_linf import CarliniWagnerLinf
from lightning_advdef.attacks.cascade import Cascade
from lightning_advdef.attacks.ddn import DDN
from lightning_advdef.attacks.deepfool import DeepFool
from lightning_advdef.attacks.fab import FAB, TargetedFAB
from lightning_advdef.attacks.fgsm import FGM, FGSM, RandomStartFGSM
from lightning_advdef.attacks.fmn import FMN
from lightning_advdef.attacks.generator_attack import GeneratorAttack
from lightning_advdef.attacks.low_frequency import LowFrequency
from lightning_advdef.attacks.mim import MIM
from lightning_advdef.attacks.noise import Noise
from lightning_advdef.attacks.pgd import BIM, PGD
from lightning_advdef.attacks.square import Square
from lightning_advdef.attacks.surrogates import (
    BPDA,
    EOT,
    DistilledPurifier,
    FullGradient,
    Surrogate,
    SurrogateFactory,
    Transfer,
    Undefended,
    Unrolled,
)
from lightning_advdef.attacks.targeted import Targeted

__all__ = [
    "APGD",
    "BIM",
    "BPDA",
    "DDN",
    "EOT",
    "FAB",
    "FGM",
    "FGSM",
    "FMN",
    "MIM",
    "PGD",
    "Attack",
    "AutoAttack",
    "Bisection",
    "CarliniWagnerL2",
    "CarliniWagnerLinf",
    "Cascade",
    "DeepFool",
    "DistilledPurifier",
    "FixedBudgetAttack",
    "FullGradient",
    "GeneratorAttack",
    "LowFrequency",
    "MinimalNormAttack",
    "Noise",
    "RandomStartFGSM",
    "Square",
    "Surrogate",
    "SurrogateFactory",
    "Targeted",
    "TargetedAPGD",
    "TargetedFAB",
    "Transfer",
    "Undefended",
    "Unrolled",
]
