"""Feature Squeezing as a detector (Xu et al., 2018)."""

from lightning_advdef.defenses.feature_squeezing.module import FeatureSqueezingModule
from lightning_advdef.defenses.feature_squeezing.surrogates import AllVersions, EvadingDetection

__all__ = ["AllVersions", "EvadingDetection", "FeatureSqueezingModule"]
