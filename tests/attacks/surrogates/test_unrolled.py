"""Unrolled: the gradient through the steps of an iterative purifier."""

import functools

import pytest
import torch

from lightning_advdef.attacks import APGD, BPDA, EOT, Unrolled
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.defenses import StandardModule
from lightning_advdef.models import MLP
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Purified
from tests.defenses.feature_smoothing.helpers import NETWORK, TanhNetwork, images_of, module_of, purified

IMAGES = images_of(6)
RNG = SampleRNG.for_images(torch.arange(6), seed=2)
LABELS = torch.arange(6) % 5
curved = functools.partial(
    module_of, network=TanhNetwork, tap="features.0", step_size=10.0, delta=0.06, max_iter=12, spec="3x8x8x5"
)


@pytest.fixture
def defense():
    return curved().double()


def value_and_gradient(surrogate, images=None):
    """Loss of the images under the surrogate, and its gradient."""
    with attack_mode(*surrogate.modules):
        leaf = (IMAGES.double() if images is None else images).clone().requires_grad_()
        logits = surrogate.logits(leaf, RNG)
        loss = logits.log_softmax(dim=-1)[0, torch.arange(len(leaf)), LABELS[: len(leaf)]]
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


def by_hand(defense, last):
    """The gradient through the last steps of each image, image by image, with one graph that is never cut."""
    gradients = []
    for row in range(len(IMAGES)):
        with attack_mode(defense):
            purifier, rng = defense.purifier, RNG[row : row + 1].stream("defense")
            leaf = IMAGES[row : row + 1].double().clone().requires_grad_()
            image = purifier.init(leaf, rng)
            steps = int(purifier.run(image).steps)
            for step in range(steps):
                features = defense.tap.features(image)
                loss = (features - features.mean()).abs().mean()
                (gradient,) = torch.autograd.grad(loss, image, create_graph=True)
                if step < steps - last:
                    gradient = gradient.detach()
                image = image - purifier.step_size * gradient
            score = defense.classify(image).log_softmax(dim=1)[0, LABELS[row]]
            gradients.append(torch.autograd.grad(score, leaf)[0])
    return torch.cat(gradients)


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


# the gradient


def test_the_known_answer_has_images_with_many_numbers_of_steps(defense):
    steps = purified(defense, IMAGES.double(), RNG.stream("defense")).steps
    assert len(steps.unique()) > 3
    assert (steps == 12).any()
    assert (steps < 12).any()


def test_the_gradient_is_that_of_finite_differences(defense):
    surrogate = Unrolled(defense)
    _, gradient = value_and_gradient(surrogate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(IMAGES.shape, generator=generator, dtype=torch.float64)
        shift = 1e-7 * direction
        ahead, _ = value_and_gradient(surrogate, IMAGES.double() + shift)
        behind, _ = value_and_gradient(surrogate, IMAGES.double() - shift)
        slope = (gradient * direction).flatten(1).sum(dim=1)
        torch.testing.assert_close((ahead - behind) / 2e-7, slope, rtol=1e-4, atol=1e-6)


def test_the_steps_matter_to_the_gradient(defense):
    _, found = value_and_gradient(Unrolled(defense))
    _, identity = value_and_gradient(BPDA(defense))
    assert ((found - identity).norm() / identity.norm()) > 0.05


def test_rectifiers_make_every_step_an_identity_for_the_gradient():
    # their features are linear in the image almost everywhere, so the gradient of the feature loss is constant
    defense = module_of(NETWORK, max_iter=10).double()
    steps = purified(defense, IMAGES.double(), RNG.stream("defense")).steps
    assert steps.float().mean() > 3
    _, found = value_and_gradient(Unrolled(defense))
    _, identity = value_and_gradient(BPDA(defense))
    close(found, identity)


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("last", [None, 1, 5])
def test_the_gradient_is_that_of_one_uncut_graph(defense, every, last):
    _, found = value_and_gradient(Unrolled(defense, last=last, checkpoint_every=every))
    close(found, by_hand(defense, last=last or 100))


def test_more_last_steps_than_there_are_give_the_full_gradient(defense):
    full, whole = value_and_gradient(Unrolled(defense))
    value, found = value_and_gradient(Unrolled(defense, last=100))
    close(value, full)
    close(found, whole)


def test_votes_are_averaged_with_their_gradients():
    defense = curved(votes=2).double()
    _, found = value_and_gradient(Unrolled(defense))
    leaf = IMAGES.double().clone().requires_grad_()
    defense.votes = 1
    rng, probabilities = RNG.stream("defense"), 0
    with attack_mode(defense):
        for vote in range(2):
            purifier, state = defense.purifier, defense.purifier.init(leaf, rng.stream("vote", vote))
            for _ in range(12):
                state, _ = purifier.step(state)
            probabilities = probabilities + defense.classify(state).softmax(dim=1) / 2
        expected = torch.autograd.grad(probabilities.log()[torch.arange(6), LABELS].sum(), leaf)[0]
    close(found, expected)


# the value


@pytest.mark.parametrize("settings", [{}, {"last": 3}, {"last": 100}, {"checkpoint_every": 2}])
@pytest.mark.parametrize("votes", [1, 3])
def test_the_answer_is_the_deployed_one(settings, votes):
    defense = curved(votes=votes).double()
    found = Unrolled(defense, **settings).logits(IMAGES.double(), RNG)
    assert found.shape == (1, 6, 5)
    close(found[0], defense(IMAGES.double(), RNG.stream("defense")), tolerance=1e-12)


@pytest.mark.parametrize("clip", [False, True])
def test_clipping_is_differentiated_as_well(clip):
    defense = curved(clip=clip, noise=0.6).double()
    _, gradient = value_and_gradient(Unrolled(defense))
    image = defense.purifier.init(IMAGES.double(), RNG.stream("defense"))
    outside = (image == 0) | (image == 1)
    assert bool(outside.any()) is clip
    assert not gradient[outside].any()


class Halving:
    """Brings every pixel nearer to a half by a known factor until it is near."""

    max_iter = 4

    def __init__(self):
        self.shapes = []

    def init(self, images, rng):
        return images

    def step(self, images):
        self.shapes.append(len(images))
        moving = (images - 0.5).flatten(1).abs().amax(dim=1) > 0.1
        return torch.where(moving.view(-1, 1, 1, 1), 0.5 + 0.5 * (images - 0.5), images), moving

    def run(self, images, limits=None):
        images, steps = images.detach().clone(), torch.zeros(len(images), dtype=torch.int64)
        for _ in range(self.max_iter):
            moved, moving = self.step(images)
            moving &= steps < (self.max_iter if limits is None else limits)
            images[moving] = moved[moving]
            steps += moving
        return Purified(images, steps, moving)


def plain_images():
    distance = torch.tensor([0.05, 0.15, 0.35, 0.45, 2.0, 8.0]).view(-1, 1, 1, 1)
    return 0.5 + distance * torch.ones(6, 1, 8, 8)


def halved(**settings):
    """A surrogate that unrolls halving, and its output's gradient by each image."""
    defense = StandardModule(functools.partial(MLP, hidden=[4]), spec="digits").eval()
    surrogate = Unrolled(defense, purifier=Halving(), **settings)
    leaf = plain_images().requires_grad_()
    purified = surrogate._purify(leaf, RNG)
    (gradient,) = torch.autograd.grad(purified.sum(), leaf)
    return surrogate, purified.detach(), gradient[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("every", [1, 3, 20])
def test_each_image_has_the_factor_of_its_own_steps(every):
    _, images, gradient = halved(checkpoint_every=every)
    torch.testing.assert_close((images - 0.5)[:, 0, 0, 0], torch.tensor([0.05, 0.075, 0.0875, 0.05625, 0.125, 0.5]))
    # the last two would need more than the four steps that they may take
    assert gradient == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16]


def test_the_last_steps_are_those_of_each_image():
    assert halved(last=2)[2] == [1, 1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 4]
    assert halved(last=9)[2] == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16]


