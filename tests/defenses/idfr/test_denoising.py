"""The denoiser's loss."""

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.attacks import FGSM, FullGradient
from lightning_advdef.defenses.fixed_examples import attacked
from tests.defenses.idfr.helpers import batch_of, begun, module_of, rng_of


def written_again(module, batch, rng, loss, rounds):
    """Eq. 3 with half of the weight on the adversarial images, from separate passes in eval mode."""
    target = module.classifier
    adversarial = attacked(FullGradient(target), FGSM(0.1), batch, rng.stream("adversary"), "prediction")
    noisy = [
        (batch.images + 8 / 255 * rng.stream("noise", number).normal(1, 8, 8)).clamp(0, 1) for number in range(rounds)
    ]

    def one(images):
        denoised = module.denoiser(images)
        if loss == "ce":
            return F.cross_entropy(target(denoised), batch.labels)
        clean, found = (target.features(target.normalize(each)) for each in (batch.images, denoised))
        return (found - clean).abs().mean()

    if not noisy:
        return one(adversarial)
    return one(adversarial) / 2 + sum(one(images) for images in noisy) / len(noisy) / 2


@pytest.mark.parametrize("loss", ["ce", "feature_l1"])
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_denoiser_loss_is_that_of_adversarial_and_noisy_images(runs, tmp_path, loss, rounds):
    module = module_of(denoiser_loss=loss, noise_rounds=rounds, weights=runs["target"])
    begun(module, tmp_path).eval()
    batch = batch_of()
    found = module.loss(batch, rng_of(batch))["loss"]
    torch.testing.assert_close(found, written_again(module, batch, rng_of(batch), loss, rounds))
    found.backward()
    assert all(parameter.grad is not None for parameter in module.denoiser.parameters())
    assert all(parameter.grad is None for parameter in module.classifier.parameters())
