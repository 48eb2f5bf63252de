"""Distillation: a differentiable network fitted to what a purifier does, for the backward pass of BPDA."""

from lightning_advdef.distillation.fit import Fitted, fit
from lightning_advdef.distillation.pairs import PairMaker, Pairs

__all__ = ["Fitted", "PairMaker", "Pairs", "fit"]
