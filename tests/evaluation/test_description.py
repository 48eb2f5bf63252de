"""What tells networks of the same weights apart, and what does not."""

import json
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_advdef.defenses import StandardModule
from lightning_advdef.evaluation.description import describe_network
from lightning_advdef.models import MLP
from tests.toys import Foreign


@dataclass
class Settings:
    sigma: float = 0.1


class Own:
    def __init__(self, **attributes):
        vars(self).update(attributes)


def linear(value):
    """A module whose weights are not those of another value."""
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, value)
    return module


class Answering(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4))
        for name, value in attributes.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.1, 0.2),
        ("soft", "hard"),
        (True, False),
        (None, 3),
        ((1, 2), (1, 3)),
        ({"levels": 2}, {"levels": 4}),
        (Settings(), Settings(sigma=0.2)),
        (torch.relu, torch.sigmoid),
        (nn.functional.relu, nn.functional.silu),
        (partial(nn.functional.leaky_relu, negative_slope=0.1), partial(nn.functional.leaky_relu, negative_slope=0.2)),
        (nn.ReLU(), nn.Sigmoid()),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (np.zeros(3), np.ones(3)),
        (np.zeros(4), np.zeros((2, 2))),
        (Own(sign=1), Own(sign=-1)),
        (Own(within=Own(table=torch.zeros(2))), Own(within=Own(table=torch.ones(2)))),
        (SimpleNamespace(sign=1), SimpleNamespace(sign=-1)),
        ([linear(1)], [linear(2)]),
    ],
)
@pytest.mark.parametrize("name", ["setting", "_setting"])
def test_attributes_of_any_submodule_are_told(one, other, name):
    texts = set()
    for value in (one, other):
        network = Answering()
        setattr(network.inner[0], name, value)
        texts.add(json.dumps(describe_network(network)))
    assert len(texts) == 2


def test_what_holds_itself_is_told_once():
    network, own = Answering(), Own()
    own.itself = own
    network.setting = [network, own]
    assert describe_network(network)["layers"]["self"].endswith("[None, {'Own': {'itself': None}}]}")


def test_each_of_many_objects_that_hold_each_other_is_told_once():
    owns = [Own() for _ in range(12)]
    for own in owns:
        own.others = [each for each in owns if each is not own]
    network = Answering(owns=owns, chain=[])
    for _ in range(500):
        network.chain = [network.chain]
    text = json.dumps(describe_network(network))
    assert text.count("Own") == 12
    assert len(text) < 5000


def test_attributes_without_values_are_left_out():
    class Strange:
        def __getattr__(self, name):
            raise KeyError(name)

    @dataclass
    class Unset:
        later: int = field(init=False)

    nothing = [torch.empty(2, device="meta"), torch.eye(2).to_sparse()]
    network = Answering(strange=Strange(), unset=Unset(), nothing=nothing, conjugate=torch.eye(2).cfloat().conj())
    text = describe_network(network)["layers"]["self"]
    assert "'later': None" in text
    assert "'nothing': [None, None]" in text


def test_a_hook_before_the_pass_hides_no_tensor():
    texts = set()
    for table in (torch.zeros(2), torch.ones(2)):
        layer = nn.Linear(2, 2)
        layer.register_forward_pre_hook(lambda module, inputs: None)
        layer.table = table
        texts.add(json.dumps(describe_network(layer)))
    assert len(texts) == 2


def test_what_differs_between_two_runs_is_left_out():
    class Named(Answering):
        def extra_repr(self):
            return f"inner={self.tool}"

    made = torch.rand(3, requires_grad=True) * 2
    tools = [Named(tool=object(), chosen=lambda images: images, made=value) for value in (made, made + 1)]
    assert repr(tools[0].tool) != repr(tools[1].tool)
    assert describe_network(tools[0]) == describe_network(tools[1])


@pytest.mark.parametrize(
    "module",
    [
        Foreign(),
        nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(64, 4))),
        nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 4))),
        nn.Sequential(nn.Flatten(2), nn.Unflatten(1, (1,)), nn.Flatten(1, 2), nn.LSTM(64, 4)),
    ],
    ids=["Foreign", "spectral norm", "weight norm", "LSTM"],
)
def test_use_and_mode_change_nothing(module):
    before = describe_network(module.eval())
    with torch.no_grad():
        module.train()(torch.rand(2, 1, 8, 8))
    assert describe_network(module) == before


def test_of_a_defense_its_arguments_are_told_but_for_those_of_training():
    def defense(**options):
        return describe_network(StandardModule(partial(MLP, hidden=[8]), spec="digits", **options))

    plain = defense()
    assert plain["model"]["votes"] == 1
    assert defense(votes=2) != plain
    assert defense(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5), weights="a.ckpt") == plain


def test_networks_that_no_setting_tells_apart_are_told_by_their_layers():
    modules = [
        StandardModule(lambda spec, kind=kind: nn.Sequential(MLP(spec, hidden=[8]), kind()), spec="digits")
        for kind in (nn.Identity, nn.Tanh)
    ]
    first, second = map(describe_network, modules)
    assert first["model"] == second["model"]
    assert first["layers"] != second["layers"]
    assert first["layers"]["classifier.0.head"].startswith("Linear(in_features=8, out_features=10, bias=True)")
