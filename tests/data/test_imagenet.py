import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from lightning_advdef.data import ImageNet
from lightning_advdef.data.imagenet import PhotoDecoder
from lightning_advdef.errors import DatasetNotFoundError


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_centre_is_that_of_the_usual_transforms(photo):
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    with Image.open(photo) as image:
        assert torch.equal(PhotoDecoder(224)(photo), usual(image))


def test_random_crop_depends_on_the_seed_only(photo):
    decode = PhotoDecoder(32)
    state = torch.get_rng_state()
    first = decode(photo, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(decode(photo, 1), first)
    assert not torch.equal(decode(photo, -2), first)
    assert first.shape == (3, 32, 32)


@pytest.fixture
def small(tmp_path, photo, monkeypatch):
    """Two classes in place of a thousand, five photographs each."""
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(5):
                (tmp_path / split / name / f"{number}.png").symlink_to(photo)
    data = ImageNet(root=str(tmp_path), augment="crop_flip")
    monkeypatch.setattr(data, "_spec", data._spec._replace(classes=2))
    return data


def test_only_training_images_are_cropped_at_random(small):
    small.setup("fit")
    batch = next(iter(small.train_dataloader()))
    assert batch.images.shape == (9, 3, 224, 224)
    assert not torch.equal(batch.images[0], batch.images[1])
    val = next(iter(small.val_dataloader())).images
    small.setup("test")
    assert torch.equal(val[0], next(iter(small.test_dataloader())).images[0])


def test_each_epoch_has_its_own_crops(small):
    small.setup("fit")
    loader = small.train_dataloader()
    pictures = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        batch = next(iter(loader))
        pictures.append(batch.images[batch.indices.argsort()])
    assert torch.equal(pictures[0], pictures[2])
    assert not torch.equal(pictures[0], pictures[1])


def test_test_folder_of_ilsvrc_is_not_the_test_set(tmp_path):
    (tmp_path / "test" / "n01").mkdir(parents=True)
    with pytest.raises(DatasetNotFoundError, match=rf"ImageNet was not found at {tmp_path}/val: point --data.root"):
        ImageNet(root=str(tmp_path)).setup("test")
