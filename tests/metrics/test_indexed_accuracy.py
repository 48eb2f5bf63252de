import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lightning_advdef.metrics import IndexedAccuracy

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 6])
ANSWERS = torch.tensor([0, 1, 2, 3, 0, 0, 0])  # 4 of 7 right


def accuracy_of(*batches):
    metric = IndexedAccuracy()
    for rows in batches:
        rows = torch.tensor(rows)
        metric.update(ANSWERS[rows], LABELS[rows], rows)
    return metric.compute().item()


def test_plain_batches_give_plain_accuracy():
    assert accuracy_of([0, 1, 2], [3, 4, 5, 6]) == pytest.approx(4 / 7)


def test_repeated_images_count_once_within_and_across_batches():
    assert accuracy_of([0, 0, 4], [0, 4, 5]) == pytest.approx(1 / 3)


def test_order_does_not_matter():
    assert accuracy_of([6, 2, 4], [5, 0, 1, 3]) == accuracy_of(list(range(7)))


def test_logits_are_read_by_their_largest():
    metric = IndexedAccuracy()
    metric.update(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_answers_that_differ_count_with_their_mean():
    metric = IndexedAccuracy()
    metric.update(torch.tensor([1, 0, 1]), torch.tensor([1, 1, 1]), torch.tensor([5, 5, 9]))
    assert metric.compute().item() == pytest.approx(0.75)


def test_indices_above_float_precision_stay_apart():
    metric = IndexedAccuracy()
    metric.update(torch.tensor([1, 0]), torch.tensor([1, 1]), torch.tensor([2**24, 2**24 + 1]))
    assert metric.compute().item() == 0.5


def test_no_image_gives_nan_and_reset_forgets():
    metric = IndexedAccuracy()
    metric.update(ANSWERS, LABELS, torch.arange(7))
    assert metric(ANSWERS, LABELS, torch.arange(7)).item() == pytest.approx(4 / 7)
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(metric.compute())


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="one entry per image"):
        IndexedAccuracy().update(ANSWERS, LABELS, torch.arange(6))


def _rank(rank, shares, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = []
    for batches in shares:
        metric = IndexedAccuracy()
        for rows in batches[rank]:
            rows = torch.tensor(rows)
            metric.update(ANSWERS[rows], LABELS[rows], rows)
        found.append(metric.compute().item())
        # an update after the gather continues from this process's own images
        metric.update(ANSWERS[:1], LABELS[:1], torch.tensor([0]))
        found.append(metric.compute().item())
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_processes_give_what_one_gives(tmp_path):
    shares = [
        ([[0, 2], [4, 6]], [[1, 3], [5, 0]]),  # as a distributed sampler pads
        ([[0, 1, 2]], [[3], [4, 5], [6]]),
        ([[0, 1, 2, 3, 4, 5, 6]], []),  # a process without any image
    ]
    # forked, because a fresh process takes seconds to import torch
    mp.start_processes(_rank, (shares, tmp_path), nprocs=2, start_method="fork")
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert results[0] == results[1] == pytest.approx([4 / 7] * 6)
