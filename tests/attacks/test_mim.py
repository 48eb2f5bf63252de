import pytest
import torch
from torch import nn

from lightning_advdef.attacks import BIM, MIM, FullGradient
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import cross_entropy
from tests.attacks.helpers import Recording, Strict, random_linear, right


def normalised(gradient, norm):
    return gradient.sign() if norm == "linf" else gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("norm", "eps", "decay"), [("linf", 0.05, 1.0), ("linf", 0.05, 0.5), ("l2", 0.5, 1.0)])
def test_steps_follow_the_formula(network, images, labels, norm, eps, decay):
    """Eqs. 6 and 7 of the paper written out; Eq. 9 for l2."""
    recording = Recording(network, exact=False)
    MIM(eps, norm, steps=5, decay=decay)(recording, images, labels)
    iterate, momentum = images.clone(), torch.zeros_like(images)
    for seen in recording.seen:
        torch.testing.assert_close(seen, iterate)
        leaf = seen.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(network(leaf), Goal(labels)).sum(), leaf)
        momentum = decay * momentum + gradient / gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
        iterate = (seen + eps / 5 * normalised(momentum, norm)).clamp(0, 1)
    assert len(recording.seen) == 6


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_decay_it_is_bim(network, images, labels, norm):
    expected = BIM(0.1, norm, steps=7)(network, images, labels)
    torch.testing.assert_close(MIM(0.1, norm, steps=7, decay=0.0)(network, images, labels), expected)


def test_momentum_changes_the_way(network, images, labels):
    plain, momentum = Recording(network, exact=False), Recording(network, exact=False)
    BIM(0.3, steps=7)(plain, images, labels)
    MIM(0.3, steps=7)(momentum, images, labels)
    assert torch.equal(plain.seen[1], momentum.seen[1])
    assert not torch.equal(plain.seen[5], momentum.seen[5])


def test_images_that_leave_the_batch_do_not_mix_up_the_momentum_of_the_others(network, images, labels):
    attack = MIM(0.04, steps=12)
    free, strict = attack(FullGradient(network), images, labels), attack(Strict(network), images, labels)
    torch.testing.assert_close(free, strict)
    assert 0 < right(network, free, labels).sum() < 13


class Scaled(nn.Module):
    """A network whose logits are scaled to next to nothing."""

    def __init__(self, network, scale):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, images):
        return self.network(images) * self.scale


def test_the_size_of_gradients_does_not_matter(network, images, labels):
    attack = MIM(0.05, steps=6, loss="margin")
    small = attack(Scaled(network, 2.0**-60), images, labels)
    torch.testing.assert_close(small, attack(network, images, labels))


def test_iterates_stay_in_the_ball_under_steps_that_are_too_long(network, images, labels):
    recording = Recording(network, exact=False)
    MIM(0.02, steps=6, step_size=0.015)(recording, images, labels)
    assert max((seen - images).abs().max() for seen in recording.seen) <= 0.02 + 1e-6


def test_targets_are_reached_on_a_linear_network():
    network, images = random_linear(4, 48), torch.full((4, 3, 4, 4), 0.5)
    labels = torch.zeros(4, dtype=torch.int64)
    targets = torch.tensor([1, 2, 3, 1])
    found = MIM(0.3, steps=20)(network, images, labels, target_labels=targets)
    assert torch.equal(network(found).argmax(dim=1), targets)


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="decay must be a finite number of at least 0, got"):
        MIM(0.1, decay=decay)
