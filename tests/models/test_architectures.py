"""Facts that hold for every network written here."""

import pytest
import torch
import torchvision
from torch import nn

from lightning_advdef import models
from lightning_advdef.models import MLP, NIN, VGG, Classifier, ConvNet, ConvPoolCNN, LeNet, ResNet, WideResNet

from .helpers import CIFAR, DIGITS, MNIST, count_parameters, images_of, second_order_gradients

NETWORKS = {
    "mlp": lambda: MLP(DIGITS, hidden=[6, 5]),
    "linear": lambda: MLP(DIGITS, hidden=[]),
    "mlp_bn": lambda: MLP(DIGITS, hidden=[6, 5], batch_norm=True),
    "lenet": lambda: LeNet(MNIST._replace(height=16, width=16)),
    "lenet_relu": lambda: LeNet(MNIST._replace(height=16, width=20), conv_relu=True),
    "conv_net": lambda: ConvNet(CIFAR),
    "conv_pool_cnn": lambda: ConvPoolCNN(DIGITS, width=2, normalization=[[0.3], [0.4]]),
    "nin": lambda: NIN(DIGITS),
    "resnet18": lambda: ResNet(DIGITS, depth=18, width=2),
    "resnet50": lambda: ResNet(CIFAR._replace(height=8, width=8), depth=50, width=2),
    "vgg11": lambda: VGG(CIFAR, depth=11),
    "wrn_10_1": lambda: WideResNet(DIGITS, depth=10, width=1),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]().eval()


def test_exports_exist_once():
    classes = [name for name in models.__all__ if isinstance(getattr(models, name), type)]
    assert {"LeNet", "MLP", "NIN", "WrappedClassifier"} <= set(classes)
    assert sorted(models.__all__) == sorted(set(models.__all__))


def test_logits_have_one_entry_per_class(network):
    assert network(images_of(network.spec, 3)).shape == (3, 10)


def test_forward_is_head_of_features_of_normalised_images(network):
    images = images_of(network.spec)
    assert torch.equal(network(images), network.head(network.features(network.normalize(images))))


def test_normalisation_comes_first(network):
    images = images_of(network.spec)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (network.spec.mean, network.spec.std))
    seen = []
    network.features.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(images)
    assert torch.equal(seen[0], (images - mean) / std)


def test_images_are_not_written_to(network):
    images = images_of(network.spec)
    before = images.clone()
    network(images)
    assert torch.equal(images, before)


def test_gradients_of_gradients_exist(network):
    gradients = second_order_gradients(network, images_of(network.spec))
    weights = [name for name, _ in network.named_parameters()]
    by_name = dict(zip(weights, gradients, strict=True))
    head = [name for name in weights if name.startswith("head") and name.endswith("weight")]
    assert all(by_name[name] is not None and by_name[name].abs().sum() > 0 for name in head)
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


def test_layers_start_with_zero_bias(network):
    layers = [layer for layer in network.features.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    assert all(layer.bias is None or not layer.bias.any() for layer in layers)


def test_state_dict_does_not_depend_on_the_normalisation(network):
    assert not any(name.startswith("normalize") for name in network.state_dict())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: MLP(MNIST), 784 * 500 + 500 + 500 * 150 + 150 + 150 * 10 + 10),
        (lambda: MLP(MNIST, batch_norm=True), 469_160 + 2 * (500 + 150)),
        (lambda: LeNet(MNIST), (25 * 20 + 20) + (25 * 20 * 50 + 50) + (800 * 500 + 500) + (500 * 10 + 10)),
        (lambda: LeNet(CIFAR), (75 * 20 + 20) + (25 * 20 * 50 + 50) + (1250 * 500 + 500) + (500 * 10 + 10)),
        (
            lambda: ConvNet(CIFAR),
            (75 * 32 + 32) + (25 * 32 * 32 + 32) + (25 * 32 * 64 + 64) + (16 * 64 * 64 + 64) + (64 * 10 + 10),
        ),
        (
            lambda: NIN(CIFAR),
            (75 * 192 + 192) + (192 * 160 + 160) + (160 * 96 + 96)
            + (25 * 96 * 192 + 192) + 2 * (192 * 192 + 192)
            + (9 * 192 * 192 + 192) + (192 * 192 + 192) + (192 * 10 + 10),
        ),
    ],
    ids=["mlp", "mlp_bn", "lenet", "lenet_colour", "conv_net", "nin"],
)  # fmt: skip
def test_parameters_are_those_of_the_papers_layers(make, expected):
    assert count_parameters(make()) == expected


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_is_torchvisions_with_another_first_layer(depth):
    with torch.device("meta"):
        ours = ResNet(CIFAR, depth=depth)
        theirs = torchvision.models.get_model(f"resnet{depth}", num_classes=10)
    assert count_parameters(ours) == count_parameters(theirs) - (49 - 9) * 3 * 64


