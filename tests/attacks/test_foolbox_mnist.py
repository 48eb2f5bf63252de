"""The shipped MNIST networks against foolbox; needs MNIST under ``$ADVDEF_DATA`` (default ``data``)."""

import os
from pathlib import Path

import pytest
import torch

from lightning_advdef.attacks import PGD, DeepFool
from lightning_advdef.checkpoints import load_defense
from lightning_advdef.data import MNIST
from lightning_advdef.errors import DatasetNotFoundError

foolbox = pytest.importorskip("foolbox")
pytestmark = pytest.mark.slow

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
IMAGES = 500


@pytest.fixture(scope="module")
def mnist():
    data = MNIST(os.environ.get("ADVDEF_DATA", "data"), batch_size=IMAGES, limit=IMAGES)
    try:
        data.setup("test")
    except DatasetNotFoundError as error:
        pytest.skip(str(error))
    return next(iter(data.test_dataloader()))


@pytest.fixture(params=["mnist_lenet_reference", "mnist_mlp_reference"])
def network(request):
    return load_defense(CHECKPOINTS / f"{request.param}.ckpt")


def peer(network):
    return foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.5)])
def test_pgd_leaves_as_many_images_as_foolbox(network, mnist, norm, eps):
    images, labels, _ = mnist
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    theirs = kind(abs_stepsize=eps / 10, steps=40, random_start=False)
    _, found, _ = theirs(peer(network), images, labels, epsilons=eps)
    ours = PGD(eps=eps, norm=norm, steps=40, step_size=eps / 10, random_start=False)(network, images, labels)
    accuracies = [float((network(x).argmax(1) == labels).double().mean()) for x in (ours, found)]
    assert abs(accuracies[0] - accuracies[1]) <= 0.005


def test_deepfool_is_as_near_as_foolbox(network, mnist):
    images, labels, _ = mnist
    right = network(images).argmax(1) == labels
    images, labels = images[right], labels[right]
    theirs, _, _ = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10)(
        peer(network), images, labels, epsilons=None
    )
    ours = DeepFool()(network, images, labels)
    both = torch.stack([network(x).argmax(1) != labels for x in (ours, theirs)]).all(dim=0)
    norms = [(x - images)[both].flatten(1).norm(dim=1) for x in (ours, theirs)]
    assert both.double().mean() > 0.99
    assert (norms[0] <= 1.01 * norms[1]).double().mean() > 0.99
    assert norms[0].median() <= norms[1].median() * 1.001
