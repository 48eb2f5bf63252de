"""A small wide residual network, images of different contrast, and Algorithm 1 image by image."""

import functools

import torch
from torch import nn

from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.defenses import FeatureSmoothingModule
from lightning_advdef.models import Classifier, WideResNet
from tests.defenses.adversarial_training.helpers import seeded_module

SPEC = "3x8x8x5"
TAP = "features.group0"
NETWORK = functools.partial(WideResNet, depth=10, width=1)


class TanhNetwork(Classifier):
    """Convolutions with tanh: curved, so that a step of Active Defense is no identity for the gradient."""

    def __init__(self, spec, normalization=None):
        super().__init__(spec, normalization)
        first, second = nn.Conv2d(spec.channels, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.features = nn.Sequential(nn.Sequential(first, nn.Tanh(), second, nn.Tanh()), nn.Flatten())
        self.head = nn.Linear(4 * spec.height * spec.width, spec.classes)


def images_of(count, seed=0):
    """Noise of a contrast that grows from image to image."""
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.linspace(0.5, 1, count).view(-1, 1, 1, 1)
    return 0.5 + contrast * (torch.rand(count, 3, 8, 8, generator=generator) - 0.5)


def module_of(network=NETWORK, **settings):
    """A module in eval mode whose settings give a few to some thirty steps on :func:`images_of`."""
    settings = {"spec": SPEC, "step_size": 0.3, "delta": 0.32, "max_iter": 25} | settings
    module = seeded_module(lambda: FeatureSmoothingModule(network, **settings))
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            # statistics in which normalisation is no identity
            values = torch.linspace(-0.3, 0.3, each.num_features)
            each.running_mean.copy_(values)
            each.running_var.copy_(1 + values)
    return module.eval()


def purified(module, images, rng):
    """Images and steps of the module's Active Defense."""
    with attack_mode(module):
        return module.purifier(images, rng)


def naive_loss(features):
    """Eq. 3 for the features of one image, with one loop per axis."""
    channels, height, width = features.shape
    mean = sum(float(value) for value in features.flatten()) / features.numel()
    total = 0.0
    for i in range(channels):
        for j in range(height):
            for k in range(width):
                total += abs(float(features[i, j, k]) - mean)
    return total / (channels * height * width)


def naive_active_defense(network, layer, start, settings):
    """The loop of Algorithm 1 on one noisy image ``(C, H, W)``: the whole network runs, a hook reads the features.

    Returns:
        The image and the number of steps.
    """
    seen = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output[0]))
    image, steps = start.clone(), 0
    while True:
        leaf = image.clone().requires_grad_()
        network(leaf.unsqueeze(0))
        features = seen.pop()
        loss = (features - features.mean()).abs().sum() / features.numel()
        if loss <= settings.delta or steps == settings.max_iter:
            break
        loss.backward()
        image = image - settings.step_size * leaf.grad
        image = image.clamp(0, 1) if settings.clip else image
        steps += 1
    handle.remove()
    return image, steps
