"""Feature smoothing and Active Defense: see the README of this folder."""

from lightning_advdef.defenses.feature_smoothing.module import FeatureSmoothingModule
from lightning_advdef.defenses.feature_smoothing.surrogates import (
    CoarselyUnrolled,
    FeatureTarget,
    FixedNoise,
    PenalizedFeatureLoss,
)

__all__ = ["CoarselyUnrolled", "FeatureSmoothingModule", "FeatureTarget", "FixedNoise", "PenalizedFeatureLoss"]
