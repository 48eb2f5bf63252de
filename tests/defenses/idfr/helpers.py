"""Small parts on digits, and their trainings."""

import functools

import torch

from lightning_advdef.attacks import FGSM
from lightning_advdef.checkpoints import load_defense
from lightning_advdef.defenses import IDFRModule, StandardModule
from lightning_advdef.defenses.idfr.adversaries import Adversaries
from lightning_advdef.models import FeatureRestorer, InputDenoiser
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.defenses.adversarial_training.helpers import SmallNetwork, quiet_trainer, seeded_module, toy

DENOISER = functools.partial(InputDenoiser, width=2)
RESTORER = functools.partial(FeatureRestorer, hidden=[8, 4])


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def module_of(seed=0, network=SmallNetwork, **settings):
    settings = {
        "denoiser": DENOISER,
        "restorer": RESTORER,
        "attacks": [FGSM(0.1)],
        "spec": "digits",
        "optimizer": adam,
    } | settings
    return seeded_module(lambda: IDFRModule(network, **settings), seed)


def batch_of(count=6):
    generator = torch.Generator().manual_seed(5)
    return Batch(torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 10, torch.arange(count))


def rng_of(batch):
    return SampleRNG.for_images(batch.indices)


def adversaries_of(module):
    """The attacks of its recipe on its target, without a cache."""
    recipe = module.part_training.recipe
    return Adversaries(recipe, recipe.source(module.classifier))


def begun(module, folder, **data):
    """At the start of a fit on small data, before the first step."""
    quiet_trainer(folder, max_epochs=0).fit(module, toy(**data))
    module.on_fit_start()
    return module


def saved(module, path, data=None, **settings):
    """Trained for an epoch, and where its weights are."""
    trainer = quiet_trainer(path.parent, **settings)
    trainer.fit(module, data or toy())
    trainer.save_checkpoint(path, weights_only=True)
    return str(path)


def target_of(folder, network=SmallNetwork, seed=3):
    """Weights of an independent training."""
    return saved(seeded_module(lambda: StandardModule(network, spec="digits"), seed), folder / "target.ckpt")


def loaded(path):
    """The defense in a checkpoint."""
    return load_defense(path, [SmallNetwork])


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    """Parts of which a weight or buffer is another than before."""
    now = module.state_dict()
    return {name.partition(".")[0] for name, value in before.items() if not torch.equal(value, now[name])}
