"""A small network with batch norm, data for it, and a Trainer that says nothing."""

import torch
from pytorch_lightning import Trainer
from torch import nn

from lightning_advdef.models import Classifier
from tests.toys import Toy


class SmallNetwork(Classifier):
    """Convolution, batch norm and a linear head for images of 1x8x8."""

    def __init__(self, spec, normalization=None):
        super().__init__(spec, normalization)
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(27, spec.classes)


def seeded_module(make, seed=0):
    """A module whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def quiet_trainer(folder, **settings):
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "default_root_dir": folder,
        }
        | settings
    )


def toy(**settings):
    return Toy(**{"count": 10, "batch_size": 4, "val_fraction": 0.0} | settings)
