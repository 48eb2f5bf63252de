import numpy as np
import pytest
import torch
from scipy.io import savemat

from lightning_advdef.data import SVHN
from lightning_advdef.errors import DatasetNotFoundError


def test_files_are_read_and_label_ten_is_zero(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda self: True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": np.array([[1], [9], [10], [3]], dtype=np.uint8)})
    source = SVHN(root=str(tmp_path)).load("test")
    assert torch.equal(source.pixels, torch.from_numpy(pixels).permute(3, 2, 0, 1))
    assert source.labels.tolist() == [1, 9, 0, 3]


def test_missing_data_names_place_and_remedy(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=rf"^SVHN was not found at {tmp_path}.*--data.download true"):
        SVHN(root=str(tmp_path)).setup("fit")
