import math

import pytest
import scipy.fft
import torch

from lightning_advdef.attacks import APGD, BIM, PGD, Cascade, LowFrequency, Square
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.attacks.low_frequency import dct_matrix, low_pass
from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.attacks.surrogates import EOT, FullGradient
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import Linear, Recording, middle_images, random_linear, right
from tests.toys import NoisyInput


def low(images, share):
    """The DCT by scipy, without its high coefficients."""
    coefficients = scipy.fft.dctn(images.double().numpy(), axes=(2, 3), norm="ortho")
    rows, columns = (max(1, round(share * size)) for size in images.shape[2:])
    coefficients[:, :, rows:] = coefficients[:, :, :, columns:] = 0
    return torch.from_numpy(scipy.fft.idctn(coefficients, axes=(2, 3), norm="ortho")).float()


# the band


@pytest.mark.parametrize("size", [1, 2, 7, 28])
def test_the_matrix_is_the_orthonormal_dct(size):
    numbers = torch.rand(size, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(scipy.fft.dct(numbers.numpy(), axis=0, norm="ortho"))
    torch.testing.assert_close(dct_matrix(size) @ numbers, expected)


@pytest.mark.parametrize("size", [3, 8, 224])
def test_all_frequencies_together_are_the_identity_exactly(size):
    assert torch.equal(low_pass(size, 1.0), torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.25, 7), (0.5, 14), (0.99, 28)])
def test_the_share_counts_frequencies_and_leaves_at_least_the_mean(share, kept):
    assert low_pass(28, share).trace() == pytest.approx(kept)


# what the perturbation is made of


@pytest.mark.parametrize("attack", [PGD(0.3, "l2", steps=6), APGD(0.3, "l2", steps=6)])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_in_l2_the_perturbation_has_no_high_frequencies(network, labels, attack, share):
    images = middle_images(16, 2, 6, 6)
    perturbation = LowFrequency(attack, share)(network, images, labels) - images
    assert lp_norm(perturbation, "l2").max() > 0.2
    torch.testing.assert_close(perturbation, low(perturbation, share), rtol=0, atol=1e-6)


def test_in_linf_clipping_adds_a_little_beyond_the_band(images, labels, network):
    found = LowFrequency(PGD(0.1, steps=10), 0.5)(Recording(network, exact=False), images, labels)
    perturbation = found - images
    beyond = (perturbation - low(perturbation, 0.5)).square().sum() / perturbation.square().sum()
    plain = PGD(0.1, steps=10)(Recording(network, exact=False), images, labels) - images
    assert 0 < beyond < 0.1 < (plain - low(plain, 0.5)).square().sum() / plain.square().sum()


def test_the_surrogate_is_asked_about_images_in_the_band_only(network, labels):
    images, recording = middle_images(16, 2, 6, 6), Recording(network, exact=False)
    LowFrequency(PGD(0.3, "l2", steps=3), 0.5)(recording, images, labels)
    for seen in recording.seen:
        torch.testing.assert_close(seen - images, low(seen - images, 0.5), rtol=0, atol=1e-6)
    assert len(recording.seen) == 4


# known answers


@pytest.mark.parametrize("attack", [PGD(0.05, steps=6), PGD(0.3, "l2", steps=6), BIM(0.05), Square(0.05, queries=20)])
def test_with_all_frequencies_it_is_the_attack_itself(network, images, labels, attack):
    torch.testing.assert_close(LowFrequency(attack, 1.0)(network, images, labels), attack(network, images, labels))


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_linear_network_resists_in_l2_where_the_margin_exceeds_eps_times_the_low_part_of_its_slope(share):
    network, images = random_linear(2, 72, seed=1), middle_images(200, 2, 6, 6)
    labels = torch.arange(200) % 2
    slope = (network.weight[1] - network.weight[0]).detach().view(1, 2, 6, 6)
    with torch.no_grad():
        scores = network(images)
    margins = scores.gather(1, labels[:, None])[:, 0] - scores.gather(1, 1 - labels[:, None])[:, 0]
    attack = LowFrequency(PGD(0.4, "l2", steps=20, random_start=False, loss="margin"), share)
    robust = right(network, attack(network, images, labels), labels)
    assert torch.equal(robust, margins > 0.4 * low(slope, share).norm())
    assert 0 < robust.sum() < 90


