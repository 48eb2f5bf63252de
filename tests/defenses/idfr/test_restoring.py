"""The restorer's embeddings, loss and validation."""

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.attacks import BIM, FGSM, FullGradient
from lightning_advdef.defenses.fixed_examples import attacked
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
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


def test_networks_embed_in_the_precision_of_the_training(runs, tmp_path):
    found = []
    for precision in ("32-true", "bf16-mixed"):
        module = module_of(stage="restore", weights=runs["denoise"])
        quiet_trainer(tmp_path, precision=precision).fit(module, toy())
        found.append(module.part_training.pools.embeddings.sort(dim=0).values)
    assert found[1].dtype == torch.float32
    # a sign that turns in the attack moves single embeddings by more
    assert 0 < (found[0] - found[1]).abs().mean() < 0.01


def test_accuracy_on_adversarial_validation_images_is_logged_with_and_without_the_restorer(runs, tmp_path):
    attack = FGSM(0.2)
    module = module_of(stage="restore", weights=runs["denoise"], attacks=[attack], cache=str(tmp_path / "cache"))
    data = toy(count=30, val_fraction=0.5)
    trainer = quiet_trainer(tmp_path, limit_val_batches=1.0)
    trainer.fit(module, data)
    batch = Batch(*data.val_dataloader().dataset.__getitems__([*range(15)]))
    adversarial = attacked(FullGradient(module.classifier.eval()), attack, batch, rng_of(batch), "prediction")
    module.eval()
    for name, parts in (("adversarial_accuracy", "all"), ("unrestored_accuracy", "denoiser")):
        right = module.answering(parts)(adversarial, None).argmax(dim=1) == batch.labels
        assert trainer.callback_metrics[f"val/{name}"] == pytest.approx(float(right.float().mean()))
