"""What an evaluation will cost is said before, where it is known and worth it."""

import functools
import math

import pytest
import torch

from lightning_advdef.attacks import EOT, PGD, AutoAttack, Cascade, FullGradient, Noise, Square, Undefended
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.evaluation import Judge, Scenario
from lightning_advdef.evaluation import estimate as module
from lightning_advdef.evaluation.estimate import cost_per_image, estimate
from lightning_advdef.types import Batch
from tests.attacks.helpers import middle_images, random_linear

NETWORK = random_linear(10, 72)
BATCH = Batch(middle_images(4, 2, 6, 6), torch.arange(4), torch.arange(4))


def runners(*scenarios):
    return list(Judge(NETWORK, scenarios).runners.values())


class Silent(PGD):
    """Does not know what it costs."""

    def cost(self, classes):
        return Cost(math.nan, math.nan)


@pytest.fixture
def slow(monkeypatch):
    """A device that takes a second for a pass and three for a gradient."""
    monkeypatch.setattr(module, "_seconds_per_image", lambda *_: module.Times(1.0, 3.0, 10))


def test_passes_of_all_scenarios_are_summed():
    pgd, square = PGD(0.1, steps=5, restarts=2), Square(0.1, queries=30)
    assert cost_per_image(runners(Scenario("a", pgd), Scenario("b", square)), 10) == Cost(12 + 31, 10)
    cascade = Cascade(attacks={"pgd": pgd, "square": square})
    assert cost_per_image(runners(Scenario("a", cascade)), 10) == Cost(12 + 31 + 4, 10)


def test_every_draw_is_a_pass():
    scenario = Scenario("a", PGD(0.1, steps=5), functools.partial(EOT, samples=4))
    assert cost_per_image(runners(scenario), 10) == Cost(24, 20)


def test_every_budget_is_a_row():
    scenario = Scenario("a", PGD(0.1, steps=5), eps=[0.1, 0.2, 0.3])
    assert cost_per_image(runners(scenario), 10) == Cost(18, 15)


def test_the_price_depends_on_the_number_of_classes():
    costs = [cost_per_image(runners(Scenario("a", AutoAttack(0.1))), classes) for classes in (2, 5, 10, 100)]
    assert costs == sorted(costs)
    assert costs[1] < costs[2] == costs[3]


def test_an_attack_that_does_not_know_its_cost_leaves_the_estimate_out(slow):
    assert math.isnan(cost_per_image(runners(Scenario("a", Silent(0.1)), Scenario("b", PGD(0.1))), 10).forward)
    assert estimate(NETWORK, runners(Scenario("a", Silent(0.1)), Scenario("b", PGD(0.1))), BATCH, 10_000) is None


def test_the_sentence_names_passes_images_and_time(slow):
    # 1000 images, each 10 gradients of 3 seconds, one forward pass of 1 second, and two verdicts
    sentence = estimate(NETWORK, runners(Scenario("a", PGD(0.1, steps=10))), BATCH, 1000)
    assert "about 11 forward and 10 backward passes for an image that nothing fools; 1,000 of them" in sentence
    assert "9 h 10 min" in sentence


def test_the_diagnostics_look_at_images_of_the_whole_evaluation(slow):
    rows = runners(Scenario("a", PGD(0.1, steps=10)))
    times = {module._key(rows[0].surrogate): module.Times(1.0, 3.0, 10)}
    few, many = (module._seconds_of_diagnostics(rows, times, total, 1) for total in (10, 1000))
    assert many > few
    assert module._duration(10 * 33 + many) in estimate(NETWORK, rows, BATCH, 10, total=1000)


def test_verdicts_of_several_draws_are_counted(slow):
    rows = runners(Scenario("a", Noise(0.1)), Scenario("b", Noise(0.2)))
    seconds = 1000 * (3 * 10 + cost_per_image(rows, 10).forward)
    assert module._duration(seconds) in estimate(NETWORK, rows, BATCH, 1000, draws=10)


