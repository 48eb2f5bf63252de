import pytest
import torch

from lightning_advdef.attacks import DDN
from lightning_advdef.attacks.lp_ball import lp_norm
from tests.attacks.helpers import Recording, right


def test_the_first_steps_are_those_of_the_paper(network, images, labels):
    """Norm 1 + γ after the first step, then 1 - γ times that where it fooled and 1 + γ times where it did not."""
    surrogate = Recording(network)
    DDN(2, initial_eps=0.1, box=False)(surrogate, images[:8], labels[:8])
    _, first, second = (lp_norm(seen - images[:8], "l2") for seen in surrogate.seen)
    torch.testing.assert_close(first, torch.full((8,), 0.105))
    fooled = ~right(network, surrogate.seen[1], labels[:8])
    assert fooled.any()
    torch.testing.assert_close(second, torch.where(fooled, 0.105 * 0.95, 0.105 * 1.05))


def test_norms_are_those_of_foolbox_or_one_shrinking_less_by_the_last_look(network, images, labels):
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, theirs, success = foolbox.attacks.DDNAttack(steps=40)(model, images[:13], labels[:13], epsilons=None)
    assert success.all()
    ours = DDN(40)(network, images[:13], labels[:13])
    ratio = lp_norm(ours - images[:13], "l2") / lp_norm(theirs - images[:13], "l2")
    assert ratio.max() < 1.001
    assert ratio.min() > 0.949
    assert (ratio > 0.999).any()


def test_levels_are_all_the_values_a_pixel_takes(network, images, labels):
    levels = (DDN(20, levels=11)(network, images.mul(10).round() / 10, labels) * 10).double()
    assert (levels - levels.round()).abs().max() < 1e-5


def test_rounding_is_off_unless_asked_for(network, images, labels):
    assert torch.equal(DDN(5)(network, images, labels), DDN(5, levels=None)(network, images, labels))
    assert not torch.equal(DDN(5)(network, images, labels), DDN(5, levels=256)(network, images, labels))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"initial_eps": 0.0}, "initial_eps must be a finite number above 0"),
        ({"initial_eps": float("inf")}, "initial_eps must be a finite number above 0"),
        ({"levels": 1}, "levels must be at least 2"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DDN(**wrong)


def test_defaults_are_those_of_the_paper():
    assert (DDN().steps, DDN().gamma, DDN().initial_eps) == (100, 0.05, 1.0)
    assert DDN().size_norm == "l2"
