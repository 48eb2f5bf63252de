import math

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.defenses.adversarial_training import MART, TRADES, CrossEntropy

CLEAN = 3 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ATTACKED = 3 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def probabilities(logits):
    return [[math.exp(value) / sum(map(math.exp, row)) for value in row] for row in logits.tolist()]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_cross_entropy_mixes_clean_and_adversarial_images():
    expected = 0.3 * F.cross_entropy(CLEAN, LABELS) + 0.7 * F.cross_entropy(ATTACKED, LABELS)
    torch.testing.assert_close(CrossEntropy(0.3)(CLEAN, ATTACKED, LABELS), expected)


def test_cross_entropy_of_adversarial_images_alone_asks_for_no_clean_ones():
    assert not CrossEntropy().needs_clean
    assert torch.equal(CrossEntropy()(None, ATTACKED, LABELS), F.cross_entropy(ATTACKED, LABELS))


def test_trades_is_clean_cross_entropy_plus_beta_times_the_divergence():
    total = 0.0
    for p, q, y in zip(probabilities(CLEAN), probabilities(ATTACKED), LABELS.tolist(), strict=True):
        total += -math.log(p[y]) + 2.5 * divergence(p, q)
    assert TRADES(2.5)(CLEAN, ATTACKED, LABELS).item() == pytest.approx(total / 6)


def test_mart_is_boosted_cross_entropy_plus_beta_times_the_weighted_divergence():
    total = 0.0
    for p, q, y in zip(probabilities(CLEAN), probabilities(ATTACKED), LABELS.tolist(), strict=True):
        wrong = max(value for number, value in enumerate(q) if number != y)
        total += -math.log(q[y]) - math.log(1 - wrong) + 5 * divergence(p, q) * (1 - p[y])
    assert MART()(CLEAN, ATTACKED, LABELS).item() == pytest.approx(total / 6)


@pytest.mark.parametrize("objective", [CrossEntropy(0.3), TRADES(), MART()])
def test_gradients_are_those_of_finite_differences(objective):
    """Both sides of a divergence are differentiated, as in the authors' code."""
    clean, attacked = CLEAN.clone().requires_grad_(), ATTACKED.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: objective(a, b, LABELS), (clean, attacked))


@pytest.mark.parametrize("objective", [CrossEntropy(0.3), TRADES(), MART()])
def test_very_sure_networks_give_finite_losses_and_gradients(objective):
    clean, attacked = (1e4 * CLEAN.float()).requires_grad_(), (1e4 * ATTACKED.float()).requires_grad_()
    loss = objective(clean, attacked, LABELS)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (clean, attacked)))


@pytest.mark.parametrize("make", [lambda: CrossEntropy(1.5), lambda: TRADES(-1.0), lambda: MART(float("nan"))])
def test_weights_that_are_no_weights_are_refused(make):
    with pytest.raises(ValueError, match=r"clean_weight is a share|beta is a weight"):
        make()
