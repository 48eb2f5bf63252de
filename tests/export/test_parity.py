"""How an ONNX file is compared with PyTorch."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from lightning_advdef.export import Parity, compare_with_file
from lightning_advdef.types import Batch


def shifted(path, shift):
    """A file that flattens images of 1x1x2 and adds a shift to the first of two logits."""
    values = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 1, 2]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]),
    ]
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("Add", ["flat", "shift"], ["logits"])]
    constant = helper.make_tensor("shift", TensorProto.FLOAT, [2], [shift, 0.0])
    graph = helper.make_graph(nodes, "shifted", values[:1], values[1:], [constant])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def batches():
    images = torch.tensor([[0.2, 0.3], [0.5, 0.1], [0.0, 1.0], [0.75, 0.5], [0.6, 0.5]]).view(5, 1, 1, 2)
    labels = torch.zeros(5, dtype=torch.int64)
    return [Batch(images[rows], labels[rows], torch.arange(5)[rows]) for rows in (slice(0, 4), slice(4, 5))]


@pytest.mark.parametrize(("shift", "equal"), [(0.0, 5), (0.125, 4), (-0.25, 4), (-0.375, 3)])
def test_differences_and_equal_predictions_are_known(tmp_path, shift, equal):
    found = compare_with_file(nn.Flatten(), shifted(tmp_path / "m.onnx", shift), batches())
    assert found.images == 5
    assert found.difference == pytest.approx(abs(shift), abs=1e-6)
    assert found.equal == equal


def test_a_nan_is_a_difference(tmp_path):
    found = compare_with_file(nn.Flatten(), shifted(tmp_path / "m.onnx", float("nan")), batches())
    assert not found.holds(1e9)


@pytest.mark.parametrize(
    ("parity", "holds"),
    [
        (Parity(1000, 1e-3, 1000), True),
        (Parity(1000, 1.1e-3, 1000), False),
        (Parity(1000, 1e-3, 999), True),
        (Parity(1000, 1e-3, 998), False),
        (Parity(20, 0.0, 19), False),
    ],
)
def test_it_holds_within_the_tolerance_and_where_predictions_are_equal(parity, holds):
    assert parity.holds(1e-3) == holds
