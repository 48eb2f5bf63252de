"""Surrogates: what the attacker differentiates, from white box to gray box."""

from lightning_advdef.attacks.surrogates.base import (
    FullGradient,
    Surrogate,
    SurrogateFactory,
    Undefended,
    as_surrogate,
)
from lightning_advdef.attacks.surrogates.bpda import BPDA
from lightning_advdef.attacks.surrogates.distilled import DistilledPurifier
from lightning_advdef.attacks.surrogates.eot import EOT
from lightning_advdef.attacks.surrogates.plain import as_defense
from lightning_advdef.attacks.surrogates.transfer import Transfer
from lightning_advdef.attacks.surrogates.unrolled import Unrolled

__all__ = [
    "BPDA",
    "EOT",
    "DistilledPurifier",
    "FullGradient",
    "Surrogate",
    "SurrogateFactory",
    "Transfer",
    "Undefended",
    "Unrolled",
    "as_defense",
    "as_surrogate",
]
