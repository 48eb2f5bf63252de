import pytest
import torch
from torch.nn import functional as F

from lightning_advdef.data.augment import augment, crop_and_flip
from lightning_advdef.rng import SampleRNG


@pytest.fixture
def images():
    return torch.rand(200, 3, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def rng():
    return SampleRNG.for_images(torch.arange(200), split="train")


def all_versions(image, padding, flip):
    """Every shifted and mirrored version of one image, written out one by one."""
    padded = F.pad(image, (padding,) * 4)
    height, width = image.shape[1:]
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            crop = padded[:, row : row + height, column : column + width]
            yield (row, column, False), crop
            if flip:
                yield (row, column, True), crop.flip(2)


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True)])
def test_each_image_becomes_one_of_its_crops_and_all_crops_occur(images, rng, padding, flip):
    seen = set()
    for image, changed in zip(images, crop_and_flip(images, rng, padding=padding, flip=flip), strict=True):
        found = [key for key, version in all_versions(image, padding, flip) if torch.equal(version, changed)]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 0.9 * (2 * padding + 1) ** 2 * (1 + flip)


def test_result_does_not_depend_on_the_batch(images, rng):
    chosen = torch.tensor([7, 150, 3])
    alone = crop_and_flip(images[chosen], rng[chosen])
    assert torch.equal(alone, crop_and_flip(images, rng)[chosen])


def test_half_are_mirrored_and_shifts_are_uniform():
    rows = torch.arange(9.0).expand(1, 9, 9).expand(20_000, 1, 9, 9)
    rng = SampleRNG.for_images(torch.arange(20_000))
    mirrored = crop_and_flip(torch.arange(9.0).expand_as(rows), rng, padding=0)[:, 0, 0, 0] == 8
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.02)
    centre = crop_and_flip(rows, rng, flip=False)[:, 0, 4, 4]
    assert torch.bincount(centre.long(), minlength=9).div(20_000).sub(1 / 9).abs().max() < 0.012


def test_none_gives_the_images_back(images, rng):
    assert augment(images, rng, "none") is images


@pytest.mark.parametrize(("how", "padding", "flip"), [("flip", 0, True), ("crop", 4, False), ("crop_flip", 4, True)])
def test_choices_combine_crop_and_flip(images, rng, how, padding, flip):
    assert torch.equal(augment(images, rng, how), crop_and_flip(images, rng, padding=padding, flip=flip))
