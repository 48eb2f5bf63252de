import math

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import LOSSES, cross_entropy, kl_divergence, margin

LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 3.0], [-5.0, 5.0, 0.0]])
LABELS = torch.tensor([0, 2, 0])
REFERENCE = torch.tensor([[0.5, 1.0, 0.0], [2.0, -1.0, 3.0], [0.0, 0.0, 1.0]])


def test_cross_entropy_is_minus_the_log_of_the_true_class_probability():
    expected = [
        math.log(sum(math.exp(value) for value in row)) - row[label]
        for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]
    torch.testing.assert_close(cross_entropy(LOGITS, Goal(LABELS)), torch.tensor(expected))


def test_cross_entropy_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(500, 7, generator=generator)
    labels = torch.randint(0, 7, (500,), generator=generator)
    torch.testing.assert_close(cross_entropy(logits, Goal(labels)), F.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0, -60.0])
def test_cross_entropy_gradient_keeps_its_direction_however_sure_the_network(gap):
    logits = torch.tensor([[gap, 0.0, -1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, Goal(torch.tensor([0]))).sum(), logits)
    precise = torch.tensor([[gap, 0.0, -1.0]], dtype=torch.float64)
    wrong = precise[:, 1:].softmax(dim=1)
    share = torch.sigmoid(precise[:, 1:].logsumexp(dim=1) - gap)
    expected = share * torch.cat([torch.full((1, 1), -1.0), wrong], dim=1)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=0)


def test_margin_is_the_best_wrong_logit_minus_the_true_one():
    assert margin(LOGITS, Goal(LABELS)).tolist() == [-1.0, 0.0, 10.0]


def test_margin_is_positive_exactly_when_wrong():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 7, generator=generator), torch.randint(0, 7, (500,), generator=generator)
    assert torch.equal(margin(logits, Goal(labels)) > 0, logits.argmax(dim=1) != labels)


def test_margin_of_two_classes_is_their_difference():
    assert margin(torch.tensor([[1.0, 4.0]]), Goal(torch.tensor([1]))).tolist() == [-3.0]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_adding_a_constant_to_all_logits_changes_nothing(loss):
    goal = Goal(LABELS, reference=REFERENCE)
    torch.testing.assert_close(loss(LOGITS + 7, goal), loss(LOGITS, goal))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_losses_have_the_right_gradient(loss):
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    goal = Goal(torch.tensor([0, 1, 2, 3, 0]), reference=logits.detach().flip(0))
    assert torch.autograd.gradcheck(lambda values: loss(values, goal), (logits,))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_losses_of_very_sure_networks_are_finite(loss):
    assert loss(LOGITS * 1e6, Goal(LABELS, reference=LOGITS.flip(0) * 1e6)).isfinite().all()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_losses_of_no_images_are_empty(loss):
    assert loss(LOGITS[:0], Goal(LABELS[:0], reference=REFERENCE[:0])).shape == (0,)


def test_kl_divergence_is_the_sum_of_p_log_p_over_q():
    expected = []
    for ours, other in zip(LOGITS.double().softmax(dim=1).tolist(), REFERENCE.double().softmax(dim=1), strict=True):
        expected.append(sum(p * math.log(p / q) for p, q in zip(other.tolist(), ours, strict=True)))
    found = kl_divergence(LOGITS.double(), Goal(LABELS, reference=REFERENCE.double()))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("goal", [Goal(LABELS), Goal(LABELS, targets=LABELS + 1, reference=REFERENCE)])
def test_kl_divergence_without_reference_or_with_targets_is_refused(goal):
    with pytest.raises(ValueError, match="kl_divergence measures the way from the unperturbed image"):
        kl_divergence(LOGITS, goal)
