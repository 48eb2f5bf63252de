from types import SimpleNamespace

import pytest
import torch

from lightning_advdef.data import Digits
from lightning_advdef.data.claims import ClaimedBatches, Claims, batch_sizes


@pytest.mark.parametrize("images", [1, 3, 40, 1001])
@pytest.mark.parametrize("processes", [2, 7])
@pytest.mark.parametrize("shrink", [True, False])
def test_batches_hold_all_images_and_none_more_than_the_largest(images, processes, shrink):
    sizes = batch_sizes(images, processes, Claims(largest=64, shrink=shrink))
    assert sum(sizes) == images
    assert 0 < min(sizes) <= max(sizes) <= 64


def test_sizes_are_three_quarters_of_an_equal_share_of_what_is_left():
    assert batch_sizes(64, 2, Claims(256)) == [24, 15, 10, 6, 4, 3, 2]


def test_a_batch_that_costs_the_same_whatever_its_size_is_not_made_smaller():
    assert batch_sizes(101, 2, Claims(50, shrink=False)) == [50, 50, 1]
    assert batch_sizes(101, 2, Claims(256, shrink=False)) == [51, 50]


def idle_share(costs, processes):
    """Share of the time that the first process ready waits, if the next batch goes to whoever is free."""
    ready = [0] * processes
    for batch in ClaimedBatches(costs, processes, 0, Claims(128), "unused").batches:
        ready[ready.index(min(ready))] += sum(costs[position] for position in batch)
    return 1 - min(ready) / max(ready)


@pytest.mark.parametrize("processes", [2, 8, 64])
@pytest.mark.parametrize("standing", [0.1, 0.35, 0.9])
def test_processes_finish_together_though_costly_images_lie_together(processes, standing):
    images = 500 * processes
    count = int(standing * images)
    # what stands is attacked by all parts of a cascade
    costs = [100] * count + [1] * (images - count)
    assert idle_share(costs, processes) < 0.08
    assert idle_share(costs[::-1], processes) < 0.08


def hand_out(turns, images, batch_size):
    """Indices that this process got, after it was asked for its next batch as often as the turns say."""
    rank = torch.distributed.get_rank()
    data = Digits(limit=images, num_workers=0)
    strategy = SimpleNamespace(broadcast=broadcast)
    data.trainer = SimpleNamespace(world_size=2, global_rank=rank, strategy=strategy)
    data.setup("test")
    data.claims = Claims(batch_size)
    batches, got = iter(data.test_dataloader()), []
    for turn in turns:
        torch.distributed.barrier()
        if turn == rank:
            got.append(next(batches).indices.tolist())
    torch.distributed.barrier()
    return got + [batch.indices.tolist() for batch in batches]


def broadcast(value):
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


@pytest.fixture
def group(ddp, tmp_path):
    """The process group that the first Trainer of the pool makes."""
    ddp("tests.evaluation.test_exactness:evaluate", folder=tmp_path, limit=4, devices=2)
    return ddp


def test_a_process_that_is_busy_gets_nothing_meanwhile(group):
    first, second = group("tests.data.test_claims:hand_out", turns=[1, 0, 0, 0, 0, 0, 0, 0], images=24, batch_size=4)
    taken = [index for batch in first + second for index in batch]
    assert len(taken) == len(set(taken)) == 24
    assert sum(map(len, first)) >= 18


def test_each_process_has_a_batch_though_there_are_fewer(group):
    first, second = group("tests.data.test_claims:hand_out", turns=[0], images=1, batch_size=4)
    assert first == second
    assert len(first) == 1


def test_a_batch_holds_the_same_images_whoever_gets_it():
    def batches(rank):
        return ClaimedBatches([None] * 24, 2, rank, Claims(4), "unused").batches

    assert batches(0) == batches(1)
