"""Checkpoints: plain descriptions, round trips, and files that must not run code."""

import functools
import os
import sys
from typing import Literal

import pytest
import torch
import torchvision
from jsonargparse.typing import registered_type_handlers
from pytorch_lightning import Trainer
from safetensors.torch import save_file
from torch import nn

from lightning_advdef.attacks import PGD
from lightning_advdef.checkpoints import load_defense, load_weights, plain, read_checkpoint, same_settings, save_defense
from lightning_advdef.defenses import AdversarialTrainingModule, StandardModule
from lightning_advdef.errors import CheckpointError
from lightning_advdef.models import MLP, Classifier, NetworkFactory, TorchvisionClassifier, WrappedClassifier
from lightning_advdef.types import Eps
from tests.conftest import GOLDEN
from tests.toys import NoisyInput, Toy

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class OwnNetwork(MLP):
    """A network that this package does not know."""


def save(defense, path):
    trainer = Trainer(
        accelerator="cpu",
        fast_dev_run=True,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path.parent,
    )
    trainer.fit(defense, datamodule=Toy(batch_size=8))
    trainer.save_checkpoint(path)
    return path


def test_plain_describes_what_a_yaml_can_hold():
    assert plain({"a": (1, None, "x"), "b": True}) == {"a": [1, None, "x"], "b": True}
    assert plain(MLP) == {"class_path": "lightning_advdef.models.mlp.MLP"}
    described = plain(functools.partial(MLP, hidden=(3,)))
    assert described == {"class_path": "lightning_advdef.models.mlp.MLP", "init_args": {"hidden": [3]}}
    assert plain(PGD(eps=0.5))["init_args"]["eps"] == 0.5


def test_a_defense_with_an_attack_loads_without_the_command_line(tmp_path, monkeypatch):
    attack = PGD(eps=Eps("8/255"), steps=1)
    path = save(AdversarialTrainingModule(MLP, attack, spec="digits"), tmp_path / "a.ckpt")
    monkeypatch.delitem(registered_type_handlers, Eps, raising=False)
    assert load_defense(path).attack == attack


def test_plain_leaves_out_what_has_no_description():
    assert plain({"a": lambda: 0, "b": [lambda: 0, 1]}) == {"b": [1]}
    assert plain([functools.partial(lambda kind, spec: kind(spec), MLP)]) == []


@pytest.mark.parametrize(
    ("stored", "same"),
    [
        ({"class_path": "a.Blur", "init_args": {"sigma": 1}}, True),
        ({"class_path": "a.blur.Blur", "init_args": {"sigma": 1.0}}, True),
        ({"class_path": "a.Blur"}, True),
        ({"class_path": "a.Blur", "init_args": {"sigma": 2}}, False),
        ({"class_path": "a.Median", "init_args": {"sigma": 1}}, False),
    ],
)
def test_settings_are_compared_wherever_both_say_something(stored, same):
    own = {"class_path": "a.Blur", "init_args": {"sigma": 1}}
    assert same_settings(own, stored) == same
    assert same_settings([own, own], [own, stored]) == same
    assert not same_settings([own], [own, stored])


@pytest.mark.parametrize("network", [MLP, functools.partial(MLP, hidden=[5], batch_norm=True)])
def test_a_defense_made_in_python_survives_the_round_trip(tmp_path, network):
    defense = StandardModule(network, spec="digits")
    loaded = load_defense(save(defense, tmp_path / "a.ckpt"))
    assert type(loaded) is StandardModule
    assert not loaded.training
    assert torch.equal(loaded(IMAGES), defense.eval()(IMAGES))


def test_a_defense_made_by_the_command_survives_the_round_trip(advdef):
    folder = advdef.digits("fit", "--trainer.max_epochs=1", "--model.optimizer=torch.optim.Adam")
    for path in (folder / "model.ckpt", folder / "checkpoints" / "last.ckpt"):
        loaded = load_defense(path)
        assert type(loaded) is StandardModule
        assert loaded.classifier.head.in_features == 32
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())


def test_a_checkpoint_holds_plain_values_and_loads_with_weights_only(tmp_path):
    path = save(StandardModule(MLP, spec="digits"), tmp_path / "a.ckpt")
    settings = torch.load(path, weights_only=True)["hyper_parameters"]
    assert settings["network"] == {"class_path": "lightning_advdef.models.mlp.MLP"}
    assert settings["_class_path"] == "lightning_advdef.defenses.standard.StandardModule"
    assert settings["spec"] == "digits"


