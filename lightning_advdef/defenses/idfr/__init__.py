"""Input denoiser and feature restorer: see the README of this folder."""

from lightning_advdef.defenses.idfr.label_leak import LabelLeak, label_leak
from lightning_advdef.defenses.idfr.module import IDFRModule

__all__ = ["IDFRModule", "LabelLeak", "label_leak"]
