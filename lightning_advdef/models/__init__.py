"""Networks: pixels in [0, 1] to logits."""

from lightning_advdef.models.base import Classifier, NetworkFactory
from lightning_advdef.models.block_denoiser import BlockDenoiser
from lightning_advdef.models.conv_net import ConvNet
from lightning_advdef.models.conv_pool_cnn import ConvPoolCNN
from lightning_advdef.models.denoiser import Denoiser, DenoiserFactory
from lightning_advdef.models.dropout import SharedDropoutMasks, shared_dropout_masks
from lightning_advdef.models.feature_restorer import FeatureRestorer, RestorerFactory
from lightning_advdef.models.feature_tap import FeatureTap, layer_names
from lightning_advdef.models.input_denoiser import InputDenoiser
from lightning_advdef.models.lenet import LeNet
from lightning_advdef.models.mlp import MLP
from lightning_advdef.models.nin import NIN
from lightning_advdef.models.perturbation_generator import GeneratorFactory, PerturbationGenerator
from lightning_advdef.models.resnet import ResNet
from lightning_advdef.models.stand_in import StandIn
from lightning_advdef.models.torchvision_classifier import TorchvisionClassifier
from lightning_advdef.models.vgg import VGG
from lightning_advdef.models.wide_resnet import WideResNet
from lightning_advdef.models.wrapped import WrappedClassifier

__all__ = [
    "MLP",
    "NIN",
    "VGG",
    "BlockDenoiser",
    "Classifier",
    "ConvNet",
    "ConvPoolCNN",
    "Denoiser",
    "DenoiserFactory",
    "FeatureRestorer",
    "FeatureTap",
    "GeneratorFactory",
    "InputDenoiser",
    "LeNet",
    "NetworkFactory",
    "PerturbationGenerator",
    "ResNet",
    "RestorerFactory",
    "SharedDropoutMasks",
    "StandIn",
    "TorchvisionClassifier",
    "WideResNet",
    "WrappedClassifier",
    "layer_names",
    "shared_dropout_masks",
]