def network_function(spec):
    return MLP(spec, hidden=[4])


def test_a_network_made_by_a_function_is_not_pickled_and_its_weights_still_load(tmp_path):
    defense = StandardModule(network_function, spec="digits")
    path = save(defense, tmp_path / "a.ckpt")
    assert "network" not in torch.load(path, weights_only=True)["hyper_parameters"]
    with pytest.raises(CheckpointError, match=r"does not describe its StandardModule .*network.*weights="):
        load_defense(path)
    other = StandardModule(network_function, spec="digits", weights=str(path))
    other.setup("test")
    assert torch.equal(other.eval()(IMAGES), defense.eval()(IMAGES))


def test_an_unknown_class_is_refused_unless_vouched_for(tmp_path):
    path = save(NoisyInput(MLP, spec="digits"), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"tests.toys.NoisyInput.*classes="):
        load_defense(path)
    assert type(load_defense(path, classes=[NoisyInput])) is NoisyInput


def test_an_unknown_network_is_refused_too(tmp_path):
    path = save(StandardModule(OwnNetwork, spec="digits"), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="OwnNetwork"):
        load_defense(path)
    assert isinstance(load_defense(path, classes=[OwnNetwork]).classifier, OwnNetwork)


@pytest.fixture
def foreign_code(tmp_path, monkeypatch):
    """A module that can be imported, and the file that tells that it was."""
    code = """
from pathlib import Path
from lightning_advdef.models import MLP, Classifier
from lightning_advdef.types import ImageSpec

Path(__file__).with_name("ran").touch()


def make(spec: ImageSpec) -> Classifier:
    return MLP(spec)
"""
    (tmp_path / "foreign_code.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "ran"
    sys.modules.pop("foreign_code", None)


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "foreign_code.make"},
        {"network": {"class_path": "foreign_code.make"}},
        {"network": '{"class_path": "foreign_code.make"}'},
        {"network": '{"class_path": "foreign_code\\u002emake"}'},
        {"network.class_path": "foreign_code.make"},
        {"network": {"class_path": "lightning_advdef.models.MLP", "dict_kwargs": {"hidden": "foreign_code.make"}}},
        {"optimizer": "foreign_code.make"},
        {
            "scheduler": {
                "class_path": "torch.optim.lr_scheduler.LambdaLR",
                "init_args": {"lr_lambda": "foreign_code.make"},
            }
        },
        {"network": "lightning_advdef.cli.os.getcwd"},
        {"network": {"class_path": "lightning_advdef.cli.Path"}},
        {"unheard_of": ("foreign_code.make",)},
    ],
)
def test_code_that_a_file_names_is_refused_and_not_imported(tmp_path, foreign_code, settings):
    content = {"_class_path": "lightning_advdef.defenses.StandardModule", "spec": "digits"}
    content["network"] = {"class_path": "lightning_advdef.models.MLP"}
    state = StandardModule(MLP, spec="digits").state_dict()
    torch.save({"state_dict": state, "hyper_parameters": content | settings}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt names .*(foreign_code(\.|\\+u002e)make|cli\.).*classes="):
        load_defense(tmp_path / "a.ckpt")
    assert not foreign_code.exists()


def test_a_function_that_a_file_names_is_called_if_vouched_for(tmp_path, foreign_code):
    from foreign_code import make

    assert foreign_code.exists(), "the code is real"
    described = {
        "_class_path": "lightning_advdef.defenses.StandardModule",
        "spec": "digits",
        "network": "foreign_code.make",
    }
    state = StandardModule(MLP, spec="digits").state_dict()
    torch.save({"state_dict": state, "hyper_parameters": described}, tmp_path / "a.ckpt")
    assert isinstance(load_defense(tmp_path / "a.ckpt", classes=[make]).classifier, MLP)


class Named(StandardModule):
    """Takes texts that are no names of classes, some of them by way of its base class."""

    def __init__(self, layer: str | None, parts: list[str], order: Literal["a.b", "c"], mode="soft", **settings):
        super().__init__(**settings)
        self.texts = (layer, parts, order, mode)


def test_texts_that_look_like_names_load_where_only_text_fits(tmp_path):
    texts = {"layer": "features.group0", "parts": ["os.system"], "order": "a.b", "mode": "very soft"}
    save_defense(Named(network=MLP, spec="digits", **texts), tmp_path / "a.ckpt")
    assert load_defense(tmp_path / "a.ckpt", classes=[Named]).texts == tuple(texts.values())


def test_a_file_without_a_class_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="does not say which class"):
        load_defense(tmp_path / "a.ckpt")