def test_each_surrogate_has_its_own_price(monkeypatch):
    prices = {FullGradient: module.Times(1.0, 100.0, 10), Undefended: module.Times(0.0, 1.0, 10)}
    monkeypatch.setattr(module, "_seconds_per_image", lambda surrogate, *_: prices[type(surrogate)])
    sentence = estimate(NETWORK, runners(Scenario("a", PGD(0.1, steps=10), Undefended)), BATCH, 1000)
    assert module._duration(1000 * (10 * 1.0 + 2 * 1.0)) in sentence


class Clock:
    """A device on which the first image takes longer; all that it is asked for is noted."""

    def __init__(self, monkeypatch, first):
        self.first, self.forwards, self.gradients = first, [], []
        monkeypatch.setattr(module, "_forward", self.forward)
        monkeypatch.setattr(module, "_both", self.both)

    def forward(self, surrogate, batch):
        self.forwards.append(len(batch.images) * surrogate.draws)
        return self.first if len(self.forwards) == 1 else 0.5, 10

    def both(self, surrogate, batch):
        self.gradients.append(len(batch.images) * surrogate.draws)
        return 1.5

    @property
    def passes(self):
        return sum(self.forwards[1:] + self.gradients)


MANY = Batch(middle_images(40, 2, 6, 6), torch.arange(40) % 10, torch.arange(40))


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("passes", [20, 10_000])
def test_what_is_slow_on_one_image_is_timed_on_as_many_as_may_be(monkeypatch, draws, passes):
    clock = Clock(monkeypatch, first=2.0)
    surrogate = EOT(NETWORK, samples=draws) if draws > 1 else FullGradient(NETWORK)
    assert module._seconds_per_image(surrogate, MANY, passes) == (0.5, 1.5, 10)
    assert clock.forwards == [draws, min(32, passes // 2 // draws * draws)]
    assert clock.gradients == clock.forwards[1:]


def test_of_what_is_too_slow_for_two_images_a_gradient_is_taken_for_a_pass(monkeypatch):
    clock = Clock(monkeypatch, first=2.0)
    assert module._seconds_per_image(FullGradient(NETWORK), MANY, 3) == (2.0, 2.0, 10)
    assert not clock.passes


def test_what_is_quick_is_timed_on_a_full_batch(monkeypatch):
    clock = Clock(monkeypatch, first=0.9)
    assert module._seconds_per_image(FullGradient(NETWORK), MANY, 3) == (0.5, 1.5, 10)
    assert clock.forwards[1:] == [32]


def test_slow_trials_are_a_tenth_of_the_verdicts(monkeypatch):
    passes = []

    def timed(surrogate, batch, most):
        clock = Clock(monkeypatch, first=2.0)
        times = measured(surrogate, batch, most)
        passes.append(clock.passes)
        return times

    measured = module._seconds_per_image
    monkeypatch.setattr(module, "_seconds_per_image", timed)
    scenarios = [Scenario("a", PGD(0.1)), Scenario("b", PGD(0.1), Undefended), Scenario("c", PGD(0.1), EOT)]
    assert estimate(NETWORK, runners(*scenarios), MANY, 300)
    assert len(passes) == 3  # the deployed defense is what the first attacks
    assert 0.05 * 300 * 4 < sum(passes) <= 0.1 * 300 * 4


def test_less_than_a_minute_is_not_worth_a_word(slow):
    assert estimate(NETWORK, runners(Scenario("a", PGD(0.1, steps=1))), BATCH, 9) is None
    assert "1 min" in estimate(NETWORK, runners(Scenario("a", PGD(0.1, steps=1))), BATCH, 10)


def test_noise_costs_no_gradient(slow):
    cost = cost_per_image(runners(Scenario("a", Noise(0.1))), 10)
    assert cost.backward == 0


@pytest.mark.parametrize("network", [NETWORK, lambda images: images.flatten(1).round().detach()])
def test_a_pass_is_timed_and_nothing_is_left_behind(network):
    class Wrapped(torch.nn.Module):
        def forward(self, images):
            return network(images)

    defense = Wrapped().train()
    with torch.inference_mode():
        times = module._seconds_per_image(FullGradient(defense), Batch(*(tensor.clone() for tensor in BATCH)), 1)
    assert min(times) > 0
    assert times[2] == (10 if network is NETWORK else 72)
    assert defense.training
    assert all(parameter.grad is None for parameter in NETWORK.parameters())
    assert FullGradient(defense).passes is None
