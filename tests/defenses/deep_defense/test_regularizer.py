from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_advdef.attacks.deepfool import STABILISER
from lightning_advdef.defenses.deep_defense.regularizer import (
    batch_norm_eval,
    deep_defense_regularizer,
    regularized_view,
    relative_size,
)
from lightning_advdef.defenses.deep_defense.unrolled_deepfool import plan_paths, replay


def full_regularizer(network, images, labels, steps=2, layer=None):
    view = regularized_view(network, layer)
    path = plan_paths(view, images, labels, steps)
    return deep_defense_regularizer(replay(view, images, path), images, path.correct)


def test_gradient_of_the_whole_regularizer_matches_finite_differences():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 10)).double()
    images = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    labels = network(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 10
    parameters = list(network.parameters())
    gradient = torch.autograd.grad(full_regularizer(network, images, labels), parameters)
    for _ in range(3):
        direction = [torch.randn_like(p) for p in parameters]
        values = []
        for shift in (1e-6, -2e-6):
            with torch.no_grad():
                for p, v in zip(parameters, direction, strict=True):
                    p += shift * v
            values.append(full_regularizer(network, images, labels).item())
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p += 1e-6 * v
        slope = sum((g * v).sum() for g, v in zip(gradient, direction, strict=True)).item()
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_two_class_linear_classifier_has_the_value_and_gradient_worked_out_by_hand():
    weight = torch.tensor([[2.0, 1.0], [-1.0, 5.0]], dtype=torch.float64)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).double()
    network[1].weight.data = weight.clone()
    image = torch.tensor([0.9, 0.3], dtype=torch.float64).view(1, 1, 1, 2)
    value = full_regularizer(network, image, torch.tensor([0]))
    x, w = image.flatten(), weight[0] - weight[1]
    gap, length = w @ x + STABILISER, w.norm()
    r = 1.02 * gap / length / x.norm()
    expected = torch.exp(-25 * r)
    torch.testing.assert_close(value, expected)
    value.backward()
    row = -25 * expected * 1.02 / x.norm() * (x / length - gap * w / length**3)
    torch.testing.assert_close(network[1].weight.grad, torch.stack([row, -row]))


def test_value_is_the_formula():
    perturbation, images = torch.rand(5, 1, 2, 2), torch.rand(5, 1, 2, 2)
    correct = torch.tensor([True, False, True, False, True])
    expected = 0.0
    for delta, image, right in zip(perturbation, images, correct, strict=True):
        r = delta.norm() / image.norm()
        expected += torch.exp(-25 * r if right else 5 * r) / 5
    torch.testing.assert_close(deep_defense_regularizer(perturbation, images, correct), expected)


def test_farther_is_better_for_correct_images_and_worse_for_wrong_ones():
    images, unit = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.05)
    right = [deep_defense_regularizer(k * unit, images, torch.tensor([True])) for k in range(5)]
    wrong = [deep_defense_regularizer(k * unit, images, torch.tensor([False])) for k in range(5)]
    assert right == sorted(right, reverse=True)
    assert wrong == sorted(wrong)
    assert right[0] == wrong[0] == 1


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("image", [0.0, 0.5])
def test_zero_perturbation_and_black_image_stay_finite(norm, image):
    perturbation = torch.zeros(2, 1, 3, 3, requires_grad=True)
    images = torch.full((2, 1, 3, 3), image)
    value = deep_defense_regularizer(perturbation, images, torch.tensor([True, False]), norm=norm)
    value.backward()
    assert value.isfinite()
    assert perturbation.grad.isfinite().all()


def test_a_huge_perturbation_of_a_wrong_image_is_cut_at_exp_20():
    value = deep_defense_regularizer(torch.full((1, 1, 2, 2), 1e4), torch.ones(1, 1, 2, 2), torch.tensor([False]))
    torch.testing.assert_close(value, torch.tensor(20.0).exp())


def test_relative_size_uses_the_norm():
    delta, images = torch.tensor([[3.0, 4.0]]).view(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    assert relative_size(delta, images, "linf").item() == pytest.approx(4)
    assert relative_size(delta, images, "l1").item() == pytest.approx(3.5)


def normalized_network():
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(1, 4, 3), "norm": nn.BatchNorm2d(4), "relu": nn.ReLU(), "flatten": nn.Flatten()}
    network = nn.Sequential()
    for name, layer in {**layers, "fc1": nn.Linear(144, 16), "fc2": nn.Linear(16, 10)}.items():
        network.add_module(name, layer)
    return network.double(), torch.rand(8, 1, 8, 8, dtype=torch.float64), torch.arange(8)


def test_only_the_named_layer_gets_its_share_of_the_gradient():
    network, images, labels = normalized_network()
    network.eval()
    full_regularizer(network, images, labels).backward()
    expected = [p.grad.clone() for p in network.fc1.parameters()]
    network.zero_grad()
    full_regularizer(network, images, labels, layer="fc1").backward()
    assert [name for name, p in network.named_parameters() if p.grad is not None] == ["fc1.weight", "fc1.bias"]
    for parameter, gradient in zip(network.fc1.parameters(), expected, strict=True):
        assert gradient.any()
        torch.testing.assert_close(parameter.grad, gradient)


def test_an_unknown_layer_is_answered_with_the_names():
    network, _, _ = normalized_network()
    with pytest.raises(ValueError, match=r"layer must be one of conv, fc1, fc2 .* got 'fc3'"):
        regularized_view(network, "fc3")


def test_batch_norm_is_neither_trained_nor_moved():
    network, images, labels = normalized_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with batch_norm_eval(network):
        assert network.training
        assert not network.norm.training
        full_regularizer(network, images, labels).backward()
    assert network.norm.training
    assert network.norm.weight.grad is None
    assert network.norm.bias.grad is None
    assert network.conv.weight.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("settings", [{}, {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "bias": False}])
def test_view_is_the_network_with_any_convolution(settings):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, (3, 2), **settings), nn.ReLU(), nn.Conv2d(5, 2, 3)).double()
    images = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(regularized_view(network)(images), network(images))
    assert "forward" not in vars(network[0])
