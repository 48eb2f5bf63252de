"""The restorer's embeddings, loss and distributed training."""

import numpy as np
import torch
import torch.nn.functional as F

from lightning_advdef.attacks import BIM, FGSM, FullGradient
from lightning_advdef.defenses.fixed_examples import attacked
from lightning_advdef.rng import SampleRNG
from tests.defenses.adversarial_training.helpers import quiet_trainer, toy
from tests.defenses.idfr.helpers import batch_of, begun, module_of, rng_of


def test_restorer_loss_is_the_cross_entropy_of_restored_mixtures(runs, tmp_path):
    module = module_of(stage="restore", weights=runs["denoise"])
    begun(module, tmp_path)
    batch = batch_of()
    mixed = module.part_training.pools.mixtures(batch.labels, rng_of(batch), "same_class")
    expected = F.cross_entropy(module.classifier.head(module.restorer(mixed)), batch.labels)
    torch.testing.assert_close(module.loss(batch, rng_of(batch))["loss"], expected)


def test_pools_hold_embeddings_of_clean_and_adversarial_images_behind_the_denoiser(runs, tmp_path):
    module = module_of(stage="restore", weights=runs["denoise"], attacks=[FGSM(0.1), BIM(0.1, steps=2)])
    quiet_trainer(tmp_path).fit(module, toy())
    data = toy()
    data.setup("fit")
    images, labels, indices = data.train_dataloader().dataset.__getitems__([*range(10)])
    rng = SampleRNG.for_images(indices, 0, "train").stream("adversary")
    surrogate = FullGradient(module.classifier)
    batch = batch_of()._replace(images=images, labels=labels, indices=indices)
    versions = [
        images,
        *(attacked(surrogate, attack, batch, rng, "prediction") for attack in module.part_training.recipe.attacks),
    ]
    module.eval()
    expected = [module.classifier.features(module.classifier.normalize(module.denoiser(each))) for each in versions]
    found = module.part_training.pools
    assert found.embeddings.shape == (30, 27)
    for label in range(10):
        own = torch.cat([each[labels == label] for each in expected])
        start = found.starts[label]
        pool = found.embeddings[start : start + found.counts[label].sum()]
        torch.testing.assert_close(pool.sum(dim=0), own.sum(dim=0))
    logits = module.classifier.head(torch.cat(expected))
    assert found.counts[:, 0].sum() == (logits.argmax(dim=1) == labels.repeat(3)).sum()


def train_together(folder, weights, devices):
    """Weights of a restorer after two epochs of one batch of 8 images, on adversarial images of a shared folder."""
    module = module_of(stage="restore", weights=weights, cache=str(folder / "cache"))
    strategy = {"devices": 2, "strategy": "ddp"} if devices == 2 else {}
    quiet_trainer(folder, max_epochs=2, **strategy).fit(module, toy(count=8, batch_size=8))
    return {name: value.numpy() for name, value in module.restorer.state_dict().items()}


def test_two_processes_restore_as_one(runs, tmp_path, ddp):
    expected = train_together(tmp_path / "one", runs["denoise"], devices=1)
    task = "tests.defenses.idfr.test_restoring:train_together"
    ranks = ddp(task, folder=tmp_path / "two", weights=runs["denoise"], devices=2)
    start = module_of(stage="restore").restorer.state_dict()
    for name, value in expected.items():
        for rank in ranks:
            np.testing.assert_allclose(rank[name], value, rtol=1e-3, atol=1e-5)
    assert all(np.abs(expected[name] - start[name].numpy()).max() > 1e-4 for name in start if "weight" in name)
