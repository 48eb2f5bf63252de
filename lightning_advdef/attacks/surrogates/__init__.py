"""Surrogates: what the attacker differentiates, from white box to gray box."""

from lightning_advdef.attacks.surrogates.base import (
    FullGradient,
    Surrogate,
    SurrogateFactory,
    Undefended,
    as_defense,
    as_surrogate,
)

__all__ = ["FullGradient", "Surrogate", "SurrogateFactory", "Undefended", "as_defense", "as_surrogate"]
