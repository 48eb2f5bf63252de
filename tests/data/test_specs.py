import pytest
import torch

from lightning_advdef.data import Digits, get_spec
from lightning_advdef.data.specs import SPECS


@pytest.mark.parametrize("name", SPECS)
def test_every_entry_has_statistics_of_each_channel(name):
    spec = get_spec(name)
    assert spec.name == name
    assert len(spec.mean) == len(spec.std) == spec.channels
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))


def test_free_form_is_read():
    spec = get_spec("3x64x48x12")
    assert (spec.name, spec.shape, spec.classes) == ("3x64x48x12", (3, 64, 48), 12)
    assert spec.mean == spec.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["cifar", "3x32x32", "0x8x8x10", "3x32x32x10x1", ""])
def test_unknown_name_lists_the_choices(name):
    with pytest.raises(ValueError, match=r"cifar10, cifar100.*CxHxWxK such as 3x64x64x12"):
        get_spec(name)


def test_statistics_of_digits_are_those_of_its_training_images():
    data = Digits(val_fraction=0)
    data.setup("fit")
    pixels = torch.cat([batch.images for batch in data.train_dataloader()])
    assert pixels.mean().item() == pytest.approx(get_spec("digits").mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(get_spec("digits").std[0], abs=2e-4)
