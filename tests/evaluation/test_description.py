"""What tells networks of the same weights apart, and what does not."""

import json
from dataclasses import dataclass
from functools import partial

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
    ],
)
def test_attributes_of_any_submodule_are_told(one, other):
    texts = set()
    for value in (one, other):
        network = Answering()
        network.inner[0].setting = value
        texts.add(json.dumps(describe_network(network)))
    assert len(texts) == 2


def test_what_differs_between_two_runs_is_left_out():
    class Named(Answering):
        def extra_repr(self):
            return f"inner={self.tool}"

    tools = [Named(tool=object(), chosen=lambda images: images, drawn=torch.rand(3)) for _ in range(2)]
    assert repr(tools[0].tool) != repr(tools[1].tool)
    assert describe_network(tools[0]) == describe_network(tools[1])


def test_use_and_mode_change_nothing():
    module = Foreign().eval()
    before = describe_network(module)
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
