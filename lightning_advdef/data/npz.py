"""Own data in one ``.npz`` file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from lightning_advdef.data.base import DataModule, Split
from lightning_advdef.data.sources import ImageSource, MemoryImages
from lightning_advdef.data.specs import get_spec
from lightning_advdef.errors import DatasetNotFoundError

Layout = Literal["auto", "nhwc", "nchw"]
Array = np.ndarray[Any, Any]
_DARK = 32  # of 255; pixels of another range, such as 0..1 or 0..16, lie below


class NPZ(DataModule):
    """Arrays ``x_train, y_train, x_test, y_test``: pixels uint8 or float in [0, 1], labels whole numbers from 0.

    Args:
        root: The file.
        spec: Name of a data set in the table, or ``CxHxWxK``; without it, read from the training arrays.
        layout: Order of the axes of the pixels; ``auto`` looks for the axis of 1 or 3 channels. Gray images may be
            ``(N, H, W)``.
        kwargs: Arguments of every data set.

    Raises:
        ValueError: If the spec is unknown.
    """

    downloadable = False

    def __init__(
        self, root: str = "data/data.npz", spec: str | None = None, layout: Layout = "auto", **kwargs: Any
    ) -> None:
        super().__init__(root=root, **kwargs)
        self._spec = get_spec(spec).name if spec is not None else None
        self._layout = layout

    @property
    def spec(self) -> str:
        """See the base class; reads the training arrays if it was not given.

        Raises:
            DatasetNotFoundError: If the file is not there.
            ValueError: If its content is not as described.
        """
        if self._spec is None:
            source = self._source("train")
            assert isinstance(source, MemoryImages)
            shape = "x".join(str(size) for size in source.pixels.shape[1:])
            self._spec = f"{shape}x{int(source.labels.max()) + 1}"
        return self._spec

    def load(self, split: Split) -> ImageSource:
        """See the base class.

        Raises:
            DatasetNotFoundError: If the file or an array of the split is not there.
            ValueError: If the type, range or shape of an array is wrong.
        """
        pixels, labels = self._arrays(f"x_{split}", f"y_{split}")
        images = self._pixels(pixels, f"x_{split}")
        classes = self._labels(labels, f"y_{split}", len(images))
        # the training arrays make the spec unless the user gave one
        if self._spec is not None or split == "test":
            spec = get_spec(self.spec)
            if images.shape[1:] != spec.shape:
                self._fail(f"x_{split}", f"has images {tuple(images.shape[1:])}, but the spec says {spec.shape}")
            if classes.max() >= spec.classes:
                self._fail(f"y_{split}", f"has label {int(classes.max())}, but the spec says {spec.classes} classes")
        return MemoryImages(images, classes)

    def _arrays(self, *names: str) -> list[Array]:
        if not Path(self.root).is_file():
            raise self.not_found(self.root)
        try:
            with np.load(self.root, allow_pickle=False) as arrays:
                return [arrays[name] for name in names]
        except KeyError as error:
            raise DatasetNotFoundError(
                f"{self.root} lacks an array: x_train, y_train, x_test and y_test are needed, or with --data.spec "
                f"those of one split ({error.args[0]})"
            ) from error
        except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.root} cannot be read as plain arrays of an .npz file: {error}") from error

    def _pixels(self, array: Array, name: str) -> Tensor:
        """Checked pixels, uint8 or float32, shape ``(N, C, H, W)``."""
        if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
            self._fail(name, f"has type {array.dtype}, but pixels are uint8, or float in [0, 1]")
        if 0 in array.shape:
            self._fail(name, f"has shape {array.shape}, so that there is nothing to read")
        if array.ndim not in (3, 4):
            self._fail(name, f"has shape {array.shape}, but images are (N, H, W), (N, H, W, C) or (N, C, H, W)")
        if array.dtype != np.uint8:
            # written so that NaN fails too
            if not (array.min() >= 0 and array.max() <= 1):
                self._fail(name, f"ranges from {array.min()} to {array.max()}, but float pixels lie in [0, 1]")
            array = array.astype(np.float32)
        elif array.max() < _DARK:
            rank_zero_warn(
                f"pixels of {name} in {self.root} are uint8 and divided by 255, but the largest is {array.max()}, so "
                "that all images are nearly black: unless they are meant to be, store them as float in [0, 1]"
            )
        images = torch.from_numpy(array)
        if array.ndim == 3:
            return images.unsqueeze(1)
        return images.permute(0, 3, 1, 2) if self._layout_of(array, name) == "nhwc" else images

    def _layout_of(self, array: Array, name: str) -> Layout:
        if self._layout != "auto":
            return self._layout
        first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
        if first == last:
            self._fail(name, f"has shape {array.shape}, which may be nhwc or nchw; say which with --data.layout")
        return "nchw" if first else "nhwc"

    def _labels(self, array: Array, name: str, count: int) -> Tensor:
        """Checked labels, int64, shape ``(count,)``."""
        if not np.issubdtype(array.dtype, np.integer) or array.shape != (count,):
            self._fail(name, f"is {array.dtype} {array.shape}, but labels are whole numbers of shape ({count},)")
        if array.min() < 0:
            self._fail(name, f"has label {array.min()}, but labels start at 0")
        return torch.from_numpy(array.astype(np.int64))

    def _fail(self, name: str, problem: str) -> NoReturn:
        raise ValueError(f"{name} in {self.root} {problem}: mend the file, or see --data.spec and --data.layout")
