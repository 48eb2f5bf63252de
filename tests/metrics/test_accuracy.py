import math

import pytest
import torch

from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.metrics import accuracy_norm_curve, eps_for_accuracy, norm_summary, worst_case


def test_worst_case_is_right_only_under_every_scenario():
    correct = torch.tensor([[True, True, False], [True, False, True]])
    assert worst_case(correct).tolist() == [1.0, 0.0, 0.0]


def test_worst_case_takes_the_minimum_of_means():
    shares = torch.tensor([[0.9, 0.4], [0.7, 0.6]])
    assert torch.equal(worst_case(shares), torch.tensor([0.7, 0.4]))


def test_worst_case_is_at_most_every_scenario():
    correct = torch.rand(5, 20, generator=torch.Generator().manual_seed(0))
    assert (worst_case(correct).mean() <= correct.mean(dim=1)).all()


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 2, 2)])
def test_worst_case_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="scenarios, images"):
        worst_case(torch.ones(shape))


def test_curve_steps_down_at_each_norm():
    radii, accuracy = accuracy_norm_curve(torch.tensor([2.0, 0.0, 1.0, 2.0, 9.0]), torch.tensor([1, 1, 1, 1, 0]))
    assert radii.tolist() == [0.0, 1.0, 2.0]
    assert accuracy.tolist() == pytest.approx([0.8, 0.6, 0.2])


def test_area_under_the_curve_is_the_mean_norm():
    norms = torch.rand(50, generator=torch.Generator().manual_seed(0))
    fooled = torch.ones(50, dtype=torch.bool)
    radii, accuracy = accuracy_norm_curve(norms, fooled)
    area = (radii.diff() * accuracy[:-1]).sum().item()
    assert area == pytest.approx(norm_summary(norms, fooled).mean_included)


def test_curve_of_an_unbroken_network_stays_at_1():
    radii, accuracy = accuracy_norm_curve(torch.rand(4), torch.zeros(4, dtype=torch.bool))
    assert (radii.tolist(), accuracy.tolist()) == ([0.0], [1.0])


def test_curve_needs_images():
    with pytest.raises(ValueError, match="at least one image"):
        accuracy_norm_curve(torch.empty(0), torch.empty(0))


def test_curve_of_a_linear_network_is_the_share_beyond_the_margin():
    weight = torch.tensor([3.0, 4.0])
    images = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    margin = (images @ weight).abs() / 5
    nearest = -(images @ weight)[:, None] * weight / 25
    radii, accuracy = accuracy_norm_curve(lp_norm(nearest, "l2"), torch.ones(200, dtype=torch.bool))
    position = torch.searchsorted(radii, 0.5, right=True) - 1
    assert accuracy[position].item() == pytest.approx((margin > 0.5).double().mean().item())


def test_eps_of_a_smooth_accuracy():
    eps = eps_for_accuracy(lambda radius: math.exp(-radius), 0.5, 0, 5, 1e-9)
    assert eps == pytest.approx(math.log(2), abs=1e-9)


def test_eps_is_on_the_broken_side_of_a_step():
    eps = eps_for_accuracy(lambda radius: 1.0 if radius < 0.3 else 0.0, 0.5, 0, 1, 1e-3)
    assert 0.3 <= eps <= 0.3 + 1e-3


def test_eps_uses_as_few_evaluations_as_halving_needs():
    calls = []
    eps_for_accuracy(lambda radius: calls.append(radius) or 1 - radius, 0.5, 0, 1, 1 / 64)
    assert len(calls) == 2 + 6


def test_search_ends_where_floats_end():
    assert eps_for_accuracy(lambda radius: 1 - radius, 0.7, 0, 1, 1e-300) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0, 0.1, 1e-3), r"eps=0.1 \(accuracy 0.9\): raise high above 0.1"),
        ((0.5, 0.6, 1, 1e-3), "lower low below 0.6"),
        ((0.5, 1, 0, 1e-3), "low < high"),
        ((0.5, 0, 1, 0), "tolerance > 0"),
    ],
)
def test_a_target_that_is_not_crossed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        eps_for_accuracy(lambda radius: 1 - radius, *arguments)
