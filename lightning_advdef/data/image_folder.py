"""Any data set that lies in folders, one per class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import functional as TF

from lightning_advdef.data.base import DataModule, Split
from lightning_advdef.data.sources import Decoder, FileImages, ImageSource
from lightning_advdef.data.specs import get_spec
from lightning_advdef.types import ImageSpec


def open_image(path: str, channels: int) -> Image.Image:
    """Decodes an image file to gray (1 channel) or RGB (3).

    Raises:
        ValueError: If the file is not an image that Pillow reads.
    """
    try:
        with Image.open(path) as image:
            return image.convert("L" if channels == 1 else "RGB")
    # Pillow raises a SyntaxError for some broken PNG files
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): repair it or remove it") from error


@dataclass(frozen=True)
class FixedSizeDecoder:
    """Reads an image of the size that the spec says; with ``resize`` it is scaled to cover that size and centred."""

    spec: ImageSpec
    resize: bool

    def __call__(self, path: str, seed: int | None = None) -> Tensor:
        """Pixels uint8, shape ``(C, H, W)``; the seed is not used."""
        image = open_image(path, self.spec.channels)
        size = (self.spec.width, self.spec.height)
        if image.size != size and not self.resize:
            raise ValueError(
                f"{path} has {image.height}x{image.width} pixels, but the spec {self.spec.name} says "
                f"{self.spec.height}x{self.spec.width}: add --data.resize true or change --data.spec"
            )
        if image.size != size:
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        pixels: Tensor = TF.pil_to_tensor(image)
        return pixels


class ImageFolder(DataModule):
    """Images in ``root/train/<class>/`` and ``root/test/<class>/`` (or ``root/val/<class>/``): PNG, JPEG and such.

    Classes are numbered in the order of their names.

    Args:
        spec: Name of a data set in the table, or ``CxHxWxK``, e.g. ``3x32x32x10``; 1 channel reads gray, 3 RGB.
        resize: Scale images of another size to cover that of the spec and cut out the centre.
        cache: Decode every file once and keep the pixels in memory (C*H*W bytes per image).
        kwargs: Arguments of every data set; ``root`` is the folder itself.

    Raises:
        ValueError: If the spec is unknown or has neither 1 nor 3 channels.
    """

    downloadable = False
    test_folders: ClassVar[tuple[str, ...]] = ("test", "val")

    def __init__(self, spec: str, resize: bool = False, cache: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._spec = get_spec(spec)
        if self._spec.channels not in (1, 3):
            raise ValueError(f"image files have 1 or 3 channels, got spec {spec}: change --data.spec")
        self._resize = resize
        self._cache = cache

    @property
    def spec(self) -> str:
        """See the base class."""
        return self._spec.name

    def load(self, split: Split) -> ImageSource:
        """See the base class.

        Raises:
            ValueError: If the class folders do not fit the spec or the training set, or an image does not.
        """
        paths, labels = self._list(self._folder(split))
        images = FileImages(paths, torch.tensor(labels), self.decoder(), self.seed)
        return images.cached() if self._cache else images

    def decoder(self) -> Decoder:
        """What reads one file."""
        return FixedSizeDecoder(self._spec, self._resize)

    def _folder(self, split: Split) -> Path:
        names = ("train",) if split == "train" else self.test_folders
        for name in names:
            if (Path(self.root) / name).is_dir():
                return Path(self.root) / name
        raise self.not_found(" or ".join(str(Path(self.root) / name) for name in names))

    def _list(self, folder: Path) -> tuple[list[str], list[int]]:
        """Sorted files and their classes."""
        classes = _class_names(folder)
        training = Path(self.root) / "train"
        # a class missing on one side would silently renumber all that follow
        if training.is_dir() and classes != _class_names(training):
            raise ValueError(f"the class folders of {folder} and {training} differ: give both the same names")
        if len(classes) != self._spec.classes:
            raise ValueError(
                f"{folder} has {len(classes)} class folders, but the spec {self._spec.name} says "
                f"{self._spec.classes}: change --data.spec or the folder"
            )
        try:
            samples = datasets.ImageFolder(folder).samples
        except FileNotFoundError as error:
            raise ValueError(f"{folder} has a class folder without images: fill it or remove it ({error})") from error
        paths, labels = zip(*samples, strict=True)
        return list(paths), list(labels)


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
