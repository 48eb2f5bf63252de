"""Pairs of embeddings of one class."""

import pytest
import torch

from lightning_advdef.defenses.idfr.embeddings import EmbeddingPools
from lightning_advdef.rng import SampleRNG

LABELS = torch.tensor([0, 1, 1, 2, 0, 2, 1, 0, 1])
CORRECT = torch.tensor([True, False, True, True, False, True, True, True, False])
PAIRINGS = pytest.mark.parametrize("pairing", ["same_class", "correct_wrong"])


def pools_of(embeddings=None):
    """Each embedding is its own number, twice."""
    values = torch.arange(9.0).unsqueeze(1).expand(9, 2) if embeddings is None else embeddings
    return EmbeddingPools(values, LABELS, CORRECT, 4)


def drawn(pairing, count=3000):
    """Numbers of both embeddings of many pairs, and the class asked for."""
    pools, wanted = pools_of(), torch.arange(count) % 3
    rows = pools.pairs(wanted, SampleRNG.for_images(torch.arange(count)), pairing)
    return [pools.embeddings[row, 0].long() for row in rows], wanted


@PAIRINGS
def test_both_are_of_the_class_asked_for(pairing):
    for numbers, wanted in [(numbers, drawn(pairing)[1]) for numbers in drawn(pairing)[0]]:
        assert torch.equal(LABELS[numbers], wanted)


def test_same_class_draws_every_pair_alike():
    (first, second), wanted = drawn("same_class")
    pairs = torch.stack([first, second], dim=1)[wanted == 1].tolist()
    counts = torch.tensor([pairs.count([one, other]) for one in (1, 2, 6, 8) for other in (1, 2, 6, 8)])
    assert counts.sum() == 1000
    assert (counts - 1000 / 16).abs().max() < 4 * (1000 / 16) ** 0.5


def test_correct_wrong_draws_one_of_each():
    (first, second), wanted = drawn("correct_wrong")
    both = wanted < 2
    assert CORRECT[first][both].all()
    assert not CORRECT[second][both].any()
    assert set(first[wanted == 1].tolist()) == {2, 6}
    assert set(second[wanted == 1].tolist()) == {1, 8}


def test_class_without_wrong_ones_falls_back_to_any_pair():
    (first, second), wanted = drawn("correct_wrong")
    assert set(first[wanted == 2].tolist()) == set(second[wanted == 2].tolist()) == {3, 5}


@PAIRINGS
def test_mixtures_are_the_convex_combinations_of_the_pairs(pairing):
    torch.manual_seed(0)
    pools, wanted = pools_of(torch.randn(9, 2)), torch.arange(12) % 3
    rng = SampleRNG.for_images(torch.arange(12))
    first, second = pools.pairs(wanted, rng, pairing)
    alpha = rng.stream("alpha").uniform(1)
    expected = alpha * pools.embeddings[first] + (1 - alpha) * pools.embeddings[second]
    torch.testing.assert_close(pools.mixtures(wanted, rng, pairing), expected)


def test_alpha_is_uniform():
    pools = EmbeddingPools(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 0]), torch.tensor([True, False]), 1)
    rng = SampleRNG.for_images(torch.arange(4000))
    mixed = pools.mixtures(torch.zeros(4000, dtype=torch.int64), rng, "correct_wrong").flatten()
    expected = 1 - torch.linspace(0, 1, 4000)  # the correct one is 0, so what is seen is 1 - alpha
    assert (mixed.sort(descending=True).values - expected).abs().max() < 0.03


@PAIRINGS
def test_a_pair_does_not_depend_on_the_batch(pairing):
    pools, wanted = pools_of(), torch.arange(12) % 3
    rng = SampleRNG.for_images(torch.arange(12))
    whole = pools.mixtures(wanted, rng, pairing)
    rows = torch.tensor([7, 2, 11])
    assert torch.equal(pools.mixtures(wanted[rows], rng[rows], pairing), whole[rows])
