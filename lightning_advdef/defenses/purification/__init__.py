"""A purifier before a trained classifier."""

from lightning_advdef.defenses.purification.module import PurificationModule, PurifierGradient, TrainingFreeModule

__all__ = ["PurificationModule", "PurifierGradient", "TrainingFreeModule"]
