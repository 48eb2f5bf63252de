"""What makes two evaluations the same."""

from types import SimpleNamespace

import pytest
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from lightning_advdef.evaluation.fingerprint import described_loader
from tests.toys import foreign_loader


def described(limit, batch_size=8, world_size=1, loader=None):
    loader = loader or foreign_loader(batch_size=batch_size)
    return described_loader(SimpleNamespace(world_size=world_size), loader, limit)


@pytest.mark.parametrize("limit", [1, 0.5])
def test_a_number_of_batches_is_one_of_images(limit):
    assert described(limit, batch_size=4) != described(limit, batch_size=8)
    assert described(limit, batch_size=4, world_size=2) == described(limit, batch_size=8)


def test_where_all_batches_are_judged_their_size_is_no_part_of_it():
    assert described(1.0, batch_size=4) == described(1.0, batch_size=8)


def test_a_sampler_of_batches_knows_their_size():
    dataset = foreign_loader().dataset
    loader = DataLoader(dataset, batch_sampler=BatchSampler(SequentialSampler(dataset), 8, drop_last=False))
    assert described(1, loader=loader) == described(1, batch_size=8)


def test_every_tensor_in_memory_counts():
    images, labels = foreign_loader(count=200).dataset.tensors
    other = images.clone()
    other[1::2] = 1 - images[1::2]
    first, second, again = (
        described(1.0, loader=DataLoader(TensorDataset(each, labels), batch_size=8))
        for each in (images, other, images.clone())
    )
    assert first == again
    assert first != second
