"""EOT: the mean over independent draws."""

import functools

import numpy as np
import pytest
import torch

from lightning_advdef.attacks import BPDA, EOT, PGD, FullGradient, Surrogate, Transfer, Undefended
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import boundaries, loss_and_gradient, mean_loss
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.models import MLP
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import seeded
from tests.conftest import result_of, scenario
from tests.toys import NoisyInput

IMAGES = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
RNG = SampleRNG.for_images(torch.arange(9), seed=3)
LABELS = torch.arange(9)
GOAL = Goal(LABELS)


@pytest.fixture(scope="module")
def defense():
    return seeded(lambda: NoisyInput(functools.partial(MLP, hidden=[12]), spec="digits")).eval()


class Weighted(FullGradient):
    """A surrogate with a further, random loss."""

    def auxiliary(self, images, labels, rng):
        return images.flatten(1).sum(dim=1) * labels * rng.stream("auxiliary").uniform(1)[:, 0]


class Largest(FullGradient):
    """Notes how many images pass at once."""

    most = 0

    def logits(self, images, rng):
        self.most = max(self.most, len(images))
        return super().logits(images, rng)


def test_each_draw_has_a_stream_of_its_own(defense):
    found = EOT(defense, samples=3)(IMAGES, RNG)
    assert found.shape == (3, 9, 10)
    for sample, logits in enumerate(found):
        expected = defense(IMAGES, RNG.stream("eot").stream(sample).stream("defense"))
        torch.testing.assert_close(logits, expected)
    assert not torch.equal(found[0], found[1])


def test_the_gradient_is_the_mean_of_those_of_the_draws(defense):
    found = loss_and_gradient(EOT(defense, samples=4), IMAGES, GOAL, cross_entropy, RNG)
    single = FullGradient(defense)
    draws = [
        loss_and_gradient(single, IMAGES, GOAL, cross_entropy, RNG.stream("eot").stream(sample)) for sample in range(4)
    ]
    for name in ("loss", "gradient", "logits"):
        torch.testing.assert_close(getattr(found, name), torch.stack([getattr(draw, name) for draw in draws]).mean(0))


def test_draws_belong_to_the_image_and_not_to_its_place(defense):
    surrogate, part = EOT(defense, samples=3), torch.tensor([7, 2])
    torch.testing.assert_close(surrogate(IMAGES[part], RNG[part]), surrogate(IMAGES, RNG)[:, part])


def test_verdicts_do_not_depend_on_the_split_of_the_batch(defense):
    attack, surrogate = PGD(0.1, steps=3), EOT(defense, samples=3)
    whole = attack(surrogate, IMAGES, LABELS, RNG)
    parts = [attack(surrogate, IMAGES[rows], LABELS[rows], RNG[rows]) for rows in (slice(0, 4), slice(4, 9))]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_every_step_draws_anew(defense):
    surrogate = EOT(defense, samples=2)
    first, second = (surrogate(IMAGES, RNG.stream("step", step)) for step in range(2))
    assert not torch.isclose(first, second).any(dim=2).all()


def test_draws_of_a_deterministic_surrogate_are_one(network, images, labels):
    rng = SampleRNG.default(images)
    many, one = (
        loss_and_gradient(EOT(network, samples=samples), images, Goal(labels), cross_entropy, rng) for samples in (5, 1)
    )
    plain = loss_and_gradient(FullGradient(network), images, Goal(labels), cross_entropy, rng)
    for found, single, expected in zip(many, one, plain, strict=True):
        assert torch.equal(single, expected)
        torch.testing.assert_close(found, expected)


def test_passes_are_booked_for_every_draw(defense):
    surrogate = EOT(defense, samples=4)
    passes = surrogate.start_counting(9, IMAGES.device)
    PGD(0.1, steps=5)(surrogate, IMAGES, LABELS)
    assert passes.forward.tolist() == [4 * 6] * 9
    assert passes.backward.tolist() == [4 * 5] * 9


def test_draws_of_draws_multiply(defense):
    inner = functools.partial(EOT, samples=2)
    surrogate = EOT(defense, of=inner, samples=3)
    assert surrogate.draws == 6
    found = surrogate(IMAGES, RNG)
    assert found.shape == (6, 9, 10)
    assert len(found.round(decimals=4).unique(dim=0)) == 6


@pytest.mark.parametrize("of", [FullGradient, BPDA, Undefended])
def test_the_attacker_knows_what_the_inner_surrogate_knows(defense, of):
    surrogate = EOT(defense, of=of, samples=2)
    assert surrogate.access == of.access
    assert surrogate.modules == of(defense).modules
    assert not surrogate.exact


def test_bpda_averages_over_draws(defense):
    ours = loss_and_gradient(EOT(defense, of=BPDA, samples=3), IMAGES, GOAL, cross_entropy, RNG)
    full = loss_and_gradient(EOT(defense, samples=3), IMAGES, GOAL, cross_entropy, RNG)
    torch.testing.assert_close(ours.gradient, full.gradient)


