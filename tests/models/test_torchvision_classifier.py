import urllib.error

import pytest
import torch
import torchvision

from lightning_advdef.errors import CheckpointError
from lightning_advdef.models import TorchvisionClassifier

from .helpers import CIFAR, MNIST, count_parameters, images_of, second_order_gradients

IMAGENET = CIFAR._replace(name="imagenet", height=224, width=224, classes=1000)


@pytest.mark.parametrize(
    ("name", "embedding"),
    [("alexnet", 4096), ("resnet18", 512), ("resnet50", 2048), ("vgg16", 4096), ("vgg19", 4096), ("vit_b_16", 768)],
)
def test_split_keeps_every_parameter(name, embedding):
    with torch.device("meta"):
        network = TorchvisionClassifier(IMAGENET, name)
        raw = torchvision.models.get_model(name)
    assert count_parameters(network) == count_parameters(raw)
    assert count_parameters(network.head) == 1000 * embedding + 1000


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 32), ("squeezenet1_1", 32), ("alexnet", 63), ("mobilenet_v3_small", 32)]
)
def test_output_is_torchvisions_on_normalised_images(name, size):
    spec = CIFAR._replace(height=size, width=size)
    torch.manual_seed(0)
    network = TorchvisionClassifier(spec, name).eval()
    torch.manual_seed(0)
    raw = torchvision.models.get_model(name, num_classes=10).eval()
    images = images_of(spec)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    logits = network(images)
    assert torch.equal(logits, raw((images - mean) / std))
    assert torch.equal(logits, network.head(network.features(network.normalize(images))))


def test_inception_gives_only_logits_in_train_mode():
    with torch.device("meta"):
        network = TorchvisionClassifier(IMAGENET._replace(classes=10), "inception_v3").train()
        raw = torchvision.models.inception_v3(num_classes=10, aux_logits=False, init_weights=True)
        logits = network(torch.empty(2, 3, 75, 75))
    assert logits.shape == (2, 10)
    assert count_parameters(network) == count_parameters(raw)
    assert count_parameters(network.head) == 2048 * 10 + 10


def test_gradients_of_gradients_exist():
    gradients = second_order_gradients(TorchvisionClassifier(CIFAR, "resnet18").eval(), images_of(CIFAR))
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    assert gradients[-2].abs().sum() > 0


@pytest.fixture
def published(monkeypatch):
    """Published weights of ResNet-18 without a download: ones that the test knows."""
    torch.manual_seed(1)
    source = torchvision.models.resnet18()
    enum = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(enum, "get_state_dict", lambda *_, **__: source.state_dict())
    return source


def test_published_weights_come_with_their_own_statistics(published):
    network = TorchvisionClassifier(IMAGENET, "resnet18", weights="IMAGENET1K_V1").eval()
    images = images_of(IMAGENET._replace(height=40, width=40))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.equal(network(images), published.eval()((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)))


def test_stated_normalization_wins_over_that_of_the_weights(published):
    network = TorchvisionClassifier(IMAGENET, weights="DEFAULT", normalization=[[0.5], [0.5]])
    assert network.normalize.mean.flatten().tolist() == [0.5]


@pytest.mark.parametrize("error", [urllib.error.URLError("no network"), TimeoutError("timed out")])
def test_failed_download_says_where_the_file_belongs(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(CheckpointError, match=r"could not be downloaded .*resnet18-.*\.pth into .*checkpoints") as info:
        TorchvisionClassifier(IMAGENET, "resnet18", weights="DEFAULT")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (CIFAR, {"name": "resnet19"}, "no classification network named 'resnet19', choose one of alexnet, "),
        (IMAGENET, {"weights": "V1"}, "no weights 'V1' for resnet18, choose one of DEFAULT, IMAGENET1K_V1"),
        (CIFAR, {"weights": "DEFAULT"}, r"resnet18 know 1000 classes, but the data \(cifar10\) has 10: leave out"),
        (MNIST, {}, r"needs images with 3 channels, but the data \(mnist\) has 1"),
        (CIFAR, {"name": "inception_v3"}, "inception_v3 needs images of at least 75x75 pixels"),
        (CIFAR, {"name": "vit_b_16"}, "vit_b_16 needs images of 224x224 pixels"),
        (IMAGENET._replace(width=256), {"name": "vit_b_16"}, "vit_b_16 needs images of 224x224 pixels"),
    ],
)
def test_unfit_settings_are_refused(spec, arguments, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionClassifier(spec, **arguments)
