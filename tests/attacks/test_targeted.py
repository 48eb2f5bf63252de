import pytest
import torch

from lightning_advdef.attacks import BIM, FGM, FGSM, MIM, PGD, CarliniWagnerLinf, Noise, Targeted
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.attacks.surrogates import FullGradient
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import Linear, Recording, random_linear

LOGITS = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 0, 3])

# attacks that are given a target


@pytest.mark.parametrize("attack", [FGSM(0.3), FGM(2.0), BIM(0.3), PGD(0.3), MIM(0.3), PGD(2.0, "l2"), PGD(9, "l1")])
def test_a_given_class_is_reached_on_a_linear_network(attack):
    """The target's boundary with the class that wins is the only one on the way for two classes."""
    network, images = random_linear(2, 48), torch.full((2, 3, 4, 4), 0.5)
    targets = torch.tensor([0, 1])
    found = attack(network, images, 1 - targets, target_labels=targets)
    assert torch.equal(network(found).argmax(dim=1), targets)


@pytest.mark.parametrize("attack", [FGSM(0.01), FGM(0.05), BIM(0.05), PGD(0.05), MIM(0.05), PGD(0.2, "l2")])
def test_the_loss_of_the_target_falls(network, images, labels, attack):
    targets = (labels + 1) % 4
    found = attack(Recording(network, exact=False), images, labels, target_labels=targets)
    with torch.no_grad():
        before, after = (-cross_entropy(network(x), Goal(labels, targets)) for x in (images, found))
    assert after.mean() < before.mean()
    assert (after <= before + 1e-5).sum() >= 14


@pytest.mark.parametrize("attack", [PGD(0.1), MIM(0.1), CarliniWagnerLinf(0.1)])
def test_another_wrong_class_does_not_end_the_search(network, images, labels, attack):
    """The last three images are misclassified from the start, and are moved all the same."""
    predicted = network(images).argmax(dim=1)
    targets = torch.where(predicted == (labels + 1) % 4, (labels + 2) % 4, (labels + 1) % 4)
    found = attack(network, images, labels, target_labels=targets)
    assert (found[-3:] != images[-3:]).flatten(1).any(dim=1).all()


# which class is chosen


@pytest.mark.parametrize(("choose", "expected"), [("least_likely", [3, 1, 2]), ("runner_up", [2, 3, 0])])
def test_scores_of_the_clean_image_rank_the_wrong_classes(choose, expected):
    rng = SampleRNG.for_images(torch.arange(3))
    assert Targeted(PGD(0.1), choose).targets(LOGITS, LABELS, rng).tolist() == expected


def test_random_targets_are_all_wrong_classes_alike():
    labels = torch.arange(9000) % 10
    rng = SampleRNG.for_images(torch.arange(9000))
    targets = Targeted(PGD(0.1)).targets(torch.zeros(9000, 10), labels, rng)
    counts = torch.bincount(labels * 10 + targets, minlength=100).view(10, 10)
    assert counts.diagonal().sum() == 0
    assert counts[~torch.eye(10, dtype=torch.bool)].min() > 60


@pytest.mark.parametrize("choose", ["random", "least_likely", "runner_up"])
def test_of_two_classes_the_other_is_chosen(choose):
    labels = torch.tensor([0, 1, 1])
    targets = Targeted(PGD(0.1), choose).targets(LOGITS[:, :2], labels, SampleRNG.for_images(torch.arange(3)))
    assert torch.equal(targets, 1 - labels)


@pytest.mark.parametrize("attack", [PGD(0.1, restarts=2), MIM(0.5, "l2"), CarliniWagnerLinf(0.1)])
def test_it_is_the_inner_attack_with_the_chosen_targets(network, images, labels, attack):
    with torch.no_grad():
        logits = network(images)
    targets = Targeted(attack, "least_likely").targets(logits, labels, SampleRNG.default(images))
    expected = attack(network, images, labels, target_labels=targets)
    assert torch.equal(Targeted(attack, "least_likely")(network, images, labels), expected)


def test_random_targets_belong_to_the_image(network, images, labels):
    attack, rng = Targeted(BIM(0.2)), SampleRNG.for_images(torch.arange(16), seed=3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    whole = attack(network, images, labels, rng)
    torch.testing.assert_close(attack(network, images[order], labels[order], rng[order]), whole[order])


# budget, cost, settings


def test_the_budget_is_that_of_the_inner_attack():
    attack = Targeted(PGD("8/255", "l2", steps=3))
    assert (attack.eps, attack.norm) == (8 / 255, "l2")
    assert attack.with_eps(0.5) == Targeted(PGD(0.5, "l2", steps=3))


def test_images_that_are_never_fooled_cost_what_is_announced(images):
    surrogate = FullGradient(Linear(torch.full((2, 72), 1e-3), torch.tensor([9.0, 0.0])))
    passes = surrogate.start_counting(16, images.device)
    attack = Targeted(PGD(0.1, steps=4))
    attack(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert passes.forward.tolist() == [attack.cost(2).forward] * 16 == [6] * 16
    assert passes.backward.tolist() == [attack.cost(2).backward] * 16 == [4] * 16


def test_attacks_without_a_targeted_variant_are_refused():
    with pytest.raises(ValueError, match="Noise has no targeted variant"):
        Targeted(Noise(0.1))
    with pytest.raises(ValueError, match="Targeted has no targeted variant"):
        Targeted(Targeted(PGD(0.1)))


def test_choices_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match="choose must be random or least_likely or runner_up, got 'best'"):
        Targeted(PGD(0.1), "best")


def test_targets_may_not_be_given_twice(network, images, labels):
    with pytest.raises(ValueError, match="Targeted has no targeted variant"):
        Targeted(PGD(0.1))(network, images, labels, target_labels=labels)
