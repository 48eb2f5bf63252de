"""Lightning's averages of weights, as a defense trains, is watched and is stored with them."""

import functools
import json
from typing import ClassVar

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging

from lightning_advdef.attacks import PGD
from lightning_advdef.callbacks import RobustnessEvaluation
from lightning_advdef.checkpoints import load_defense
from lightning_advdef.defenses import StandardModule
from lightning_advdef.evaluation import Scenario
from lightning_advdef.models import MLP
from tests.callbacks.test_robustness import small_digits, trainer_of
from tests.test_cli import TRAINING, assert_same_training

DECAY = 0.9
EMA = {"class_path": "EMAWeightAveraging", "init_args": {"decay": DECAY}}


class Averages(Callback):
    """Averages of the weights of the head by the formula, after each step."""

    found: ClassVar[list] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        weight = pl_module.classifier.head.weight.detach()
        self.found.append(DECAY * self.found[-1] + (1 - DECAY) * weight if self.found else weight.clone())


def watched_defense(seen):
    """A defense that notes images, logits and weights of each pass in eval mode."""
    torch.manual_seed(0)
    defense = StandardModule(functools.partial(MLP, hidden=[16]), spec="digits")

    def note(network, images, logits):
        if not network.training:
            seen.append((images[0].detach(), logits.detach(), network.head.weight.detach().clone()))

    defense.classifier.register_forward_hook(note)
    return defense


def averaging():
    return EMAWeightAveraging(decay=DECAY)


@pytest.mark.parametrize("averaging_comes", ["first", "last"])
@pytest.mark.parametrize("batch_size", [3, 100], ids=["full batches", "a rest alone"])
def test_attacks_in_fit_see_the_averaged_weights(tmp_path, averaging_comes, batch_size):
    seen = []
    defense = watched_defense(seen)
    evaluation = RobustnessEvaluation([Scenario("pgd", PGD(0.1, steps=2))], every_n_epochs=1, batch_size=batch_size)
    callbacks = [averaging(), evaluation] if averaging_comes == "first" else [evaluation, averaging()]
    trainer_of(tmp_path, *callbacks, max_epochs=1, num_sanity_val_steps=0).fit(defense, datamodule=small_digits())
    assert len(seen) > 4, "two batches are validated, the others attacked"
    assert all(torch.equal(weight, defense.classifier.head.weight) for _, _, weight in seen)


def test_validation_in_mixed_precision_uses_the_averaged_weights(tmp_path):
    seen = []
    defense = watched_defense(seen)
    options = {"precision": "bf16-mixed", "max_epochs": 1, "num_sanity_val_steps": 1}
    trainer_of(tmp_path, averaging(), **options).fit(defense, datamodule=small_digits())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for images, logits, _ in seen[-2:]:
            assert torch.equal(logits, defense.classifier(images))


def test_checkpoints_hold_the_average_and_weights_loads_it(advdef, monkeypatch):
    monkeypatch.setattr(Averages, "found", [])
    callbacks = [{"class_path": f"{__name__}.Averages"}, EMA]
    folder = advdef.digits("fit", *TRAINING, f"--trainer.callbacks={json.dumps(callbacks)}")
    for path in (folder / "model.ckpt", folder / "checkpoints" / "last.ckpt"):
        weight = load_defense(path).classifier.head.weight
        torch.testing.assert_close(weight.detach(), Averages.found[-1])
        defense = StandardModule(functools.partial(MLP, hidden=[32]), spec="digits", weights=str(path))
        defense.setup("test")
        assert torch.equal(defense.classifier.head.weight, weight)


@pytest.mark.parametrize("step", [9, 13], ids=["behind an epoch", "within an epoch"])
def test_an_interrupted_fit_continues_to_the_same_average(advdef, step):
    def fit(*callbacks, **options):
        return advdef.digits("fit", *TRAINING, f"--trainer.callbacks={json.dumps([EMA, *callbacks])}", **options)

    whole = fit(name="whole")
    with pytest.raises(RuntimeError, match="power"):
        fit({"class_path": "tests.test_cli.Interrupt", "init_args": {"step": step}})
    resumed = [f"--trainer.callbacks={json.dumps([EMA])}", "--ckpt_path=last"]
    assert_same_training(whole, advdef.digits("fit", *TRAINING, *resumed))
