"""Foolbox as oracle, on a network trained on scikit-learn's handwritten digits."""

import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from lightning_advdef.attacks import BIM, FGM, FGSM, PGD, DeepFool, FullGradient
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.attacks.lp_ball import lp_norm
from tests.attacks.helpers import Recording, right, seeded

foolbox = pytest.importorskip("foolbox")


def train(images, labels):
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(8):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


class Peers:
    """A trained network, 400 test images, and foolbox's view of the network."""

    def __init__(self):
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
        labels = torch.tensor(digits.target)
        self.network = seeded(lambda: train(images[400:], labels[400:]))
        self.images, self.labels = images[:400], labels[:400]
        logits = self.network(self.images)
        true = logits.gather(1, self.labels[:, None])[:, 0]
        margins = true - logits.scatter(1, self.labels[:, None], float("-inf")).amax(dim=1)
        # where the network is surer, torch's own cross-entropy, which foolbox takes, loses digits of the gradient
        self.unsure = margins < 8
        self.model = foolbox.PyTorchModel(self.network, bounds=(0, 1), device="cpu")

    def foolbox(self, attack, eps):
        _, clipped, _ = attack(self.model, self.images, self.labels, epsilons=eps)
        return clipped

    def ours(self, attack, surrogate=FullGradient):
        return attack(surrogate(self.network), self.images, self.labels)

    def agree(self, ours, theirs):
        torch.testing.assert_close(ours[self.unsure], theirs[self.unsure], rtol=0, atol=1e-3)

    def robust(self, adversarial):
        return right(self.network, adversarial, self.labels)


@pytest.fixture(scope="module")
def peers():
    return Peers()


def inexact(network):
    """Foolbox knows no early stop: neither does a surrogate that is not exact."""
    return Recording(network, exact=False)


def test_the_network_has_learned_the_digits(peers):
    assert peers.robust(peers.images).float().mean() > 0.9


def test_gradients_have_the_signs_of_double_precision_even_where_the_network_is_sure(peers):
    def gradient(network, images):
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad(cross_entropy(network(leaf), Goal(peers.labels)).sum(), leaf)[0]

    double = gradient(copy.deepcopy(peers.network).double(), peers.images.double())
    different = gradient(peers.network, peers.images).sign() != double.sign()
    # rounding may flip the sign of a gradient that is almost zero
    assert different.sum() <= 2
    assert (~peers.unsure).sum() > 100


@pytest.mark.parametrize("eps", [0.02, 0.1, 0.3])
def test_fgsm_gives_the_same_images(peers, eps):
    expected = peers.foolbox(foolbox.attacks.LinfFastGradientAttack(random_start=False), eps)
    peers.agree(peers.ours(FGSM(eps)), expected)


@pytest.mark.parametrize("eps", [0.1, 0.5, 2.0])
def test_fgm_gives_the_same_images(peers, eps):
    expected = peers.foolbox(foolbox.attacks.L2FastGradientAttack(random_start=False), eps)
    peers.agree(peers.ours(FGM(eps)), expected)


def test_bim_walks_through_the_same_images(peers):
    recording = inexact(peers.network)
    BIM(0.1, steps=10, step_size=0.02)(recording, peers.images, peers.labels)
    peer = foolbox.attacks.LinfBasicIterativeAttack(steps=10, abs_stepsize=0.02, random_start=False)
    peers.agree(recording.seen[-1], peers.foolbox(peer, 0.1))


def test_l2_bim_walks_through_the_same_images(peers):
    recording = inexact(peers.network)
    BIM(0.5, "l2", steps=10, step_size=0.1)(recording, peers.images, peers.labels)
    peer = foolbox.attacks.L2BasicIterativeAttack(steps=10, abs_stepsize=0.1, random_start=False)
    peers.agree(recording.seen[-1], peers.foolbox(peer, 0.5))


PGD_CASES = [
    ("linf", 0.05, foolbox.attacks.LinfPGD),
    ("linf", 0.1, foolbox.attacks.LinfPGD),
    ("l2", 0.4, foolbox.attacks.L2PGD),
    ("l2", 0.8, foolbox.attacks.L2PGD),
]


@pytest.mark.parametrize(("norm", "eps", "peer"), PGD_CASES)
def test_pgd_leaves_as_many_images_robust(peers, norm, eps, peer):
    """Same steps and no random start: never more robust than foolbox's by over two of 400 images, or weaker by more."""
    ours = PGD(eps, norm, steps=20, step_size=eps / 8, random_start=False)
    theirs = peer(steps=20, abs_stepsize=eps / 8, random_start=False)
    our_count = peers.robust(peers.ours(ours)).sum().item()
    their_count = peers.robust(peers.foolbox(theirs, eps)).sum().item()
    assert -2 <= our_count - their_count <= 2
    assert 10 < their_count < 380


@pytest.mark.parametrize(("norm", "eps", "peer"), PGD_CASES)
def test_random_starts_leave_about_as_many_images_robust(peers, norm, eps, peer):
    ours = peers.robust(peers.ours(PGD(eps, norm, steps=20, step_size=eps / 8))).sum().item()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = peers.robust(peers.foolbox(peer(steps=20, abs_stepsize=eps / 8), eps)).sum().item()
    assert abs(ours - theirs) <= 4


def test_deepfool_needs_the_same_l2_norm(peers):
    ours = peers.ours(DeepFool(steps=50, candidates=10))
    theirs = peers.foolbox(foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02), None)
    # foolbox stops at once on a misclassified image; ours leaves the predicted class there too
    both = peers.robust(peers.images) & ~peers.robust(ours) & ~peers.robust(theirs)
    ratio = lp_norm(ours - peers.images, "l2")[both] / lp_norm(theirs - peers.images, "l2")[both]
    assert both.sum() >= 0.99 * peers.robust(peers.images).sum()
    assert 0.99 < ratio.median() < 1.01
    assert (ratio < 1.01).float().mean() > 0.95


def test_deepfool_fools_every_image_that_foolbox_fools(peers):
    clean = peers.robust(peers.images)
    ours = peers.robust(peers.ours(DeepFool(steps=50)))[clean]
    theirs = peers.robust(peers.foolbox(foolbox.attacks.L2DeepFoolAttack(steps=50), None))[clean]
    assert not (ours & ~theirs).any()