def test_finished_images_leave_the_batch_unless_its_shape_is_fixed():
    surrogate, _, free = halved(checkpoint_every=1)
    assert min(surrogate.purifier.shapes) < 6
    surrogate.purifier.shapes.clear()
    surrogate.defense.fixed_shape = True
    leaf = plain_images().requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate._purify(leaf, RNG).sum(), leaf)
    assert set(surrogate.purifier.shapes) == {6}
    assert gradient[:, 0, 0, 0].tolist() == free


# as an attack's surrogate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"last": 3}])
def test_attacks_search_in_any_dtype(dtype, settings):
    defense = curved()
    labels = defense(IMAGES, RNG).argmax(dim=1)
    surrogate = Unrolled(defense, **settings)
    surrogate.search_dtype = dtype
    adversarial = APGD(0.1, steps=5)(surrogate, IMAGES.clamp(0, 1), labels, RNG)
    assert adversarial.dtype == torch.float32
    with torch.no_grad():
        before, after = (
            defense(images, RNG).softmax(dim=1)[torch.arange(6), labels] for images in (IMAGES, adversarial)
        )
    assert (after < before).all()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in defense.parameters())


def test_bfloat16_repeats_the_segment_in_the_dtype_of_the_search():
    surrogate = Unrolled(curved(), checkpoint_every=2)
    exact = value_and_gradient(surrogate, IMAGES)[1]
    with attack_mode(*surrogate.modules):
        leaf = IMAGES.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            logits = surrogate.logits(leaf, RNG)
        seen = []
        handle = surrogate.defense.classifier.features[0][0].register_forward_hook(
            lambda _, __, output: seen.append(output.dtype)
        )
        loss = logits.float().log_softmax(dim=-1)[0, torch.arange(6), LABELS]
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        handle.remove()
    assert set(seen) == {torch.bfloat16}
    assert torch.cosine_similarity(gradient.flatten(1), exact.flatten(1)).min() > 0.9


def test_eot_draws_different_noise():
    defense = curved().double()
    logits = EOT(defense, of=Unrolled, samples=3).logits(IMAGES.double(), RNG)
    assert logits.shape == (3, 6, 5)
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)


def test_descriptions_tell_settings_apart():
    defense = curved()
    described = [Unrolled(defense, **settings).describe() for settings in ({}, {"last": 3}, {"checkpoint_every": 3})]
    described.append(Unrolled(defense, purifier=curved(max_iter=2).purifier).describe())
    assert all(one != other for row, one in enumerate(described) for other in described[:row])
    assert described[1]["surrogate_settings"] == {"last": 3, "checkpoint_every": 20, "purifier": None}
    assert described[0]["access"] == "adaptive"


@pytest.mark.parametrize("settings", [{"last": 0}, {"checkpoint_every": 0}])
def test_numbers_below_1_are_refused(settings):
    with pytest.raises(ValueError, match="at least 1 of last and checkpoint_every"):
        Unrolled(curved(), **settings)


def test_a_defense_without_an_iterative_purifier_is_refused():
    with pytest.raises(ValueError, match=r"StandardModule has no iterative purifier to unroll: attack it with BPDA"):
        Unrolled(StandardModule(functools.partial(MLP, hidden=[4]), spec="digits"))
