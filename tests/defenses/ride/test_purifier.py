from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch.optim import Adam

from lightning_advdef.data import get_spec
from lightning_advdef.defenses.ride import estimation as estimation_file
from lightning_advdef.defenses.ride.networks import FCN, UNet
from lightning_advdef.defenses.ride.presets import PRESETS, VARIANTS, per_image_network
from lightning_advdef.defenses.ride.purifier import RIDE
from lightning_advdef.rng import SampleRNG
from tests.defenses.ride.helpers import NaiveRIDE, images_of, moved, rng_of, settings

IMAGES = images_of(64)
RNG = rng_of(64)
NORMALIZED = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "noise": 0.5}


@dataclass(frozen=True)
class Watched(FCN):
    """An FCN that keeps what it sees."""

    seen: list = field(default_factory=list)

    def __call__(self, images, parameters, drop):
        self.seen.append(images.detach().clone())
        return super().__call__(images, parameters, drop)


# Algorithms 1 and 2


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("preset", ["paper", "released_code"])
def test_images_are_those_of_one_network_trained_alone(variant, preset):
    purifier = settings(**{**PRESETS[preset], **variant, "iterations": 6, "lr": 1e-2})
    images = images_of(2, dtype=torch.float64)
    found = purifier(images, RNG[:2])
    for number in range(2):
        expected = NaiveRIDE(purifier, images[number], RNG[number : number + 1])()
        torch.testing.assert_close(found[number], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "changes",
    [NORMALIZED, {"pairs": 3, "masked": 0.5}, {"returned": "image"}, {"dropout": 0.0}, {"dropout": 0.2, "masked": 0.0}],
    ids=["normalized", "pairs", "image", "no dropout", "dropout 0.2"],
)
def test_other_settings_are_those_of_one_network_trained_alone(changes):
    purifier = settings(**changes)
    image = images_of(2, channels=3, dtype=torch.float64)[1:]
    found = purifier(image, RNG[:1])
    torch.testing.assert_close(found[0], NaiveRIDE(purifier, image[0], RNG[:1])(), rtol=0, atol=1e-9)


def test_mean_squared_error_and_norm_make_different_images():
    by_mse, by_norm = (settings(loss=loss, weight_decay=0.1)(IMAGES[:2], RNG[:2]) for loss in ("mse", "norm"))
    assert (by_mse - by_norm).abs().max() > 1e-4


