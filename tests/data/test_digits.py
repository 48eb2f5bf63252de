import torch
from sklearn.datasets import load_digits

from lightning_advdef.data import Digits


def test_every_fifth_image_is_a_test_image_with_scaled_levels():
    data = Digits(batch_size=400)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    digits = load_digits()
    assert batch.images.shape == (359, 1, 8, 8)
    assert batch.labels.tolist() == digits.target[4::5].tolist()
    torch.testing.assert_close(batch.images[:, 0] * 16, torch.tensor(digits.images[4::5]).float(), atol=0.032, rtol=0)
    assert batch.images.max() == 1
    assert len(batch.images.unique()) == 17


def test_training_has_the_other_images():
    data = Digits(val_fraction=0)
    data.setup("fit")
    assert len(data.train_dataloader().dataset) == 1438
