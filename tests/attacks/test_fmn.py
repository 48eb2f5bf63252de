import pytest
import torch

from lightning_advdef.attacks import FMN
from lightning_advdef.attacks.lp_ball import lp_norm
from tests.attacks.helpers import Recording, middle_images, random_linear, right


@pytest.mark.parametrize("norm", FMN.norms)
def test_the_first_step_goes_beyond_the_linearised_boundary_by_gamma(norm):
    """Of two classes the boundary is a plane: distance |gap| over the dual norm of the difference of weights."""
    network, images = random_linear(2, 192), middle_images(8, 3, 8, 8, spread=0.05)
    with torch.no_grad():
        logits = network(images)
    surrogate = Recording(network)
    FMN(1, norm=norm, step_size=50.0)(surrogate, images, logits.argmax(dim=1))
    normal = (network.weight[1] - network.weight[0]).detach()
    dual = {"linf": 1, "l2": 2, "l1": float("inf")}[norm]
    expected = (logits[:, 1] - logits[:, 0]).abs() / torch.linalg.vector_norm(normal, dual)
    torch.testing.assert_close(lp_norm(surrogate.seen[1] - images, norm), 1.05 * expected, rtol=1e-4, atol=1e-6)


def test_linf_norms_are_those_of_foolbox(network, images, labels):
    """Foolbox anneals gamma to 0.001 instead of 0.0001."""
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, theirs, success = foolbox.attacks.LInfFMNAttack(steps=40)(model, images[:13], labels[:13], epsilons=None)
    assert success.all()
    ours = lp_norm(FMN(40, norm="linf")(network, images[:13], labels[:13]) - images[:13], "linf")
    torch.testing.assert_close(ours, lp_norm(theirs - images[:13], "linf"), rtol=0.02, atol=0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_no_image_is_lost_where_half_of_the_pixels_are_at_a_bound(network, images, norm):
    images = images.round()
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    assert not right(network, FMN(50, norm=norm)(network, images, labels), labels).any()


def test_step_sizes_are_annealed_to_a_hundredth(images):
    """A radius without bound shows the bare steps."""
    network = random_linear(2, 72)
    network.bias.data[0] += 1e6
    surrogate = Recording(network)
    FMN(200, step_size=0.1, box=False)(surrogate, images, torch.zeros(16, dtype=torch.int64))
    seen = torch.stack(surrogate.seen)
    lengths = (seen[1:] - seen[:-1]).flatten(2).norm(dim=2)
    torch.testing.assert_close(lengths[0], torch.full((16,), 0.1), rtol=1e-3, atol=0)
    torch.testing.assert_close(lengths[100], torch.full((16,), 0.0505), rtol=1e-2, atol=0)
    torch.testing.assert_close(lengths[-1], torch.full((16,), 0.001), rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"norm": "l3"}, "FMN knows the norms linf, l2, l1, got 'l3'"), ({"step_size": 0.0}, "step_size must be")],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FMN(**wrong)


def test_defaults_are_those_of_the_paper():
    assert (FMN().steps, FMN().gamma, FMN().step_size, FMN().norm) == (100, 0.05, 1.0, "l2")
