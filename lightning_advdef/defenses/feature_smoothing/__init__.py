"""Feature smoothing and Active Defense: see the README of this folder."""

from lightning_advdef.defenses.feature_smoothing.module import FeatureSmoothingModule

__all__ = ["FeatureSmoothingModule"]
