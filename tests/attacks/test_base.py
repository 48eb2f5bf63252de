"""The base call: what it does around an update rule, whatever the rule."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lightning_advdef.attacks import (
    APGD,
    BIM,
    FAB,
    FGSM,
    MIM,
    PGD,
    Attack,
    AutoAttack,
    Bisection,
    Cascade,
    FixedBudgetAttack,
    FullGradient,
    MinimalNormAttack,
    Targeted,
)
from lightning_advdef.attacks.base import attack_mode


@dataclass(frozen=True)
class Rule(Attack):
    """Applies a function to the images."""

    def change(self, images):
        return images

    def perturb(self, surrogate, images, labels, rng):
        return self.change(images)


class Brighten(Rule):
    def change(self, images):
        return images + 1


class Crop(Rule):
    def change(self, images):
        return images[:, :, 1:]


class Overwrite(Rule):
    def change(self, images):
        return images.zero_()


class Nan(Rule):
    def change(self, images):
        return images * float("nan")


@dataclass(frozen=True)
class Greedy(FixedBudgetAttack):
    """Takes a little more than its budget."""

    excess: float = 1.0

    def search(self, surrogate, images, labels, rng, ball):
        return images + self.excess * ball.radius * ball.steepest(torch.ones_like(images))


class Remembering(nn.Module):
    """Notes the state in which it is called."""

    def forward(self, images):
        self.state = self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), images.is_inference()
        return images.flatten(1)


class Ask(Rule):
    def perturb(self, surrogate, images, labels, rng):
        surrogate(images, rng)
        return images


@pytest.fixture
def grey():
    return torch.full((3, 1, 4, 4), 0.5)


LABELS = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize("base", [Attack, FixedBudgetAttack, MinimalNormAttack])
def test_bases_cannot_be_made(base):
    with pytest.raises(TypeError, match="abstract"):
        base()


def test_results_are_clipped_to_the_box(grey):
    assert torch.equal(Brighten()(nn.Flatten(), grey, LABELS), torch.ones_like(grey))


def test_without_a_box_results_are_not_clipped(grey):
    assert torch.equal(Brighten(box=False)(nn.Flatten(), grey, LABELS), grey + 1)


def test_box_can_only_be_named():
    with pytest.raises(TypeError):
        Brighten(False)


@pytest.mark.parametrize("rule", [Crop, Nan])
def test_results_of_another_shape_or_not_finite_are_not_returned(rule, grey):
    with pytest.raises(RuntimeError, match=rf"{rule.__name__}\(box=True\) produced images that are not finite"):
        rule()(nn.Flatten(), grey, LABELS)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 0.3)])
def test_results_outside_the_budget_are_not_returned(norm, eps, grey):
    Greedy(eps, norm)(nn.Flatten(), grey, LABELS)
    with pytest.raises(RuntimeError, match=rf"Greedy.* left its budget: .* in {norm}"):
        Greedy(eps, norm, excess=1.001)(nn.Flatten(), grey, LABELS)


def test_in_linf_a_millionth_is_all_that_is_forgiven(grey):
    Greedy(0.1, excess=1 + 5e-6)(nn.Flatten(), grey, LABELS)
    with pytest.raises(RuntimeError, match="left its budget"):
        Greedy(0.1, excess=1 + 5e-5)(nn.Flatten(), grey, LABELS)


def test_a_rule_that_overwrites_its_images_does_not_reach_those_of_the_caller(grey):
    Overwrite()(nn.Flatten(), grey, LABELS)
    assert (grey == 0.5).all()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_network_runs_in_evaluation_mode_with_autograd(mode, grey):
    network = Remembering().train()
    with mode():
        Ask()(network, grey.clone(), LABELS.clone())
    assert network.state == (False, True, False, False)
    assert network.training


def test_a_surrogate_is_used_as_it_is(grey):
    surrogate = FullGradient(nn.Flatten())
    passes = surrogate.start_counting(3, grey.device)
    Ask()(surrogate, grey, LABELS)
    assert passes.forward.tolist() == [1, 1, 1]


def test_every_module_in_play_is_frozen_and_put_back():
    first, second = nn.Linear(2, 2).eval(), nn.Sequential(nn.Linear(2, 2))
    with attack_mode(first, second, second[0]):
        assert not second.training
        assert not any(parameter.requires_grad for parameter in (*first.parameters(), *second.parameters()))
    assert not first.training
    assert second.training
    assert second[0].training
    assert all(parameter.requires_grad for parameter in (*first.parameters(), *second.parameters()))


def test_parameters_are_frozen_during_an_attack_only():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    with attack_mode(network):
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network.weight.requires_grad
    assert not network.bias.requires_grad


def test_lengths_in_units_of_eps_keep_their_proportion_to_it():
    assert PGD("8/255", step_size="2/255").with_eps(0.3) == PGD(0.3, step_size=0.3 / 4)
    start = PGD(0.02, steps=2, step_size=0.01)
    found = APGD(0.04, start=start).with_eps(0.08)
    assert found == APGD(0.08, start=PGD(0.04, steps=2, step_size=0.02))
    assert MIM(0.1, step_size=0.05, start=FAB()).with_eps("1/5") == MIM(0.2, step_size=0.1, start=FAB())


def test_a_start_attack_never_gets_a_budget_that_no_image_has():
    assert APGD(0.1, "l2", start=BIM(0.5)).with_eps(1.0).start == BIM(1.0)


def test_without_a_proportion_lengths_stay():
    attack = PGD(0, step_size=0.1, start=BIM(0.2))
    assert attack.with_eps(0.5) == PGD(0.5, step_size=0.1, start=BIM(0.2))
    assert PGD(0.5, step_size=0.1).with_eps(0) == PGD(0, step_size=0.1)


@pytest.mark.parametrize("parted", [AutoAttack(0.1), Cascade(attacks={"fgsm": FGSM(0.1), "pgd": PGD(0.1)})])
@pytest.mark.parametrize("user", [PGD, APGD, MIM])
def test_attacks_made_of_parts_start_no_other(user, parted):
    with pytest.raises(
        ValueError, match=rf"^start of {user.__name__} cannot use {type(parted).__name__}, .* \(.*, .*\)$"
    ):
        user(0.1, start=parted)


@pytest.mark.parametrize("user", [Targeted, Bisection])
def test_attacks_made_of_parts_run_inside_no_other(user):
    with pytest.raises(ValueError, match=rf"{user.__name__} cannot use AutoAttack, which is made of parts"):
        user(AutoAttack(0.1))


def test_a_budget_is_replaced_in_its_own_norm_alone():
    assert PGD(0.1).within("linf", 0.2) == PGD(0.2)
    assert PGD(0.1).within("l2", 0.2) == PGD(0.1)
    assert Brighten().within("l2", 0.2) == Brighten()
