import pytest
import torch

from lightning_advdef.models import StandIn
from tests.attacks.helpers import seeded

IMAGES = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def test_it_begins_as_the_identity():
    assert torch.equal(seeded(lambda: StandIn(3))(IMAGES), IMAGES)


def test_a_pixel_is_made_of_33_by_33():
    network = seeded(lambda: StandIn(1, width=4))
    torch.nn.init.constant_(network.residual[-1].weight, 0.1)
    image = torch.rand(1, 1, 41, 41, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(network(image)[0, 0, 20, 20], image)
    rows, columns = gradient[0, 0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 36, 4, 36)


@pytest.mark.parametrize(("width", "filters"), [(5, 5), (64, 64)])
def test_the_width_is_the_number_of_filters(width, filters):
    shapes = [tuple(layer.weight.shape[:2]) for layer in StandIn(3, width).residual[::2]]
    assert shapes == [(filters, 3), *[(filters, filters)] * 5, (3, filters)]
