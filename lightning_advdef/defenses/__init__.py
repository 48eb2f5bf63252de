"""Defenses: one LightningModule each."""

from lightning_advdef.defenses.adversarial_training import AdversarialTrainingModule
from lightning_advdef.defenses.base import DefenseModule
from lightning_advdef.defenses.deep_defense import DeepDefenseModule
from lightning_advdef.defenses.feature_smoothing import FeatureSmoothingModule
from lightning_advdef.defenses.feature_squeezing import FeatureSqueezingModule
from lightning_advdef.defenses.gan_adv_train import GANAdvTrainModule
from lightning_advdef.defenses.idfr import IDFRModule
from lightning_advdef.defenses.parseval import ParsevalModule
from lightning_advdef.defenses.purification import PurificationModule
from lightning_advdef.defenses.ride import RIDEModule
from lightning_advdef.defenses.standard import StandardModule

__all__ = [
    "AdversarialTrainingModule",
    "DeepDefenseModule",
    "DefenseModule",
    "FeatureSmoothingModule",
    "FeatureSqueezingModule",
    "GANAdvTrainModule",
    "IDFRModule",
    "ParsevalModule",
    "PurificationModule",
    "RIDEModule",
    "StandardModule",
]
