import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from lightning_advdef.models import NIN, shared_dropout_masks

from .helpers import DIGITS, images_of, second_order_gradients


@pytest.fixture
def network():
    torch.manual_seed(0)
    return NIN(DIGITS).train()


def test_forwards_of_one_step_see_the_same_masks(network):
    images = images_of(DIGITS, 4)
    with shared_dropout_masks(network):
        assert torch.equal(network(images), network(images))


def test_steps_and_ordinary_forwards_see_new_masks(network):
    images = images_of(DIGITS, 4)
    outputs = []
    for _ in range(2):
        with shared_dropout_masks(network):
            outputs.append(network(images))
    outputs.append(network(images))
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_first_forward_is_ordinary_dropout(network):
    images = images_of(DIGITS, 4)
    torch.manual_seed(1)
    expected = network(images)
    torch.manual_seed(1)
    with shared_dropout_masks(network):
        assert torch.allclose(network(images), expected, atol=1e-6)


def test_selected_rows_see_their_own_masks(network):
    images, rows = images_of(DIGITS, 5), torch.tensor([3, 0, 3, 4])
    with shared_dropout_masks(network) as masks:
        whole = network(images)
        masks.select(rows)
        part = network(images[rows])
        masks.select(None)
        again = network(images)
    assert torch.allclose(part, whole[rows], atol=1e-5)
    assert torch.equal(again, whole)


def test_eval_mode_drops_nothing(network):
    images = images_of(DIGITS)
    network.eval()
    expected = network(images)
    with shared_dropout_masks(network):
        assert torch.equal(network(images), expected)


def test_masks_are_scaled_or_zero():
    layer = nn.Sequential(nn.Dropout(0.75))
    with shared_dropout_masks(layer):
        output = layer(torch.ones(100, 100))
    assert set(output.unique().tolist()) == {0.0, 4.0}
    assert output.mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5, inplace=True), nn.Dropout2d(0.5), StochasticDepth(0.5, "row")])
def test_other_multiplicative_layers_share_masks_too(layer):
    network, activations = nn.Sequential(layer), torch.rand(8, 3, 2, 2) + 1
    before = activations.clone()
    with shared_dropout_masks(network):
        assert torch.equal(network(activations), network(activations))
    assert torch.equal(activations, before)


def test_network_is_left_as_it_was_even_after_an_error(network):
    names = list(network.state_dict())
    with pytest.raises(RuntimeError, match="channels"), shared_dropout_masks(network):
        network(torch.zeros(2, 3, 8, 8))
    assert not any("forward" in vars(layer) for layer in network.modules())
    assert list(network.state_dict()) == names


def test_gradients_of_gradients_pass_through_the_masks(network):
    images = images_of(DIGITS, 4)
    with shared_dropout_masks(network):
        network(images)
        first = second_order_gradients(network, images)
        second = second_order_gradients(network, images)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in first)
    assert all(a is b is None or torch.allclose(a, b) for a, b in zip(first, second, strict=True))


def test_another_batch_size_needs_select(network):
    with shared_dropout_masks(network):
        network(images_of(DIGITS, 4))
        with pytest.raises(ValueError, match=r"call select\(rows\)"):
            network(images_of(DIGITS, 3))


def test_a_step_begins_with_the_whole_batch(network):
    with shared_dropout_masks(network) as masks:
        masks.select(torch.tensor([0]))
        with pytest.raises(ValueError, match="whole batch"):
            network(images_of(DIGITS, 1))


def test_blocks_cannot_be_nested(network):
    with shared_dropout_masks(network), pytest.raises(ValueError, match="nested"), shared_dropout_masks(network):
        pass