def test_the_first_step_follows_the_low_part_of_the_gradient(network, images, labels):
    recording = Recording(network, exact=False)
    LowFrequency(BIM(0.3, "l2", steps=3), 0.5)(recording, images, labels)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(network(leaf), Goal(labels)).sum(), leaf)
    step = low(gradient, 0.5)
    expected = (images + 0.1 * step / lp_norm(step, "l2").view(-1, 1, 1, 1)).clamp(0, 1)
    inside = (expected > 0) & (expected < 1)
    # a pixel at the edge has its variable clipped before the band is taken
    rows = inside.flatten(1).all(dim=1)
    assert rows.sum() > 2
    torch.testing.assert_close(recording.seen[1][rows], expected[rows])


def test_of_a_network_that_sees_high_frequencies_alone_nothing_is_found():
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(3, 3).flatten()
    images, labels = middle_images(8, 1, 6, 6), torch.zeros(8, dtype=torch.int64)
    network = Linear(torch.stack([-checkers, checkers]), torch.tensor([2.0, 0.0]))
    clean = right(network, images, labels)
    plain, kept = (right(network, each(network, images, labels), labels) for each in (PGD(0.2), LowFrequency(PGD(0.2))))
    assert torch.equal(kept, clean)
    assert plain.sum() < clean.sum()


# settings and what it works with


def test_more_frequencies_leave_fewer_images_right(network, images, labels):
    counts = [
        right(network, LowFrequency(PGD(0.2, "l2", steps=20), share)(network, images, labels), labels).sum()
        for share in (0.1, 0.5, 1.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_a_random_defense_is_attacked_through_the_mean_over_its_draws(network, images, labels):
    defense = NoisyInput(lambda spec: network, spec="2x6x6x4").eval()
    surrogate = EOT(defense, samples=3)
    passes = surrogate.start_counting(16, images.device)
    found = LowFrequency(PGD(0.1, steps=2), 0.5)(surrogate, images, labels)
    assert passes.forward.tolist() == [9] * 16
    assert passes.backward.tolist() == [6] * 16
    assert (found != images).any()


def test_images_of_a_larger_batch_keep_their_own_variables(network, images, labels):
    """A later part of a cascade gets some of the images, whose random numbers keep the old row numbers."""
    attack, rows = LowFrequency(PGD(0.1, steps=5), 0.5), torch.tensor([9, 2, 13])
    whole = attack(Recording(network, exact=False), images, labels)
    some = attack(Recording(network, exact=False), images[rows], labels[rows], SampleRNG.default(images)[rows])
    torch.testing.assert_close(some, whole[rows])


def test_it_costs_what_its_attack_costs():
    attack = PGD(0.1, steps=7, restarts=2)
    assert LowFrequency(attack).cost(10) == attack.cost(10)


def test_passes_are_those_of_the_attack(images):
    surrogate = FullGradient(Linear(torch.zeros(2, 72) + 1e-3, torch.tensor([9.0, 0.0])))
    passes = surrogate.start_counting(16, images.device)
    LowFrequency(PGD(0.1, steps=4))(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert passes.forward.tolist() == [5] * 16
    assert passes.backward.tolist() == [4] * 16


@pytest.mark.parametrize("share", [0, -0.5, 1.01, math.nan])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match=r"frequencies is the share .* must lie in \(0, 1\], got"):
        LowFrequency(PGD(0.1), share)


def test_attacks_made_of_parts_are_refused():
    with pytest.raises(ValueError, match="LowFrequency cannot use Cascade"):
        LowFrequency(Cascade(attacks={"a": BIM(0.1), "b": PGD(0.1)}))
