import struct

import numpy as np
import pytest

from lightning_advdef.data import MNIST, FashionMNIST
from lightning_advdef.errors import DatasetNotFoundError


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture(params=[MNIST, FashionMNIST])
def written(request, tmp_path):
    """A data set of five images, in the file format of the real one."""
    folder = tmp_path / request.param.__name__ / "raw"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for name in ("train", "t10k"):
        write_idx(folder / f"{name}-images-idx3-ubyte", pixels)
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    return request.param, tmp_path, pixels


@pytest.mark.parametrize("split", ["train", "test"])
def test_files_are_read(written, split):
    cls, root, pixels = written
    source = cls(root=str(root)).load(split)
    assert (source.pixels[:, 0].numpy() == pixels).all()
    assert source.labels.tolist() == [0, 1, 2, 3, 4]


def test_missing_data_names_place_and_remedy(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=rf"MNIST was not found at {tmp_path}.*--data.download true.*--data"):
        MNIST(root=str(tmp_path)).setup("fit")


def test_damaged_file_is_reported(written):
    cls, root, _ = written
    path = root / cls.__name__ / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetNotFoundError, match="missing or damaged"):
        cls(root=str(root)).setup("fit")


def test_failed_download_is_one_sentence(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise RuntimeError("Error downloading x:\nTried mirror, got:\nno network\n")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", offline)
    with pytest.raises(
        DatasetNotFoundError, match=r"could not be downloaded to .*no network\): check the network"
    ) as e:
        MNIST(root=str(tmp_path), download=True).prepare_data()
    assert "\n" not in str(e.value)


def test_nothing_is_downloaded_without_the_flag(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.download", pytest.fail)
    MNIST(root=str(tmp_path)).prepare_data()
