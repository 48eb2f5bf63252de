import torch

from lightning_advdef.attacks.adam import ImageAdam


def gradients(count, shape=(4, 2, 3, 3)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * 10.0 ** (-step % 5) for step in range(count)]


def test_steps_are_those_of_torchs_adam():
    expected = torch.zeros(4, 2, 3, 3)
    theirs, found = torch.optim.Adam([expected], lr=0.03), torch.zeros(4, 2, 3, 3)
    ours = ImageAdam(found, 0.03)
    for gradient in gradients(30):
        expected.grad = gradient
        theirs.step()
        found = found + ours.step(gradient)
        torch.testing.assert_close(found, expected)


def test_an_image_that_starts_afresh_is_alone_in_that():
    mask = torch.tensor([False, True, False, True])
    going, restarted, fresh = (ImageAdam(torch.zeros(4, 2, 3, 3), 0.1) for _ in range(3))
    for gradient in gradients(5):
        going.step(gradient)
        restarted.step(gradient)
    restarted.restart(mask)
    for gradient in gradients(3):
        steps = [adam.step(gradient) for adam in (going, restarted, fresh)]
        torch.testing.assert_close(steps[1][~mask], steps[0][~mask])
        torch.testing.assert_close(steps[1][mask], steps[2][mask])


def test_some_of_the_images_go_on_as_they_would_among_all():
    rows = torch.tensor([3, 1])
    whole = ImageAdam(torch.zeros(4, 2, 3, 3), 0.1)
    for gradient in gradients(5):
        whole.step(gradient)
    some, gradient = whole[rows], gradients(1)[0]
    torch.testing.assert_close(some.step(gradient[rows]), whole.step(gradient)[rows])


def test_a_gradient_of_zero_gives_no_step_and_no_nan():
    assert torch.equal(ImageAdam(torch.zeros(1, 1, 2, 2), 0.1).step(torch.zeros(1, 1, 2, 2)), torch.zeros(1, 1, 2, 2))
