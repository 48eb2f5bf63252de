import pytest
import torch

from lightning_advdef.data.sources import FileImages, ImageDataset, MemoryImages


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_batch_has_float_pixels_and_positions_in_the_split(pixels):
    labels = torch.arange(20)
    dataset = ImageDataset(MemoryImages(pixels, labels), torch.tensor([3, 8, 15]))
    batch = dataset.__getitems__([2, 0])
    assert batch.indices.tolist() == batch.labels.tolist() == [15, 3]
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images, pixels[[15, 3]].float().div(255))
    assert torch.equal(dataset[1].images, pixels[8:9].float().div(255))


def test_float_pixels_are_kept_exactly():
    pixels = torch.rand(5, 1, 2, 2)
    assert torch.equal(MemoryImages(pixels, torch.zeros(5).long()).read(torch.arange(5)), pixels)


def test_reading_leaves_the_stored_pixels_alone(pixels):
    source = MemoryImages(pixels.clone(), torch.arange(20))
    source.read(torch.arange(20)).zero_()
    assert torch.equal(source.pixels, pixels)


def test_mean_is_over_the_given_rows(pixels):
    rows = torch.tensor([0, 4, 5])
    mean = MemoryImages(pixels, torch.arange(20)).mean(rows)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, pixels[rows].float().div(255).mean(0))


def test_files_get_a_seed_by_image_and_epoch_only():
    files = FileImages(["0", "1", "2"], torch.arange(3), lambda path, seed: torch.tensor([seed or 0]))
    seeds = []
    files._decode = lambda path, seed: seeds.append((path, seed)) or torch.zeros(1)
    files.read(torch.tensor([2, 0]), epoch=1)
    files.read(torch.tensor([0, 1]), epoch=1)
    files.read(torch.tensor([0]), epoch=2)
    files.read(torch.tensor([0]))
    assert seeds[1] == seeds[2]
    assert seeds[4][1] != seeds[1][1]
    assert seeds[5] == ("0", None)