class BegunFromTeacher(StandardModule):
    """A training that begins with a second file."""

    starts = ("weights", "teacher")

    def __init__(self, network: NetworkFactory, teacher: str | None = None, **settings):
        super().__init__(network, **settings)
        self.teacher = teacher


def test_files_that_a_training_began_with_are_not_needed_to_load_what_it_saved(tmp_path):
    files = {"weights": "gone.ckpt", "teacher": "gone too.ckpt"}
    save_defense(BegunFromTeacher(MLP, spec="digits", **files), tmp_path / "a.ckpt")
    loaded = load_defense(tmp_path / "a.ckpt", classes=[BegunFromTeacher])
    assert (loaded.weights, loaded.teacher) == (None, None)


def small():
    return StandardModule(functools.partial(MLP, hidden=[32]), spec="digits")


@pytest.mark.parametrize("prefix", ["", "classifier."])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt"])
@pytest.mark.parametrize("nested", [True, False])
def test_weights_load_from_a_network_or_a_defense_in_any_format(tmp_path, prefix, suffix, nested):
    source, target = small(), small()
    state = {f"{prefix}{name}": value for name, value in source.classifier.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if nested else state, path)
    load_weights(target, path, complete=False)
    assert torch.equal(source.eval()(IMAGES), target.eval()(IMAGES))


class Own(nn.Module):
    """A network as a user may have it, with names that this package uses, too."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        self.classifier = nn.Sequential(nn.ReLU(), nn.Linear(8, 10))

    def forward(self, images):
        return self.classifier(self.features(images))


@pytest.mark.parametrize("head", [None, "classifier.1"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("name", [None, "state_dict", "model", "model_state_dict"])
def test_weights_of_an_own_network_load_into_what_wraps_it(tmp_path, head, prefix, name):
    own = Own().eval()
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
    state = {f"{prefix}{key}": value for key, value in own.state_dict().items()}
    training = {"optimizer": optimizer.state_dict(), "epoch": 3, "best": torch.tensor(0.9)}
    torch.save(state if name is None else {name: state, **training}, tmp_path / "own.pth")
    network = functools.partial(WrappedClassifier, module=Own(), head=head, normalization=[[0], [1]])
    defense = StandardModule(network, spec="digits")
    load_weights(defense, tmp_path / "own.pth", complete=True)
    assert torch.equal(defense.eval()(IMAGES), own(IMAGES))


def test_weights_of_torchvisions_network_load(tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / "resnet.pth")
    defense = StandardModule(functools.partial(TorchvisionClassifier, name="resnet18"), spec="cifar10")
    load_weights(defense, tmp_path / "resnet.pth", complete=True)
    assert torch.equal(defense.classifier.head.weight, torch.load(tmp_path / "resnet.pth")["fc.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"net": {"a": torch.ones(1)}, "ema": {"a": torch.ones(1)}, "epoch": 3}, "holds net, ema, where one state"),
        ({"epoch": 3, "history": [0.1]}, "holds epoch, history, where one state dict is needed"),
        ({"encoder.weight": torch.ones(1)}, "no classifier.features.fc1.weight but encoder.weight; change"),
    ],
)
def test_a_file_without_the_networks_weights_is_described(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load_weights(small(), tmp_path / "a.pth", complete=True)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ([16], r"classifier.features.fc1.weight has shape \(32, 64\) where \(16, 64\)"),
        ([32, 8], r"\(10, 8\)"),
        ([], r"\(10, 64\)"),
    ],
)
def test_weights_of_another_architecture_are_refused_and_change_nothing(hidden, message):
    defense = StandardModule(functools.partial(MLP, hidden=hidden), spec="digits")
    before = {name: value.clone() for name, value in defense.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(defense, GOLDEN / "digits_mlp.safetensors", complete=True)
    assert "--model.weights" in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in defense.state_dict().items())


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    torch.save({"state_dict": Payload(str(tmp_path / "ran"))}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="pickled Python objects"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload is real"


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("size", [0, 10, 3000])
def test_a_truncated_file_is_refused(tmp_path, suffix, size):
    path = tmp_path / f"a{suffix}"
    if suffix == ".ckpt":
        torch.save(small().state_dict(), path)
    else:
        save_file(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        read_checkpoint(path)


def test_a_missing_file_and_a_list_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "none.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.ckpt")


def test_networks_are_classifiers():
    assert issubclass(OwnNetwork, Classifier)
