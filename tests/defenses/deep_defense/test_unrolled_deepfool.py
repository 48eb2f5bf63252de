from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_advdef.attacks.deepfool import STABILISER
from lightning_advdef.defenses.deep_defense import unrolled_deepfool
from lightning_advdef.defenses.deep_defense.unrolled_deepfool import deepfool_move, plan_paths, replay
from lightning_advdef.models.dropout import shared_dropout_masks
from tests.defenses.deep_defense.naive_deepfool import naive_perturbation


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def convolutional() -> nn.Sequential:
    blocks = [nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*blocks, nn.Linear(24, 10))


def smooth() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 10))


def problem(build, dtype=torch.float64, count=12):
    """A network with images of which every third is wrong."""
    torch.manual_seed(3)
    network = build().to(dtype)
    images = torch.rand(count, 1, 8, 8, dtype=dtype)
    labels = network(images).argmax(1)
    labels[::3] = (labels[::3] + 1 + torch.arange(len(labels[::3]))) % 10
    return network, images, labels


def parameter_gradients(network, perturbation):
    flat = perturbation.flatten(1)
    loss = (-3 * flat.norm(dim=1)).exp().sum() + (flat * torch.linspace(0, 1, flat.shape[1])).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("build", [mlp, convolutional, smooth])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("overshoot", [0.02, -0.5], ids=["fooled early", "never fooled"])
def test_equals_the_plain_unrolling_in_value_and_gradient(build, dtype, tolerance, overshoot):
    network, images, labels = problem(build, dtype)
    path = plan_paths(network, images, labels, overshoot=overshoot)
    replayed = replay(network, images, path)
    naive = naive_perturbation(network, images, labels, steps=5, overshoot=overshoot)
    assert relative(replayed, naive) < tolerance
    assert relative(path.perturbation, naive) < tolerance
    assert relative(parameter_gradients(network, replayed), parameter_gradients(network, naive)) < tolerance


@pytest.mark.parametrize("limit", [1, 36, 1000])
def test_classes_per_call_do_not_change_the_path(monkeypatch, limit):
    network, images, labels = problem(convolutional)
    expected = plan_paths(network, images, labels)
    monkeypatch.setattr(unrolled_deepfool, "ROWS_PER_CALL", {"cpu": limit})
    torch.testing.assert_close(plan_paths(network, images, labels).perturbation, expected.perturbation)


def test_images_stop_at_different_steps_and_both_kinds_occur():
    network, images, labels = problem(mlp)
    path = plan_paths(network, images, labels)
    assert len(path.steps_taken.unique()) > 1
    assert path.correct.any()
    assert not path.correct.all()


def test_fooled_means_having_left_the_class_or_having_reached_the_truth():
    network, images, labels = problem(convolutional)
    path = plan_paths(network, images, labels, steps=20)
    there = network(images + path.perturbation).argmax(1) == labels
    assert path.fooled[path.correct].any()
    assert path.fooled[~path.correct].any()
    assert torch.equal(path.fooled, there != path.correct)


def test_an_image_does_not_depend_on_its_batch():
    network, images, labels = problem(convolutional)
    whole = plan_paths(network, images, labels).perturbation
    parts = [plan_paths(network, images[i : i + 1], labels[i : i + 1]).perturbation for i in range(len(images))]
    torch.testing.assert_close(torch.cat(parts), whole)


def linear_problem():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).double()
    images = torch.rand(6, 1, 3, 3, dtype=torch.float64)
    return network, images, network(images).argmax(1)


@pytest.mark.parametrize(("norm", "order", "dual"), [("l2", 2, 2), ("linf", torch.inf, 1), ("l1", 1, torch.inf)])
def test_linear_classifier_takes_one_step_to_its_nearest_boundary(norm, order, dual):
    network, images, labels = linear_problem()
    path = plan_paths(network, images, labels, norm=norm)
    weight, logits, rows = network[1].weight, network(images), torch.arange(6)
    gaps = logits[rows, labels][:, None] - logits + STABILISER
    sizes = torch.linalg.vector_norm(weight[labels][:, None] - weight, dual, dim=2)
    distance = (gaps / sizes).masked_fill(sizes == 0, torch.inf).amin(1)
    assert (path.steps_taken == 1).all()
    assert path.fooled.all()
    torch.testing.assert_close(torch.linalg.vector_norm(path.perturbation.flatten(1), order, dim=1), 1.02 * distance)


def test_linear_classifier_moves_a_wrong_image_to_the_truth():
    network, images, predicted = linear_problem()
    labels = (predicted + 1) % 4
    path = plan_paths(network, images, labels, steps=20)
    assert not path.correct.any()
    assert all((step.target == labels[step.rows]).all() for step in path.steps)
    assert (network(images + path.perturbation).argmax(1) == labels).all()


def test_candidates_are_the_classes_of_highest_score():
    network, images, labels = linear_problem()
    path = plan_paths(network, images, labels, candidates=1)
    assert torch.equal(path.steps[0].target, network(images).topk(2).indices[:, 1])


def test_a_dead_network_gives_a_zero_step_and_finite_gradients():
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.init.constant_(network[1].bias, -100)
    images = torch.rand(2, 1, 3, 3)
    path = plan_paths(network, images, torch.tensor([0, 1]))
    perturbation = replay(network, images, path)
    perturbation.norm().backward()
    assert not perturbation.any()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_a_move_past_the_boundary_goes_on(norm):
    gradient = torch.rand(1, 1, 2, 2)
    assert torch.equal(deepfool_move(torch.ones(1), gradient, norm), deepfool_move(-torch.ones(1), gradient, norm))


def test_nothing_is_left_behind():
    network, images, labels = problem(mlp)
    before = images.clone()
    with torch.no_grad():
        replayed = replay(network, images, plan_paths(network, images, labels))
    assert replayed.requires_grad
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert all(p.grad is None for p in network.parameters())


def test_dropout_masks_follow_the_images_that_still_run():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)).double()
    images = torch.rand(12, 1, 8, 8, dtype=torch.float64)
    labels = torch.arange(12) % 10
    with shared_dropout_masks(network) as masks:
        logits = network(images)
        labels = torch.where(torch.arange(12) % 3 == 0, labels, logits.argmax(1))
        path = plan_paths(network, images, labels, select=masks.select)
        replayed = replay(network, images, path, select=masks.select)
        naive = naive_perturbation(network, images, labels, steps=5)
    assert len(path.steps_taken.unique()) > 1
    torch.testing.assert_close(path.logits, logits)
    assert relative(parameter_gradients(network, replayed), parameter_gradients(network, naive)) < 1e-9
