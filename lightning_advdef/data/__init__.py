"""Data sets: one DataModule per file, all yielding batches of pixels in [0, 1]."""

from lightning_advdef.data.base import DataModule
from lightning_advdef.data.cifar import CIFAR10, CIFAR100
from lightning_advdef.data.digits import Digits
from lightning_advdef.data.image_folder import ImageFolder
from lightning_advdef.data.imagenet import ImageNet
from lightning_advdef.data.mnist import MNIST, FashionMNIST
from lightning_advdef.data.npz import NPZ
from lightning_advdef.data.specs import get_spec
from lightning_advdef.data.svhn import SVHN

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "NPZ",
    "SVHN",
    "DataModule",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "ImageNet",
    "get_spec",
]