@pytest.mark.parametrize("suppression", [True, False])
@pytest.mark.parametrize("size", [6, 7])
def test_images_move_as_equations_8_and_14_say(suppression, size):
    images, estimate = torch.rand(2, 3, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimation = settings(suppression=suppression, mixing=0.7).start(images, RNG[:3])
    estimation.move_images(estimate)
    for number in range(3):
        expected = moved(images[number], estimate[number], 0.7, suppression)
        torch.testing.assert_close(estimation.images[number], expected)


def test_pixels_that_change_by_the_median_are_mixed():
    images = torch.zeros(1, 1, 2, 2)
    estimation = settings(mixing=0.5).start(images, RNG[:1])
    estimation.move_images(torch.tensor([0.1, 0.2, 0.2, 0.4]).view(1, 1, 2, 2))
    torch.testing.assert_close(estimation.images.flatten(), torch.tensor([0.1, 0.1, 0.1, 0.2]))


def test_the_last_estimate_is_returned_and_not_the_image_mixed_with_it():
    purifier, last = settings(), []
    found = purifier.run(IMAGES[:2], RNG[:2], lambda estimation: last.append(estimation))
    torch.testing.assert_close(found, last[-1].estimate(), rtol=0, atol=0)
    mixed = settings(returned="image")(IMAGES[:2], RNG[:2])
    assert (mixed - IMAGES[:2]).abs().mean() < 0.6 * (found - IMAGES[:2]).abs().mean()


def test_images_move_after_every_round_but_the_last():
    moves = []
    settings(rounds=3).run(IMAGES[:1], RNG[:1], lambda estimation: moves.append(estimation.images.clone()))
    changes = [not torch.equal(one, other) for one, other in pairwise(moves)]
    assert changes == [False, False, True, False, False, True, False, False]


def test_weights_and_moments_live_through_the_rounds():
    steps, weights = [], []

    def watch(estimation):
        steps.append(int(estimation.optimizer.state[estimation.parameters[0]]["step"]))
        weights.append(estimation.parameters[0].detach().clone())

    settings(lr=1e-3).run(IMAGES[:1], RNG[:1], watch)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert all((one - other).abs().max() < 3e-3 for one, other in pairwise(weights))


class PlainAdam(Adam):
    """Never fused."""

    def __init__(self, parameters, **given):
        super().__init__(parameters, **given | {"fused": False})


def test_the_fused_step_of_adam_is_that_of_the_plain_formula(monkeypatch):
    found = []
    for adam in (Adam, PlainAdam):
        monkeypatch.setattr(estimation_file, "Adam", adam)
        estimation = settings().start(IMAGES[:3].double(), RNG[:3])
        for _ in range(3):
            # the last layer's gradient is not contiguous, which a fused step would not notice
            estimation.train()
        found.append(estimation.parameters)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


# random numbers of a step


@pytest.mark.parametrize(("variant", "same"), [("dip", True), ("i-dip", True), ("dae", False), ("ride", False)])
def test_dip_sees_the_same_noise_in_every_step_and_dae_other_noise(variant, same):
    network = Watched(width=4, depth=3)
    settings(architecture=network, **VARIANTS[variant])(IMAGES[:2], RNG[:2])
    assert len(network.seen) == 8
    assert all(torch.equal(network.seen[0][0], each[0]) == same for each in network.seen[1:])
    assert all(torch.equal(network.seen[0][0], output) for each in network.seen for output in each) == same


def test_input_and_target_have_noise_of_their_own_and_of_the_asked_size():
    estimation = settings(noise=0.3, pairs=8).start(IMAGES, RNG)
    first, second = estimation._noise(2, 8, stream=0)
    assert first.std() == pytest.approx(0.3, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.02


@pytest.mark.parametrize("masked", [0.9, 0.25])
def test_so_large_a_share_of_the_pixels_counts_as_is_not_masked(masked):
    estimation = settings(masked=masked, pairs=16).start(IMAGES, RNG)
    kept = estimation._kept()
    assert kept.shape == (16, 64, 1, 8, 8)
    # five standard errors
    assert abs(kept.double().mean() - (1 - masked)) < 5 * (masked * (1 - masked) / kept.numel()) ** 0.5


def test_masked_pixels_of_the_target_do_not_matter():
    estimation = settings(masked=0.7, source="noise").start(IMAGES[:2].double(), RNG[:2])
    kept = estimation._kept()[0]
    before = estimation.losses(estimation.parameters)
    estimation.images = torch.where(kept, estimation.images, 7.0)
    torch.testing.assert_close(estimation.losses(estimation.parameters), before)
    estimation.images = estimation.images + 0.1 * kept
    assert (estimation.losses(estimation.parameters) - before).abs().min() > 1e-3


# an image's result is its own


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_an_image_alone_is_purified_as_in_a_batch(dtype, tolerance):
    purifier = settings(lr=1e-3)
    images = IMAGES.to(dtype)
    together = purifier(images, RNG)
    for number in (0, 41):
        alone = purifier(images[number : number + 1], RNG[number : number + 1])
        torch.testing.assert_close(alone[0], together[number], rtol=0, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_images_do_not_depend_on_the_chunks(chunk):
    found, expected = (settings(chunk=size)(IMAGES[:7].double(), RNG[:7]) for size in (chunk, 7))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_same_random_numbers_give_the_same_bits_and_others_another_image():
    purifier = settings()
    found = purifier(IMAGES[:3], RNG[:3])
    assert torch.equal(purifier(IMAGES[:3], RNG[:3]), found)
    other = purifier(IMAGES[:3], rng_of(3, seed=4))
    assert ((other - found).abs().flatten(1).amax(dim=1) > 1e-3).all()


def test_the_callers_images_are_never_written_to():
    images = images_of(4)
    for purifier in (settings(), settings(returned="image"), settings(**NORMALIZED | {"mean": (0.5,), "std": (0.2,)})):
        purifier(images, RNG[:4])
        assert torch.equal(images, images_of(4))


def test_no_images_are_purified_to_none():
    assert settings()(IMAGES[:0], RNG[:0]).shape == (0, 1, 8, 8)


# what it is good for


def test_noise_is_removed_from_strokes():
    clean = torch.nn.functional.interpolate(images_of(8, size=8), scale_factor=3.5, mode="bilinear")
    noisy = (clean + 0.2 * rng_of(8).normal(1, 28, 28)).clamp(0, 1)
    purifier = RIDE(per_image_network("fcn", get_spec("mnist")), rounds=2, iterations=50, lr=1e-3)
    purified = purifier(noisy, rng_of(8))
    errors = [(images - clean).square().flatten(1).mean(dim=1) for images in (noisy, purified)]
    assert (errors[1] < errors[0]).all()


# where it runs


def test_bfloat16_networks_make_nearly_the_same_image():
    exact, rough = (settings(bfloat16=bfloat16)(IMAGES[:4], RNG[:4]) for bfloat16 in (False, True))
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.02


def test_bfloat16_networks_keep_weights_and_moments_in_float32():
    estimation = settings(bfloat16=True).start(IMAGES[:2], RNG[:2])
    estimation.train()
    kept = [*estimation.parameters, *(moments["exp_avg"] for moments in estimation.optimizer.state.values())]
    assert all(tensor.dtype == torch.float32 for tensor in kept)


def test_within_autocast_networks_compute_in_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        found = settings()(IMAGES[:2], RNG[:2])
    assert torch.equal(found, settings(bfloat16=True)(IMAGES[:2], RNG[:2]))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_it_works_where_gradients_are_off(mode):
    with mode():
        found = settings()(IMAGES[:2] * 1, SampleRNG.default(IMAGES[:2]))
    assert torch.equal(found, settings()(IMAGES[:2], SampleRNG.default(IMAGES[:2])))


def test_a_unet_purifies_images_of_odd_size():
    found = settings(architecture=UNet(4, 3))(images_of(2, size=7), RNG[:2])
    assert found.isfinite().all()
    assert 0 <= found.min() < found.max() <= 1


def test_half_precision_images_come_back_in_half_precision():
    assert settings()(IMAGES[:1].to(torch.bfloat16), RNG[:1]).dtype == torch.bfloat16


# settings


@pytest.mark.parametrize(
    "wrong",
    [{name: 0} for name in ("rounds", "iterations", "forwards", "pairs", "chunk")]
    + [{name: value} for name in ("masked", "dropout") for value in (-0.1, 1.0)]
    + [{"mixing": value} for value in (-0.1, 1.1)]
    + [{name: -0.1} for name in ("noise", "lr", "weight_decay")],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}.*got.*{value}"):
        settings(**wrong)


def test_it_says_that_it_is_random_and_has_no_gradient_of_its_own():
    assert settings().stochastic
    assert not settings().differentiable


def test_a_mean_without_a_deviation_is_refused():
    with pytest.raises(ValueError, match="mean and std belong together"):
        settings(mean=(0.5,))


def test_steps_that_leave_out_all_pixels_do_no_harm():
    purifier = settings(masked=0.999, loss="norm", iterations=20)
    assert purifier(images_of(4), rng_of(4)).isfinite().all()
