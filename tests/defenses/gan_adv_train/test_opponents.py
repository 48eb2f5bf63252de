"""One backward pass for both players against two, and against finite differences."""

import functools

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.data import get_spec
from lightning_advdef.defenses import GANAdvTrainModule
from lightning_advdef.models import MLP, PerturbationGenerator
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

SPEC = get_spec("digits")
PENALTY = 0.3


def module_of(**settings):
    """Small networks in float64."""
    torch.manual_seed(0)
    generator = functools.partial(PerturbationGenerator, width=3, hidden=4, reach=0.9)
    module = GANAdvTrainModule(
        functools.partial(MLP, hidden=[6]), generator, spec="digits", penalty=PENALTY, **settings
    ).double()
    generator = module.generator
    # the generator computes its last step in float32, which finite differences of second derivatives do not survive
    module.generator.forward = (
        lambda images, labels, gradient: (
            (((2 * images - 1) * 0.9).atanh() + generator.perturbation(images, labels, gradient)).tanh() / 0.9 + 1
        )
        / 2
    )
    return module


@pytest.fixture
def batch():
    images = torch.rand(6, *SPEC.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(0.2 + 0.6 * images, torch.tensor([0, 3, 1, 1, 9, 5]), torch.arange(6))


def rng_of(batch):
    return SampleRNG.for_images(batch.indices)


def class_gradient(module, batch, create_graph):
    images = batch.images.clone().requires_grad_()
    probabilities = module.classifier(images).softmax(dim=1).gather(1, batch.labels.unsqueeze(1)).sum()
    return torch.autograd.grad(probabilities, images, create_graph=create_graph)[0]


def losses(module, batch, through):
    """The losses of both players as the paper writes them, each with a graph of its own."""
    gradient = class_gradient(module, batch, create_graph=through)
    adversarial = module.generator(batch.images, batch.labels, gradient)
    attacked = F.cross_entropy(module.classifier(adversarial), batch.labels)
    clean = F.cross_entropy(module.classifier(batch.images), batch.labels)
    share = module.adversarial_weight
    penalty = PENALTY * (adversarial - batch.images).square().sum() / len(batch.images)
    return (1 - share) * clean + share * attacked, penalty - attacked


def naive_gradients(module, batch, through):
    """Of the classifier's loss by its weights, and of the generator's by its own."""
    players = list(module.classifier.parameters()), list(module.generator.parameters())
    if not through:  # the classifier's loss ends at the adversarial images
        gradient = class_gradient(module, batch, create_graph=False)
        fixed = module.generator(batch.images, batch.labels, gradient).detach()
        share = module.adversarial_weight
        own = (1 - share) * F.cross_entropy(module.classifier(batch.images), batch.labels)
        own = own + share * F.cross_entropy(module.classifier(fixed), batch.labels)
        return torch.autograd.grad(own, players[0]), torch.autograd.grad(losses(module, batch, False)[1], players[1])
    own, other = losses(module, batch, True)
    return (
        torch.autograd.grad(own, players[0], retain_graph=True),
        torch.autograd.grad(other, players[1]),
    )


FLOWS = pytest.mark.parametrize("flow", ["detach", "through"])


@FLOWS
@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_each_player_gets_the_gradient_of_its_own_loss(batch, flow, weight):
    module = module_of(gradient_flow=flow, adversarial_weight=weight)
    module.loss(batch, rng_of(batch))["loss"].backward()
    of_classifier, of_generator = naive_gradients(module, batch, through=flow == "through")
    found = [parameter.grad for parameter in (*module.classifier.parameters(), *module.generator.parameters())]
    for one, other in zip(found, (*of_classifier, *of_generator), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_the_two_flows_differ_for_the_classifier_alone(batch):
    grads = {}
    for flow in ("detach", "through"):
        module = module_of(gradient_flow=flow)
        module.loss(batch, rng_of(batch))["loss"].backward()
        grads[flow] = (
            torch.cat([parameter.grad.flatten() for parameter in module.classifier.parameters()]),
            torch.cat([parameter.grad.flatten() for parameter in module.generator.parameters()]),
        )
    assert (grads["detach"][0] - grads["through"][0]).abs().max() > 1e-4
    torch.testing.assert_close(grads["detach"][1], grads["through"][1], rtol=1e-6, atol=1e-10)


def test_through_is_the_total_derivative_by_finite_differences(batch):
    module = module_of(gradient_flow="through")
    module.loss(batch, rng_of(batch))["loss"].backward()
    weight = module.classifier.head.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-5 * direction
        values.append(losses(module, batch, True)[0].item())
        with torch.no_grad():
            weight -= sign * 1e-5 * direction
    assert (weight.grad * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


@FLOWS
def test_terms_are_the_losses_of_the_paper(batch, flow):
    module = module_of(gradient_flow=flow, adversarial_weight=0.4)
    terms = module.loss(batch, rng_of(batch))
    own, other = losses(module, batch, True)
    torch.testing.assert_close(terms["classifier_loss"], own)
    torch.testing.assert_close(terms["generator_loss"], other)


@FLOWS
@pytest.mark.parametrize(("weight", "expected"), [(1.0, 2), (0.5, 3)])
def test_the_classifier_sees_every_image_as_often_as_needed(batch, flow, weight, expected):
    module, seen = module_of(gradient_flow=flow, adversarial_weight=weight), []
    module.classifier.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    module.loss(batch, rng_of(batch))["loss"].backward()
    assert sum(seen) == expected * len(batch.images)
    assert len(seen) == 2


@FLOWS
def test_the_generator_runs_once(batch, flow):
    module, seen = module_of(gradient_flow=flow), []
    module.generator.conv1.register_forward_hook(lambda *_: seen.append(1))
    module.loss(batch, rng_of(batch))["loss"].backward()
    assert seen == [1]


def test_losses_agree_for_any_split_of_the_batch(batch):
    module = module_of()
    whole = module.loss(batch, rng_of(batch))
    halves = [Batch(*(tensor[rows] for tensor in batch)) for rows in (slice(0, 3), slice(3, 6))]
    parts = [module.loss(half, rng_of(half)) for half in halves]
    for name, value in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, value)