def test_resnet_agrees_with_torchvision_behind_the_first_layer():
    torch.manual_seed(0)
    ours, theirs = ResNet(CIFAR).eval(), torchvision.models.resnet18(num_classes=10).eval()
    for name in ("layer1", "layer2", "layer3", "layer4"):
        getattr(ours.features, name).load_state_dict(getattr(theirs, name).state_dict())
    theirs.conv1, theirs.bn1, theirs.maxpool = ours.features.conv1, ours.features.bn1, nn.Identity()
    theirs.fc = ours.head
    images = images_of(CIFAR)
    assert torch.allclose(ours(images), theirs(ours.normalize(images)), atol=1e-5)


def test_vgg_has_torchvisions_convolutions():
    with torch.device("meta"):
        ours, theirs = VGG(CIFAR), torchvision.models.vgg16_bn(num_classes=10)
    assert count_parameters(ours) == count_parameters(theirs.features) + 512 * 10 + 10


def test_embedding_of_the_cifar_networks_has_the_papers_size():
    with torch.device("meta"):
        sizes = [network.head.in_features for network in (ResNet(CIFAR), ResNet(CIFAR, depth=50), VGG(CIFAR))]
    assert sizes == [512, 2048, 512]


def test_conv_net_agrees_with_the_layers_of_the_card():
    network, images = ConvNet(CIFAR), images_of(CIFAR)
    layers = network.features
    x = nn.functional.max_pool2d(layers.conv1(network.normalize(images)), 2).relu()
    x = nn.functional.avg_pool2d(layers.conv2(x).relu(), 2)
    x = nn.functional.avg_pool2d(layers.conv3(x).relu(), 2)
    x = network.head.conv5(layers.conv4(x).relu())
    assert x.shape == (2, 10, 1, 1)
    assert torch.equal(network(images), x.flatten(1))


def test_nin_averages_its_head_over_an_8x8_map():
    network = NIN(CIFAR)
    features = network.eval().features(network.normalize(images_of(CIFAR, 1)))
    assert features.shape == (1, 192, 8, 8)


def test_lenet_has_relu_after_convolutions_only_on_request():
    relus = [
        sum(isinstance(layer, nn.ReLU) for layer in LeNet(MNIST, conv_relu=flag).features) for flag in (False, True)
    ]
    assert relus == [1, 3]


def test_kaiming_weights_have_the_formulas_spread():
    torch.manual_seed(0)
    weight = MLP(MNIST).features.fc1.weight
    assert weight.std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("make", "size"),
    [(LeNet, "16x16"), (ConvNet, "32x32"), (VGG, "32x32"), (lambda s: NIN(s._replace(height=3)), "4x4")],
    ids=["lenet", "conv_net", "vgg", "nin"],
)
def test_small_images_are_refused_in_one_sentence(make, size):
    with pytest.raises(ValueError, match=rf"needs images of at least {size} pixels, but the data \(digits\)") as error:
        make(DIGITS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(MNIST, hidden=[0]), "hidden"),
        (lambda: ResNet(MNIST, depth=34), "depth 10, 18 or 50"),
        (lambda: VGG(CIFAR, depth=12), "depth 11, 13, 16 or 19"),
        (lambda: MLP(CIFAR, normalization=[[0.5, 0.5], [1.0]]), "1 or 3 values"),
        (lambda: MLP(CIFAR, normalization=[[0.5], [0.0]]), "std > 0"),
        (lambda: MLP(CIFAR, normalization=[[0.5]]), "mean, std"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_normalization_replaces_the_statistics_of_the_data():
    images = images_of(CIFAR)
    network = MLP(CIFAR, hidden=[], normalization=[[0.5], [0.25]])
    assert torch.equal(network.normalize(images), (images - 0.5) / 0.25)


def test_every_network_is_a_classifier(network):
    assert isinstance(network, Classifier)
