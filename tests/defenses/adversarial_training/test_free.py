"""Free adversarial training against a hand-written loop of the paper's algorithm 1."""

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.attacks import FGM, FGSM
from lightning_advdef.defenses import AdversarialTrainingModule
from lightning_advdef.defenses.adversarial_training.free import CarriedPerturbation
from lightning_advdef.defenses.adversarial_training.objectives import TRADES
from tests.defenses.adversarial_training.helpers import SmallNetwork, quiet_trainer, seeded_module, toy

EPS = 0.1


def free_module(attack=None, **settings):
    def make():
        return AdversarialTrainingModule(
            SmallNetwork,
            FGSM(EPS) if attack is None else attack,
            replays=3,
            spec="digits",
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
            **settings,
        )

    return seeded_module(make)


def batches_of(data, epoch):
    """The minibatches of an epoch, of 4, 4 and 2 images."""
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def by_hand(epochs, move):
    """The paper's loop; ``move`` gives the new perturbation from the old one and its gradient."""
    network = free_module().classifier.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    carried = torch.zeros(4, 1, 8, 8)
    for epoch in range(epochs):
        for images, labels, _ in batches_of(toy(), epoch):
            for _ in range(3):
                delta = carried[: len(images)].clone().requires_grad_()
                optimizer.zero_grad()
                F.cross_entropy(network((images + delta).clamp(0, 1)), labels).backward()
                optimizer.step()
                carried[: len(images)] = move(delta.detach(), delta.grad)
    return network.state_dict(), carried


def sign_step(delta, gradient):
    return (delta + EPS * gradient.sign()).clamp(-EPS, EPS)


def l2_step(delta, gradient):
    def size(x):
        return x.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)

    moved = delta + 0.5 * gradient / size(gradient)
    return moved * (0.5 / size(moved)).clamp(max=1)


@pytest.mark.parametrize(("attack", "move"), [(FGSM(EPS), sign_step), (FGM(0.5), l2_step)])
def test_training_is_the_loop_of_the_paper(tmp_path, attack, move):
    module = free_module(attack)
    quiet_trainer(tmp_path, max_epochs=2).fit(module, toy())
    expected, carried = by_hand(2, move)
    torch.testing.assert_close(module.classifier.state_dict(), expected)
    torch.testing.assert_close(module._carried.values, carried)


def test_a_resumed_training_goes_on_with_the_perturbation(tmp_path):
    whole = free_module()
    quiet_trainer(tmp_path, max_epochs=2).fit(whole, toy())
    first = quiet_trainer(tmp_path, max_epochs=1)
    first.fit(free_module(), toy())
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = free_module()
    quiet_trainer(tmp_path, max_epochs=2).fit(resumed, toy(), ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(resumed._carried.values, whole._carried.values)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_weights_alone_carry_no_perturbation(tmp_path):
    trainer = quiet_trainer(tmp_path)
    trainer.fit(free_module(), toy())
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert "carried_perturbation" not in torch.load(tmp_path / "model.ckpt", weights_only=True)


def test_mixed_precision_and_perturbed_weights_keep_the_budget(tmp_path):
    module = free_module(objective=TRADES(), weight_perturbation=0.01)
    quiet_trainer(tmp_path, precision="bf16-mixed").fit(module, toy())
    assert module._carried.values.abs().max() == pytest.approx(EPS)
    assert module._carried.values.dtype == torch.float32


def test_a_larger_batch_starts_its_further_places_at_zero():
    carried = CarriedPerturbation(FGSM(EPS))
    carried.values = torch.full((2, 1, 1, 1), 0.05)
    assert carried.apply(torch.full((3, 1, 1, 1), 0.5)).flatten().tolist() == pytest.approx([0.55, 0.55, 0.5])


def test_accumulated_gradients_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"leave out --trainer\.accumulate_grad_batches"):
        quiet_trainer(tmp_path, accumulate_grad_batches=2).fit(free_module(), toy())
