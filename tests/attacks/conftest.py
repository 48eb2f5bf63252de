import pytest

from tests.attacks.helpers import make_network, middle_images, seeded, three_wrong


@pytest.fixture(scope="module")
def network():
    """A small network in evaluation mode; tests leave it as they found it."""
    return seeded(make_network).eval()


@pytest.fixture
def images():
    return middle_images(16, 2, 6, 6, spread=0.5)


@pytest.fixture
def labels(network, images):
    return three_wrong(network, images)
