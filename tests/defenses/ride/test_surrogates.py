import functools
from dataclasses import replace

import pytest
import torch

from lightning_advdef.attacks import BPDA, PGD
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.defenses import RIDEModule, StandardModule
from lightning_advdef.defenses.ride import FastBPDA, UnrolledEstimation
from lightning_advdef.defenses.ride.presets import PRESETS, VARIANTS, hastened
from lightning_advdef.models import MLP, LeNet
from tests.defenses.ride.helpers import images_of, rng_of, settings

IMAGES = images_of(3)
LABELS = torch.arange(3)
RNG = rng_of(3)


def module_of(*, dtype=torch.float32, **changes):
    """A small defense whose purifier has the numbers of :func:`settings` and these."""
    torch.manual_seed(0)
    module = RIDEModule(functools.partial(MLP, hidden=[8]), spec="1x8x8x10")
    module.put_before(settings(**changes))
    return module.eval().to(dtype)


def logits_and_gradient(surrogate, images):
    images = images.clone().requires_grad_()
    with attack_mode(*surrogate.modules):
        logits = surrogate(images, RNG)
        (gradient,) = torch.autograd.grad(weighted(logits), images)
    return logits.detach()[0], gradient


def weighted(logits):
    """A score to differentiate."""
    return (logits * torch.linspace(-1, 1, 10, dtype=logits.dtype)).sum()


# a fast purifier for the search


def test_a_hastened_purifier_takes_a_fifth_of_the_steps_at_the_fast_rate():
    paper = settings(iterations=2000, lr=1e-4, rounds=5)
    assert hastened(paper) == replace(paper, iterations=400, lr=1e-3)
    assert hastened(replace(paper, lr=1e-2)).lr == 1e-2


@pytest.mark.parametrize("iterations", [1, 200, 400])
def test_a_purifier_that_is_fast_stays_as_it_is(iterations):
    assert hastened(settings(iterations=iterations, lr=1e-4)) == settings(iterations=iterations, lr=1e-4)


def test_fast_bpda_answers_as_the_fast_purifier_and_differentiates_the_classifier_there(monkeypatch):
    monkeypatch.setitem(PRESETS, "fast", {"iterations": 4, "lr": 1e-2})
    slow, fast = module_of(iterations=20, lr=1e-3), module_of(iterations=4, lr=1e-2)
    found, expected = logits_and_gradient(FastBPDA(slow), IMAGES), logits_and_gradient(BPDA(fast), IMAGES)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not torch.allclose(logits_and_gradient(BPDA(slow), IMAGES)[0], found[0])


# the last steps differentiated


@pytest.mark.parametrize("last", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        PRESETS["released_code"],
        VARIANTS["dip"],
        {"rounds": 1},
        {"returned": "image"},
        {"chunk": 2, "pairs": 2},
        {"mean": (0.4,), "std": (0.2,)},
    ],
    ids=["ride", "released code", "dip", "one round", "image", "chunks", "normalized"],
)
def test_its_value_is_that_of_the_deployed_defense(changes, last):
    module = module_of(dtype=torch.float64, **changes | {"iterations": 3})
    logits, gradient = logits_and_gradient(UnrolledEstimation(module, last), IMAGES.double())
    with torch.no_grad():
        torch.testing.assert_close(logits, module(IMAGES.double(), RNG.stream("defense")), rtol=0, atol=1e-12)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).count_nonzero(dim=1) > 0).all()


def slope(function, images, direction, width=1e-6):
    """Central difference along a direction."""
    with torch.no_grad():
        above, below = (float(function(images + step * direction)) for step in (width, -width))
    return (above - below) / (2 * width)


@pytest.mark.parametrize(
    "changes", [{}, PRESETS["released_code"], VARIANTS["i-dip"]], ids=["ride", "released", "i-dip"]
)
def test_its_gradient_is_that_of_the_whole_defense_where_all_steps_are_the_last(changes):
    module = module_of(dtype=torch.float64, **changes | {"rounds": 1, "iterations": 3})
    images, direction = IMAGES.double(), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    _, gradient = logits_and_gradient(UnrolledEstimation(module, last=3), images)
    expected = slope(lambda moved: weighted(module(moved, RNG.stream("defense"))), images, direction)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-5)


def test_its_gradient_takes_what_came_before_the_last_steps_for_the_identity():
    module = module_of(dtype=torch.float64)
    images, direction = IMAGES.double(), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    _, gradient = logits_and_gradient(UnrolledEstimation(module, last=2), images)

    def answer(moved):
        with torch.enable_grad():
            estimation = module.purifier.start(images, RNG.stream("defense"))
            module.purifier.advance(estimation, 4)
            estimation.images = estimation.images + moved - images
            module.purifier.advance(estimation, 2)
        return weighted(module.classifier(estimation.estimate()))

    assert float((gradient * direction).sum()) == pytest.approx(slope(answer, images, direction), rel=1e-5)


@pytest.mark.parametrize("last", [0, 4])
def test_more_steps_than_a_round_has_are_refused(last):
    with pytest.raises(ValueError, match=f"last must lie in 1..3, the steps of a round, got {last}"):
        UnrolledEstimation(module_of(), last)


def test_it_differentiates_the_steps_of_the_fast_purifier():
    assert UnrolledEstimation(module_of(iterations=2000)).purifier == hastened(settings(iterations=2000))


def test_where_no_gradient_is_wanted_it_answers_all_the_same():
    surrogate = UnrolledEstimation(module_of(), last=2)
    expected, _ = logits_and_gradient(surrogate, IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(surrogate(IMAGES, RNG)[0], expected)


# all of them


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RIDEModule.adaptive_surrogates(None))
def test_every_attacker_stays_in_its_budget_and_moves_the_images(name, dtype):
    module = module_of(rounds=1, iterations=20, lr=1e-3)
    surrogate = module.adaptive_surrogates()[name](module)
    surrogate.search_dtype = dtype
    passes = surrogate.start_counting(3, IMAGES.device)
    adversarial = PGD(0.1, step_size=0.05, steps=2)(surrogate, IMAGES, LABELS, RNG)
    size = (adversarial - IMAGES).abs().flatten(1).amax(dim=1)
    assert (size > 0.04).all()
    assert (size <= 0.1 + 1e-6).all()
    assert not passes.zero_gradients.any()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


def test_descriptions_tell_attackers_apart():
    module = module_of(iterations=30)
    described = [make(module).describe() for make in module.adaptive_surrogates().values()]
    described += [BPDA(module).describe(), UnrolledEstimation(module, last=5).describe()]
    assert all(one != other for row, one in enumerate(described) for other in described[:row])
    assert all(each["access"] == "adaptive" for each in described[:2])


@pytest.mark.parametrize("surrogate", [FastBPDA, UnrolledEstimation])
def test_other_defenses_are_refused(surrogate):
    with pytest.raises(ValueError, match=f"{surrogate.__name__} attacks RIDE alone, got StandardModule"):
        surrogate(StandardModule(LeNet))


def test_few_steps_are_all_unrolled():
    assert UnrolledEstimation(module_of(iterations=7)).last == 7
    assert UnrolledEstimation(module_of(iterations=30)).last == 20


@pytest.mark.parametrize(("steps", "fast"), [(4000, 800), (500, 400), (300, 300)])
def test_the_fast_purifier_has_a_fifth_of_the_steps_but_enough(steps, fast):
    assert hastened(module_of(iterations=steps).purifier).iterations == fast
