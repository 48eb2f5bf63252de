"""ImageNet: 1.28 million training and 50,000 validation photographs, 1000 classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as TF

from lightning_advdef.data.augment import crop_and_flip
from lightning_advdef.data.image_folder import ImageFolder, open_image
from lightning_advdef.data.sources import Decoder
from lightning_advdef.data.specs import get_spec
from lightning_advdef.rng import SampleRNG


@dataclass(frozen=True)
class PhotoDecoder:
    """Reads a photograph: its centre, or with a seed a random part of 8% to 100% of its area.

    Source: He et al., 2016, and Szegedy et al., 2015, as in torchvision's reference training.
    """

    size: int
    short_side: int = 256

    def __call__(self, path: str, seed: int | None = None) -> Tensor:
        """Pixels uint8, shape ``(3, size, size)``."""
        image = open_image(path, 3)
        if seed is None:
            image = TF.center_crop(TF.resize(image, self.short_side), self.size)
        else:
            image = _random_resized_crop(image, self.size, seed)
        pixels: Tensor = TF.pil_to_tensor(image)
        return pixels


def _random_resized_crop(image: Image.Image, size: int, seed: int) -> Image.Image:
    """Torchvision's crop under a seed of its own; the generator of the process is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        box = transforms.RandomResizedCrop.get_params(image, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
    cropped: Image.Image = TF.resized_crop(image, *box, [size, size])
    return cropped


class ImageNet(ImageFolder):
    """ILSVRC 2012 in ``root/train/<wnid>/`` and ``root/val/<wnid>/``; ``val`` is the test set.

    Source: Russakovsky et al., 2015, https://image-net.org, where it is fetched by hand. Test images have their
    shorter side resized to 256 and the central 224x224 pixels taken. With any ``augment`` training images are random
    resized crops; ``flip`` and ``crop_flip`` mirror half of them too.

    Args:
        root: Folder that holds ``train`` and ``val``.
        kwargs: Arguments of every data set.
    """

    test_folders: ClassVar[tuple[str, ...]] = ("val",)

    def __init__(self, root: str = "data/imagenet", **kwargs: Any) -> None:
        super().__init__(spec="imagenet", resize=True, cache=False, root=root, **kwargs)

    def decoder(self) -> Decoder:
        """See the base class."""
        return PhotoDecoder(get_spec(self.spec).height)

    def augment_images(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Mirrors; the crop was made while decoding."""
        return crop_and_flip(images, rng, padding=0) if "flip" in self.augment else images
