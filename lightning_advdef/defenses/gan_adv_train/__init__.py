"""Adversarial training with a perturbation generator."""

from lightning_advdef.defenses.gan_adv_train.module import GANAdvTrainModule

__all__ = ["GANAdvTrainModule"]