def test_the_further_loss_is_averaged_over_the_same_draws(defense):
    found = EOT(defense, of=Weighted, samples=3).auxiliary(IMAGES, LABELS, RNG)
    single = Weighted(defense)
    draws = [single.auxiliary(IMAGES, LABELS, RNG.stream("eot").stream(sample)) for sample in range(3)]
    torch.testing.assert_close(found, torch.stack(draws).mean(dim=0))
    assert EOT(defense, samples=3).auxiliary(IMAGES, LABELS, RNG) is None


@pytest.mark.parametrize("fixed_shape", [False, True])
@pytest.mark.parametrize(("max_rows", "most"), [(None, 27), (100, 27), (13, 12), (9, 9), (2, 3)])
def test_no_pass_holds_more_rows_than_allowed_but_at_least_one_image(defense, max_rows, most, fixed_shape):
    surrogate = EOT(defense, of=Largest, samples=3)
    free = [*loss_and_gradient(surrogate, IMAGES, GOAL, cross_entropy, RNG), surrogate(IMAGES, RNG)]
    surrogate.inner.most, surrogate.max_rows, surrogate.fixed_shape = 0, max_rows, fixed_shape
    found = loss_and_gradient(surrogate, IMAGES, GOAL, cross_entropy, RNG)
    with torch.no_grad():
        alone = surrogate(IMAGES, RNG)
        assert mean_loss(surrogate, IMAGES, GOAL, cross_entropy, RNG)[0].shape == (9,)
    boundaries(surrogate, IMAGES, torch.tensor([[0, 1]]).expand(9, 2), RNG)
    for one, other in zip([*found, alone], free, strict=True):
        torch.testing.assert_close(one, other)
    # nine images in passes of one size: three at a time instead of four
    assert surrogate.inner.most == (9 if fixed_shape and most == 12 else most)


def test_no_images_are_no_problem(defense):
    surrogate = EOT(defense, samples=3)
    surrogate.max_rows = 2
    assert surrogate(IMAGES[:0], RNG[:0]).shape == (3, 0, 10)
    assert PGD(0.1, steps=2)(surrogate, IMAGES[:0], LABELS[:0]).shape == (0, 1, 8, 8)


def test_no_draws_are_refused(defense):
    with pytest.raises(ValueError, match="samples"):
        EOT(defense, samples=0)


def test_an_average_over_a_surrogate_in_use_writes_to_its_books(defense):
    single = FullGradient(defense)
    passes = single.start_counting(9, IMAGES.device)
    single.max_rows, single.fixed_shape, single.strongest = 20, True, True
    averaged = EOT.over(single, 4)
    assert (averaged.max_rows, averaged.fixed_shape, averaged.strongest) == (20, True, True)
    assert averaged.ledger is single.ledger
    assert torch.equal(averaged(IMAGES, RNG), EOT(defense, samples=4)(IMAGES, RNG))
    assert passes.forward.tolist() == [4] * 9
    assert single.draws == 1


def test_the_description_holds_samples_and_the_inner_surrogate(defense):
    assert EOT(defense, of=BPDA, samples=3).describe() == {
        "surrogate": "EOT",
        "access": "bpda",
        "surrogate_settings": {"samples": 3, "of": BPDA(defense).describe()},
    }


def test_settings_can_be_bound_in_python(defense):
    factory = functools.partial(EOT, of=functools.partial(Transfer, network=MLP), samples=2)
    surrogate = factory(defense)
    assert isinstance(surrogate, Surrogate)
    assert surrogate.access == "transfer"


def test_on_the_command_line_many_draws_beat_one(advdef):
    pgd = {"eps": 0.15, "steps": 8, "random_start": False}
    many = {"class_path": "EOT", "init_args": {"samples": 12, "of": "BPDA"}}
    scenarios = [
        scenario("one", "PGD", surrogate={"class_path": "EOT", "init_args": {"samples": 1}}, **pgd),
        scenario("many", "PGD", surrogate=many, **pgd),
        scenario("default", "FGSM", surrogate="EOT", eps=0.1),
    ]
    folder = advdef.digits("test", "--model", "tests.toys.NoisyInput", scenarios=scenarios, limit=60)
    summary, rows = result_of(folder)
    one, many, default = summary["scenarios"]
    assert many["robust_accuracy"]["value"] < one["robust_accuracy"]["value"]
    assert [found["access"] for found in summary["scenarios"]] == ["white", "bpda", "white"]
    assert many["surrogate_settings"]["samples"] == 12
    assert many["surrogate_settings"]["of"]["surrogate"] == "BPDA"
    assert default["surrogate_settings"]["samples"] == 20
    np.testing.assert_array_equal(rows["many/backward"], 12 * 8)
    np.testing.assert_array_equal(rows["default/backward"], 20)
