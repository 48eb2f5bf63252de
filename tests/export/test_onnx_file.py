"""What can be a graph, and what says that it cannot."""

import functools

import onnxruntime
import pytest
import torch
from torch import nn

from lightning_advdef.defenses import (
    FeatureSmoothingModule,
    FeatureSqueezingModule,
    IDFRModule,
    PurificationModule,
    RIDEModule,
    StandardModule,
)
from lightning_advdef.export import write_onnx
from lightning_advdef.models import MLP
from lightning_advdef.purifiers import JPEG, BitDepth, Chain, GaussianBlur, Median, RandomResizePad, TotalVariation

NETWORK = functools.partial(MLP, hidden=[8])
SPEC = "1x8x8x10"


def purification(purifier):
    return PurificationModule(NETWORK, purifier, spec=SPEC)


def smoothing(**settings):
    return FeatureSmoothingModule(NETWORK, spec=SPEC, tap="features.fc1", delta=1.0, **settings)


@pytest.mark.parametrize(
    "defense",
    [
        StandardModule(NETWORK, spec=SPEC),
        IDFRModule(NETWORK, spec=SPEC, stage="restore"),
        purification(Chain([BitDepth(3), GaussianBlur(), Median()])),
    ],
    ids=lambda defense: type(defense).__name__,
)
def test_deterministic_tensor_operations_can_be_a_graph(defense):
    assert defense.untraceable is None


@pytest.mark.parametrize(
    ("defense", "reason"),
    [
        (purification(RandomResizePad()), "it draws random numbers for each image"),
        (purification(TotalVariation(keep=0.5)), "it is computed by scikit-image"),
        (purification(Chain([GaussianBlur(), JPEG(), Median()])), "codec"),
        (smoothing(), "it draws random numbers"),
        (smoothing(noise_seed=0), "gradient steps until each image is smooth"),
        (RIDEModule(NETWORK, spec=SPEC), "it trains a network on each image"),
        (FeatureSqueezingModule(NETWORK, [BitDepth(1)], spec=SPEC), "which images it rejects"),
    ],
    ids=lambda case: case if isinstance(case, str) else type(case).__name__,
)
def test_what_cannot_says_why_and_what_can(tmp_path, defense, reason):
    with pytest.raises(
        ValueError, match=f"^{type(defense).__name__} cannot be exported, since .*{reason}.*--undefended"
    ):
        write_onnx(defense, torch.rand(2, 1, 8, 8), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    """Answers by a rule that looks at the pixels."""

    def forward(self, images):
        return images.flatten(1) if images.mean() > 0.5 else -images.flatten(1)


@pytest.mark.slow
def test_votes_of_a_deterministic_purifier_can_be_a_graph(tmp_path):
    defense, images = PurificationModule(NETWORK, BitDepth(3), votes=3, spec=SPEC).eval(), torch.rand(5, 1, 8, 8)
    write_onnx(defense, images[:2], tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), defense(images), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_network_that_branches_on_its_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^Branching cannot be exported, since it cannot be traced: [^\n]+$"):
        write_onnx(Branching(), torch.rand(2, 1, 8, 8), tmp_path / "model.onnx")
