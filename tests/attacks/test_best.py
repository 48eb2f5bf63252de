import torch

from lightning_advdef.attacks.best import BestIterates

ALL = torch.arange(2)


def pictures(first, second):
    return torch.tensor([first, second]).view(2, 1, 1, 1).float()


def offer(best, pair, loss, final):
    best.update(ALL, pictures(*pair), torch.tensor(loss), torch.tensor(final))


def test_clean_images_are_kept_until_something_is_offered():
    assert torch.equal(BestIterates(pictures(1, 2)).images, pictures(1, 2))


def test_the_iterate_of_highest_loss_is_kept_where_none_is_final():
    best = BestIterates(pictures(0, 0))
    for pair, loss in (((1, 2), [0.1, 0.9]), ((3, 4), [0.5, 0.2]), ((5, 6), [0.4, 0.3])):
        offer(best, pair, loss, [False, False])
    assert torch.equal(best.images, pictures(3, 2))
    assert not best.decided.any()


def test_the_first_final_iterate_is_kept():
    best = BestIterates(pictures(0, 0))
    offer(best, (1, 2), [0.9, 0.9], [False, True])
    offer(best, (3, 4), [0.1, 5.0], [True, True])
    offer(best, (5, 6), [9.0, 9.0], [True, False])
    assert torch.equal(best.images, pictures(3, 2))
    assert best.decided.all()


def test_only_the_rows_offered_change():
    best = BestIterates(pictures(0, 0))
    best.update(torch.tensor([1]), pictures(7, 8)[1:], torch.tensor([0.5]), torch.tensor([False]))
    assert torch.equal(best.images, pictures(0, 8))


def test_the_clean_images_are_not_written_to():
    clean = pictures(0, 0)
    offer(BestIterates(clean), (1, 2), [0.1, 0.1], [True, True])
    assert not clean.any()
