import pytest
import torch

from tests.attacks.helpers import make_network, middle_images, seeded


@pytest.fixture(scope="module")
def network():
    """A small network in evaluation mode; tests leave it as they found it."""
    return seeded(make_network).eval()


@pytest.fixture
def images():
    return middle_images(16, 2, 6, 6, spread=0.5)


@pytest.fixture
def labels(network, images):
    """The network's own predictions, except that the last three images are misclassified."""
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    labels[-3:] = (labels[-3:] + 1) % 4
    return labels
