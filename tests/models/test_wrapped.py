import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lightning_advdef.models import NetworkFactory, WrappedClassifier

from .helpers import CIFAR, DIGITS, images_of, second_order_gradients


class Net(nn.Module):
    """A network as a user may have it."""

    def __init__(self, width: int = 4, classes: int = 10, last: str = "none") -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(width * 36, classes)
        self.last = {"none": nn.Identity(), "softmax": nn.Softmax(1), "log_softmax": nn.LogSoftmax(1)}[last]

    def forward(self, x):
        return self.last(self.fc(self.drop(self.conv(x).relu().flatten(1))))


@pytest.mark.parametrize("head", [None, "fc"])
def test_output_is_the_modules_on_normalised_images(head):
    module, images = Net(), images_of(DIGITS)
    network = WrappedClassifier(DIGITS, module, head=head).eval()
    assert torch.equal(network(images), module.eval()((images - 0.3) / 0.4))


def test_named_head_splits_off_the_embedding():
    network = WrappedClassifier(DIGITS, Net(), head="fc").eval()
    images = images_of(DIGITS)
    features = network.features(network.normalize(images))
    assert features.shape == (2, 4 * 36)
    assert isinstance(network.head, nn.Linear)
    assert torch.equal(network.head(features), network(images))


def test_modes_survive_the_check():
    module = Net().train()
    module.conv.eval()
    network = WrappedClassifier(DIGITS, module, head="fc")
    assert network.features.training
    assert network.features.drop.training
    assert not network.features.conv.training


def test_module_is_copied():
    module = Net()
    first, second = WrappedClassifier(DIGITS, module, "fc"), WrappedClassifier(DIGITS, module, "fc")
    assert isinstance(module.fc, nn.Linear)
    assert first.head.weight.data_ptr() != second.head.weight.data_ptr()


def test_normalisation_can_be_left_to_the_module():
    module, images = Net(), images_of(DIGITS)
    network = WrappedClassifier(DIGITS, module, normalization=[[0], [1]]).eval()
    assert torch.equal(network(images), module.eval()(images))


def test_gradients_of_gradients_exist():
    gradients = second_order_gradients(WrappedClassifier(DIGITS, Net(), "fc"), images_of(DIGITS))
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("spec", "module", "head", "message"),
    [
        (CIFAR, Net(), None, r"Net cannot take images of shape \(3, 32, 32\) \(cifar10\)"),
        (DIGITS, Net(classes=7), None, r"logits of shape \(N, 10\) for digits, got \(1, 7\)"),
        (DIGITS, Net(last="softmax"), None, "probabilities"),
        (DIGITS, Net(last="log_softmax"), "fc", "'fc' is not the last layer of Net"),
        (DIGITS, Net(), "conv", "'conv' is not the last layer of Net"),
        (DIGITS, Net(), "fx", "no layer named 'fx' to be the head; its last linear layer is 'fc'"),
        (DIGITS, Net(), "", "no layer named ''"),
    ],
)
def test_unfit_networks_are_refused(spec, module, head, message):
    with pytest.raises(ValueError, match=message):
        WrappedClassifier(spec, module, head)


def test_config_names_the_module_by_class_path():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=NetworkFactory)
    module = {"class_path": f"{__name__}.Net", "init_args": {"width": 3}}
    config = {"class_path": "WrappedClassifier", "init_args": {"module": module, "head": "fc"}}
    factory = parser.instantiate_classes(parser.parse_object({"network": config})).network
    network = factory(DIGITS)
    assert network.head.in_features == 3 * 36
    assert network.spec == DIGITS


def test_config_names_a_network_by_its_short_name():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=NetworkFactory)
    config = {"class_path": "MLP", "init_args": {"hidden": [7], "batch_norm": True}}
    factory = parser.instantiate_classes(parser.parse_object({"network": config})).network
    assert factory(DIGITS).head.in_features == 7
