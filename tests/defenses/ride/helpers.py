"""Images with strokes, small settings, and Algorithms 1 and 2 on one image, written without a batch."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from lightning_advdef.defenses.ride.networks import FCN
from lightning_advdef.defenses.ride.purifier import RIDE
from lightning_advdef.rng import SampleRNG

SMALL = RIDE(FCN(width=4, depth=4, dropped=(2, 3)), rounds=2, iterations=3, forwards=2, lr=1e-2)


def settings(**changes):
    """:data:`SMALL` with other numbers."""
    return replace(SMALL, **changes)


def images_of(count, channels=1, size=8, dtype=torch.float32):
    """Bright bars on black, of different place and width, with a grey corner."""
    images = torch.zeros(count, channels, size, size)
    for number in range(count):
        first = 1 + number % (size - 4)
        images[number, :, 1:-1, first : first + 2 + number % 2] = 1 - 0.02 * (number % 8)
        images[number, number % channels, :2, :2] = 0.3
    return images.to(dtype)


def rng_of(count, seed=3):
    return SampleRNG.for_images(torch.arange(count), seed)


class NaiveRIDE:
    """Purification of one image ``(C, H, W)`` with ``nn.Conv2d`` and ``torch.optim.Adam``, output after output."""

    def __init__(self, settings, image, rng):
        self.settings, self.image = settings, image
        self.mean = image.new_tensor(settings.mean or 0.0).view(-1, 1, 1)
        self.std = image.new_tensor(settings.std or 1.0).view(-1, 1, 1)
        self.streams = {name: rng.stream("ride", name) for name in ("network", "noise", "mask", "dropout", "source")}
        self.network = self.convolutions()
        adam = {"lr": settings.lr, "weight_decay": settings.weight_decay, "amsgrad": settings.amsgrad}
        self.optimizer = torch.optim.Adam(self.network.parameters(), **adam, foreach=False, fused=False)

    def convolutions(self):
        values = iter(self.settings.architecture.initial(len(self.image), self.streams["network"]))
        layers = []
        for before, after in self.settings.architecture.layers(len(self.image)):
            layers.append(nn.Conv2d(before, after, 3, padding=1).to(self.image.dtype))
            layers[-1].weight.data.copy_(next(values)[0])
            layers[-1].bias.data.copy_(next(values)[0])
        return nn.ModuleList(layers)

    def noise(self, kinds, inputs, stream):
        drawn = self.streams["noise"].stream(stream).normal(kinds, inputs, *self.image.shape)
        return (drawn * self.settings.noise)[0]

    def seen(self, image, noise):
        if self.settings.source == "image":
            return image + noise
        return self.streams["source"].uniform(*image.shape, high=0.1)[0].to(image.dtype)

    def output(self, image, number, count, stream):
        """Output ``number`` of ``count`` that are made with the numbers of a stream."""
        rate, layers = self.settings.dropout, len(self.network)
        values = image.unsqueeze(0)
        for place, layer in enumerate(self.network):
            values = layer(values)
            if place < layers - 1:
                values = F.relu(values)
            if place + 1 in self.settings.architecture.dropped and rate > 0:
                stream_of_place = self.streams["dropout"].stream(stream, place)
                kept = stream_of_place.chance(count, *values.shape[1:], probability=1 - rate)[0, number]
                values = torch.where(kept, values / (1 - rate), 0.0)
        return values[0] if self.settings.mean else torch.sigmoid(values[0])

    def loss(self, image, step):
        """Eq. 7, or the norm of the difference."""
        pairs, total, count = self.settings.pairs, 0.0, 0
        noise = self.noise(2, pairs, step)
        kept = (
            self.streams["mask"].stream(step).chance(pairs, 1, *image.shape[1:], probability=1 - self.settings.masked)
        )
        for pair in range(pairs):
            target = image + noise[1, pair] if self.settings.noisy_target else image
            difference = target - self.output(self.seen(image, noise[0, pair]), pair, pairs, step)
            for channel in difference:
                counted = channel[kept[0, pair, 0]]
                total, count = total + (counted**2).sum(), count + counted.numel()
        return total.sqrt() if self.settings.loss == "norm" else total / max(count, 1)

    def estimate(self, image, step):
        forwards, stream = self.settings.forwards, f"estimate {step}"
        noise = self.noise(1, forwards, stream)[0]
        with torch.no_grad():
            found = [self.output(self.seen(image, each), n, forwards, stream) for n, each in enumerate(noise)]
        return sum(found) / forwards

    def __call__(self):
        image, step = (self.image - self.mean) / self.std, 0
        for _ in range(self.settings.rounds):
            for _ in range(self.settings.iterations):
                self.optimizer.zero_grad()
                self.loss(image, step).backward()
                self.optimizer.step()
                step += 1
            estimate = self.estimate(image, step)
            image = moved(image, estimate, self.settings.mixing, self.settings.suppression)
        return (estimate if self.settings.returned == "estimate" else image) * self.std + self.mean


def moved(image, estimate, mixing, suppression):
    """Eq. 8 and 14 for one image ``(C, H, W)``, pixel by pixel."""
    height, width = image.shape[1:]
    changes = [[float((image[:, i, j] - estimate[:, i, j]).abs().sum()) for j in range(width)] for i in range(height)]
    median = sorted(change for row in changes for change in row)[(height * width - 1) // 2]
    found = torch.empty_like(image)
    for i in range(height):
        for j in range(width):
            alpha = 0 if suppression and changes[i][j] < median else mixing
            found[:, i, j] = alpha * image[:, i, j] + (1 - alpha) * estimate[:, i, j]
    return found
