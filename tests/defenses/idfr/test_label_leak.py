"""The probe finds a defense that reads the perturbation, and clears one that reads the image."""

import pytest
import torch
from torch import nn

from lightning_advdef.attacks import FGSM
from lightning_advdef.attacks.base import FixedBudgetAttack
from lightning_advdef.defenses.idfr import label_leak

COUNT = 24
LABELS = torch.arange(COUNT) % 3


class Marking(FixedBudgetAttack):
    """Writes the label into the first pixels: a perturbation that tells it."""

    def search(self, surrogate, images, goal, rng, ball):
        marks = nn.functional.one_hot(goal.labels, 3).view(-1, 1, 1, 3) * self.eps
        return images + nn.functional.pad(marks, (0, 1, 0, 3))


class Brightening(FixedBudgetAttack):
    """Adds the same to all pixels."""

    def search(self, surrogate, images, goal, rng, ball):
        return self.clip(images + self.eps)


class Pixels(nn.Module):
    """Logits are three pixels of a row."""

    def __init__(self, row):
        super().__init__()
        self.row = row
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        return self.scale * images[:, 0, self.row, :3]


@pytest.fixture
def images():
    """The label stands in the last row; the first is grey."""
    images = torch.full((COUNT, 1, 4, 4), 0.5)
    images[torch.arange(COUNT), 0, 3, LABELS] = 0.8
    return images


def test_a_reader_of_perturbations_is_found(images):
    found = label_leak(Pixels(0), Marking(0.1), images, LABELS)
    assert found.blank == found.other == 1.0
    assert found.blank_without == found.other_without == pytest.approx(1 / 3), "all logits alike give class 0"


def test_a_reader_of_images_is_cleared(images):
    found = label_leak(Pixels(3), Marking(0.1), images, LABELS)
    assert found.other == found.other_without == 0.0
    assert found.blank == found.blank_without == pytest.approx(1 / 3)


def test_a_plain_attack_drives_away_from_the_label(images):
    assert label_leak(Pixels(3), FGSM(0.1), images, LABELS).blank == 0.0


def test_the_box_does_not_print_the_image_into_the_perturbation():
    images = torch.full((COUNT, 1, 4, 4), 0.5)
    images[torch.arange(COUNT), 0, 3, LABELS] = 1.0
    darkest = Pixels(3)
    darkest.scale.data.fill_(-1)
    assert label_leak(darkest, Brightening(0.1), images, LABELS).blank == pytest.approx(1 / 3)


@pytest.mark.parametrize("labels", [torch.arange(COUNT) % 3, (torch.arange(COUNT) > 18) * 1, torch.arange(COUNT) // 8])
def test_perturbations_move_to_images_of_another_class(labels):
    from lightning_advdef.defenses.idfr.label_leak import _of_another_class

    assert (labels[_of_another_class(labels)] != labels).all()


def test_one_class_alone_is_refused(images):
    with pytest.raises(ValueError, match="at least two classes"):
        label_leak(Pixels(0), FGSM(0.1), images, torch.zeros_like(LABELS))
