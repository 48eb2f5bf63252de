"""Learning rates of the configurations, epoch by epoch, against the rules of the authors' codes."""

import pytest
import torch
import yaml

from tests.conftest import ROOT

# first epochs, counted from 1, with a tenth of the learning rate before: `if epoch >= 75: lr = args.lr * 0.1`
DROPS = {
    "trades_cifar10": (75, 90, 100),
    "trades_mnist": (55,),
    "trades_awp_cifar10": (100, 150),
    "trades_awp_mnist": (55,),
    "mart_cifar10": (75, 90, 100),
    "mart_mnist": (55,),
}


@pytest.mark.parametrize("name", DROPS)
def test_learning_rate_falls_in_the_epochs_of_the_authors(name):
    config = yaml.safe_load((ROOT / "configs" / "adversarial_training" / f"{name}.yaml").read_text())
    settings = config["model"]["init_args"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], **settings["optimizer"]["init_args"])
    start = optimizer.param_groups[0]["lr"]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, **settings["scheduler"]["init_args"])
    for epoch in range(1, config["trainer"]["max_epochs"] + 1):
        expected = start * 0.1 ** sum(epoch >= first for first in DROPS[name])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected), epoch
        optimizer.step()
        scheduler.step()
