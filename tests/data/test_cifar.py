import pickle

import numpy as np
import pytest
import torch

from lightning_advdef.data import CIFAR10, CIFAR100
from lightning_advdef.errors import DatasetNotFoundError


def write(path, pixels, key):
    path.write_bytes(pickle.dumps({"data": pixels.reshape(len(pixels), -1), key: list(range(len(pixels)))}))


@pytest.fixture(params=[CIFAR10, CIFAR100])
def written(request, tmp_path, monkeypatch):
    """A data set in the file format of the real one; only the check sums differ."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.CIFAR10._load_meta", lambda self: None)
    ten = request.param is CIFAR10
    folder = tmp_path / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    train = [f"data_batch_{number}" for number in range(1, 6)] if ten else ["train"]
    for name in (*train, "test_batch" if ten else "test"):
        write(folder / name, pixels, "labels" if ten else "fine_labels")
    return request.param(root=str(tmp_path)), torch.from_numpy(pixels), len(train)


def test_files_are_read_channels_first(written):
    data, pixels, batches = written
    assert torch.equal(data.load("test").pixels, pixels)
    train = data.load("train")
    assert torch.equal(train.pixels, pixels.repeat(batches, 1, 1, 1))
    assert train.pixels.is_contiguous()
    assert train.labels.tolist() == [0, 1, 2, 3] * batches


@pytest.mark.parametrize("cls", [CIFAR10, CIFAR100])
def test_missing_data_names_place_and_remedy(cls, tmp_path):
    with pytest.raises(DatasetNotFoundError, match=rf"^{cls.__name__} was not found at {tmp_path}.*--data.root"):
        cls(root=str(tmp_path)).setup("test")
