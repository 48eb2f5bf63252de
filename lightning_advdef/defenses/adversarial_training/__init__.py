"""The adversarial training family: see the README of this folder."""

from lightning_advdef.defenses.adversarial_training.module import AdversarialTrainingModule
from lightning_advdef.defenses.adversarial_training.objectives import MART, TRADES, CrossEntropy, Objective

__all__ = ["MART", "TRADES", "AdversarialTrainingModule", "CrossEntropy", "Objective"]
