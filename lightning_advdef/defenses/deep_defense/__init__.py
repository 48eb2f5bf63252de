"""Deep Defense (Yan, Guo, Zhang; NeurIPS 2018): see the README of this folder."""

from lightning_advdef.defenses.deep_defense.module import DeepDefenseModule

__all__ = ["DeepDefenseModule"]
