import numpy as np
import pytest
import torch
from PIL import Image

from lightning_advdef.data import ImageFolder
from lightning_advdef.errors import DatasetNotFoundError


def read(data, stage="test"):
    data.setup(stage)
    return next(iter(data.test_dataloader()))


def test_cached_and_uncached_give_the_same_pixels(image_folder):
    cached, uncached = (read(ImageFolder("3x8x8x2", root=str(image_folder), cache=cache)) for cache in (True, False))
    assert all(torch.equal(*pair) for pair in zip(cached, uncached, strict=True))
    with Image.open(image_folder / "test" / "dog" / "0.png") as image:
        assert torch.equal(cached.images[2], torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    assert cached.labels.tolist() == [0, 0, 1, 1]


def test_val_folder_serves_as_test_set(image_folder):
    (image_folder / "test").rename(image_folder / "val")
    assert len(read(ImageFolder("3x8x8x2", root=str(image_folder))).indices) == 4


def test_resize_scales_and_cuts_the_centre(image_folder):
    images = read(ImageFolder("1x4x6x2", root=str(image_folder), resize=True)).images
    assert images.shape == (4, 1, 4, 6)


def test_other_size_without_resize_is_an_error(image_folder):
    with pytest.raises(ValueError, match=r"has 8x8 pixels.*says 4x4: add --data.resize true"):
        read(ImageFolder("3x4x4x2", root=str(image_folder)))


def test_number_of_classes_must_fit_the_spec(image_folder):
    with pytest.raises(ValueError, match=r"has 2 class folders, but the spec 3x8x8x5 says 5"):
        read(ImageFolder("3x8x8x5", root=str(image_folder)))


def test_splits_must_have_the_same_classes(image_folder):
    (image_folder / "test" / "dog").rename(image_folder / "test" / "cow")
    with pytest.raises(ValueError, match=r"class folders of .* differ"):
        read(ImageFolder("3x8x8x2", root=str(image_folder)))


def test_class_folder_without_images_is_an_error(image_folder):
    for path in (image_folder / "test" / "cat").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="class folder without images"):
        read(ImageFolder("3x8x8x2", root=str(image_folder)))


def test_broken_image_is_named(image_folder):
    (image_folder / "test" / "cat" / "1.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"cat/1.png cannot be read as an image"):
        read(ImageFolder("3x8x8x2", root=str(image_folder)))


def test_missing_folder_names_place_and_remedy(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=rf"not found at {tmp_path}/test or .*val: point --data.root"):
        read(ImageFolder("3x8x8x2", root=str(tmp_path)))


def test_spec_is_checked_at_construction():
    with pytest.raises(ValueError, match="CxHxWxK"):
        ImageFolder("nonsense")
    with pytest.raises(ValueError, match="1 or 3 channels"):
        ImageFolder("4x8x8x2")


def test_mean_image_needs_pixels_in_memory(image_folder):
    arguments = {"spec": "3x8x8x2", "root": str(image_folder), "val_fraction": 0}
    assert ImageFolder(**arguments, cache=False).mean_image() is None
    assert ImageFolder(**arguments).mean_image().shape == (3, 8, 8)
