"""The dense bottleneck of Table 7 and that of the notebooks."""

import pytest
import torch

from lightning_advdef.models import FeatureRestorer

NOTEBOOK = {"hidden": [256, 128, 64, 32], "batch_norm": True, "skips": True}


def widths(layers):
    return [(layer[0].in_features, layer[0].out_features) for layer in layers]


def test_table_7_has_337184_parameters():
    assert sum(parameter.numel() for parameter in FeatureRestorer(512).parameters()) == 337_184


@pytest.mark.parametrize("features", [256, 512, 2048])
def test_inner_widths_are_those_of_table_7_for_any_embedding(features):
    restorer = FeatureRestorer(features)
    assert widths(restorer.down) == [(features, 256), (256, 128), (128, 32)]
    assert widths(restorer.up) == [(32, 128), (128, 256), (256, features)]


def test_every_layer_ends_in_relu():
    torch.manual_seed(0)
    restorer, features = FeatureRestorer(6, [5, 3]), torch.randn(9, 6)
    expected = features
    for layer in [*restorer.down, *restorer.up]:
        expected = (expected @ layer[0].weight.T + layer[0].bias).clamp(min=0)
    torch.testing.assert_close(restorer(features), expected)
    assert (expected == 0).any()


def test_notebook_adds_layers_of_equal_width():
    torch.manual_seed(0)
    restorer, features = FeatureRestorer(6, [5, 4, 2], batch_norm=True, skips=True).eval(), torch.randn(9, 6)

    def layer(part, values):
        return part[1](values @ part[0].weight.T + part[0].bias).clamp(min=0)

    five = layer(restorer.down[0], features)
    four = layer(restorer.down[1], five)
    found = layer(restorer.up[0], layer(restorer.down[2], four)) + four
    found = layer(restorer.up[1], found) + five
    torch.testing.assert_close(restorer(features), layer(restorer.up[2], found))


def test_notebook_normalises_after_every_dense_layer():
    norms = [layer for layer in FeatureRestorer(512, **NOTEBOOK).modules() if isinstance(layer, torch.nn.BatchNorm1d)]
    assert [norm.num_features for norm in norms] == [256, 128, 64, 32, 64, 128, 256, 512]


@pytest.mark.parametrize(("features", "hidden"), [(0, [4]), (4, []), (4, [0])])
def test_widths_below_one_are_refused(features, hidden):
    with pytest.raises(ValueError, match="widths of at least 1"):
        FeatureRestorer(features, hidden)
