import pytest
import torch

from lightning_advdef.attacks.tanh_box import TanhBox

LOW, HIGH = torch.tensor(0.2), torch.tensor(0.6)


@pytest.mark.parametrize("bounded", [True, False])
def test_variables_stand_for_the_pixels_they_were_made_of(bounded):
    box, pixels = TanhBox.between(LOW, HIGH, bounded), torch.linspace(0.2, 0.6, 41).view(1, 1, 1, 41)
    torch.testing.assert_close(box.pixels(box.variables(pixels))[0], pixels)


def test_variables_that_are_kept_stand_for_pixels_between_the_bounds():
    box = TanhBox.between(LOW, HIGH)
    variables = box.keep(torch.linspace(-9, 9, 100).view(1, 1, 1, 100))
    pixels, slopes = box.pixels(variables)
    torch.testing.assert_close(pixels.aminmax(), (LOW, HIGH))
    assert (slopes > 0.15).all()


def test_without_bounds_pixels_leave_them():
    box = TanhBox.between(LOW, HIGH, bounded=False)
    assert box.pixels(box.keep(torch.full((1, 1, 1, 1), 5.0)))[0] > 1


@pytest.mark.parametrize("bounded", [True, False])
def test_slopes_are_those_of_the_pixels_up_to_a_common_factor(bounded):
    box = TanhBox.between(LOW.double(), HIGH.double(), bounded)
    variables = torch.linspace(-1.4, 1.4, 20, dtype=torch.float64).view(1, 1, 1, 20).requires_grad_()
    pixels, slopes = box.pixels(variables)
    (expected,) = torch.autograd.grad(pixels.sum(), variables)
    torch.testing.assert_close(slopes * 0.2 / 0.9, expected)


def test_bounds_may_differ_between_images_and_pixels():
    low, high = torch.zeros(3, 1, 2, 2), torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    box = TanhBox.between(low, high)
    torch.testing.assert_close(box.pixels(torch.zeros(3, 1, 2, 2))[0], high / 2)
    torch.testing.assert_close(box[torch.tensor([2, 0])].pixels(torch.zeros(2, 1, 2, 2))[0], high[[2, 0]] / 2)


def test_bounds_that_coincide_leave_one_pixel():
    box = TanhBox.between(LOW, LOW)
    pixels = torch.full((1, 1, 2, 2), 0.2)
    torch.testing.assert_close(box.pixels(box.variables(pixels) + 0.5)[0], pixels)
