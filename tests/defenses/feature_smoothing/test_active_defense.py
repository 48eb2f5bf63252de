"""Active Defense against Algorithm 1 written out, and what must not change it."""

import weakref

import pytest
import torch

from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.defenses.feature_smoothing import active_defense
from lightning_advdef.defenses.feature_smoothing.feature_loss import feature_loss
from lightning_advdef.rng import SampleRNG
from tests.defenses.feature_smoothing.helpers import TAP, images_of, module_of, naive_active_defense, purified

IMAGES = images_of(24)
RNG = SampleRNG.for_images(torch.arange(24), seed=1)
TOGETHER = active_defense._TOGETHER["cpu"]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


# Algorithm 1


@pytest.fixture(scope="module", params=[False, True], ids=["free", "clip"])
def naive(request):
    """A module in float64, what it makes, and what the naive loop makes."""
    module, images = module_of(clip=request.param).double(), IMAGES.double()
    starts = module.purifier.init(images, RNG)
    with attack_mode(module):
        results = [naive_active_defense(module.classifier, TAP, start, module.purifier) for start in starts]
    expected = torch.stack([image for image, _ in results]), torch.tensor([steps for _, steps in results])
    return module, images, expected


@pytest.mark.parametrize("together", [TOGETHER, 5 * IMAGES[0].numel(), IMAGES[0].numel()])
@pytest.mark.parametrize("fixed_shape", [False, True])
def test_images_and_steps_are_those_of_the_naive_loop(naive, monkeypatch, together, fixed_shape):
    monkeypatch.setitem(active_defense._TOGETHER, "cpu", together)
    module, images, expected = naive
    module.fixed_shape = fixed_shape
    found = purified(module, images, RNG)
    close(found.images, expected[0])
    assert torch.equal(found.steps, expected[1])


def test_float32_takes_the_steps_of_float64_and_ends_in_the_same_class(naive):
    module, images, _ = naive
    expected, classes = purified(module, images, RNG), module(images, RNG).argmax(dim=1)
    single = module_of(clip=module.clip)
    found = purified(single, images.float(), RNG)
    assert ((found.steps - expected.steps).abs() <= 1).all()
    assert torch.equal(single(images.float(), RNG).argmax(dim=1), classes)


def test_the_known_answer_has_images_of_all_kinds(naive):
    module, _, (images, steps) = naive
    assert 0 < (steps == module.max_iter).sum() < 12
    assert steps.min() <= 3
    assert len(steps.unique()) > 8
    assert bool((images < 0).any()) is not module.clip


@pytest.mark.parametrize("between", [2, 8])
def test_looking_seldom_who_is_finished_changes_nothing(naive, monkeypatch, between):
    monkeypatch.setitem(active_defense._STEPS_BETWEEN_LOOKS, "cpu", between)
    monkeypatch.setitem(active_defense._TOGETHER, "cpu", 5 * IMAGES[0].numel())
    module, images, expected = naive
    found = purified(module, images, RNG)
    close(found.images, expected[0])
    assert torch.equal(found.steps, expected[1])


def test_finished_images_are_smooth_and_unfinished_ones_are_capped(naive):
    module, images, _ = naive
    found = purified(module, images, RNG)
    with torch.no_grad():
        loss = feature_loss(module.tap.features(found.images))
    assert torch.equal(loss > module.delta, found.steps == module.max_iter)


def test_an_image_alone_is_an_image_in_a_batch_of_64():
    module, images = module_of().double(), images_of(64).double()
    rng = SampleRNG.for_images(torch.arange(64))
    together = purified(module, images, rng)
    for row in (0, 31, 63):
        alone = purified(module, images[row : row + 1], rng[row : row + 1])
        close(alone.images[0], together.images[row])
        assert alone.steps[0] == together.steps[row]


@pytest.mark.parametrize("fixed_shape", [False, True])
def test_limits_stop_each_image_at_its_own_step(monkeypatch, fixed_shape):
    monkeypatch.setitem(active_defense._TOGETHER, "cpu", 5 * IMAGES[0].numel())
    module = module_of().double()
    module.fixed_shape = fixed_shape
    start = module.purifier.init(IMAGES.double(), RNG)
    limits = torch.arange(24) % 7
    with attack_mode(module):
        found = module.purifier.run(start, limits)
        free = module.purifier.run(start)
        rest = module.purifier.run(found.images, free.steps - found.steps)
    assert torch.equal(found.steps, torch.minimum(limits, free.steps))
    close(rest.images, free.images)


def test_a_step_moves_the_images_that_it_says(naive):
    module, images, _ = naive
    with attack_mode(module):
        stepped, moving = module.purifier.step(images)
        loss = feature_loss(module.tap.features(images))
    assert torch.equal(moving, loss > module.delta)
    assert torch.equal((stepped != images).flatten(1).any(dim=1), moving)
    assert 0 < moving.sum() < 24


# noise


def noise_of(module, images=IMAGES, rng=RNG):
    return module.purifier.init(images, rng) - images


def test_noise_is_uniform_in_its_range():
    noise = noise_of(module_of(noise=0.1), torch.zeros(24, 3, 8, 8))
    assert noise.abs().max() <= 0.1
    assert noise.std() == pytest.approx(0.1 / 3**0.5, rel=0.03)
    assert noise.mean().abs() < 0.003


def test_noise_differs_between_images_and_streams_and_repeats():
    module = module_of()
    noise = noise_of(module, torch.zeros(24, 3, 8, 8))
    assert len(noise.flatten(1).unique(dim=0)) == 24
    assert not torch.isclose(noise_of(module, rng=RNG.stream("other")), noise, atol=1e-3).all()
    assert torch.equal(noise_of(module, torch.zeros(24, 3, 8, 8)), noise)


def test_seeded_noise_is_the_same_for_all_images_and_streams():
    module, zeros = module_of(noise_seed=3), torch.zeros(24, 3, 8, 8)
    noise = noise_of(module, zeros)
    assert torch.equal(noise, noise[:1].expand_as(noise))
    assert torch.equal(noise_of(module, zeros, RNG.stream("other")), noise)
    assert not torch.equal(noise_of(module_of(noise_seed=4), zeros), noise)


def test_all_votes_with_one_noise_are_refused():
    with pytest.raises(ValueError, match="all votes are the same run"):
        module_of(noise_seed=3, votes=2)


def test_an_image_is_cut_off_when_it_is_not_smooth_after_its_last_step():
    free = purified(module_of(max_iter=500), IMAGES, RNG)
    assert not free.capped.any()
    most = int(free.steps.max())
    assert not purified(module_of(max_iter=most), IMAGES, RNG).capped.any()
    cut = purified(module_of(max_iter=most - 1), IMAGES, RNG)
    assert torch.equal(cut.capped, free.steps == most)
    assert not purified(module_of(max_iter=0), IMAGES, RNG).capped.any()


def test_without_steps_noise_is_left():
    found = purified(module_of(max_iter=0), IMAGES, RNG)
    assert torch.equal(found.images, module_of().purifier.init(IMAGES, RNG))
    assert not found.steps.any()


def test_without_noise_the_loop_starts_at_the_image():
    module = module_of(noise=0.0).double()
    found = purified(module, IMAGES.double(), RNG)
    with attack_mode(module):
        expected, steps = naive_active_defense(module.classifier, TAP, IMAGES[20].double(), module.purifier)
    close(found.images[20], expected)
    assert found.steps[20] == steps > 0


def test_clipping_begins_with_the_noise():
    images = torch.zeros(24, 3, 8, 8)
    found = purified(module_of(max_iter=0, clip=True), images, RNG).images
    assert torch.equal(found, purified(module_of(max_iter=0), images, RNG).images.clamp(0, 1))


# what stays as it was


def test_no_later_layer_runs(naive):
    module, images, _ = naive
    called = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, layer in module.classifier.named_modules()
        if not list(layer.children())
    ]
    purified(module, images, RNG)
    for handle in handles:
        handle.remove()
    assert called
    assert all(name.startswith(("normalize", "features.conv1", "features.group0.")) for name in called)


def test_images_and_parameters_are_left_alone():
    module, images = module_of(), IMAGES.clone().requires_grad_()
    module.train()
    found = module.purify(images, RNG)
    assert torch.equal(images, IMAGES)
    assert images.grad is None
    assert not found.requires_grad
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert module.training
    assert torch.equal(found, module.eval().purify(IMAGES, RNG))


class Saved:
    """Something that a graph keeps for its backward pass."""

    alive, most = weakref.WeakSet(), 0

    def __init__(self, tensor):
        self.tensor = tensor
        self.alive.add(self)
        Saved.most = max(Saved.most, len(self.alive))


def test_the_graph_of_one_step_is_the_most_that_is_kept():
    most = []
    for max_iter in (1, 10):
        Saved.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            found = purified(module_of(max_iter=max_iter, delta=0.0), IMAGES, RNG)
        most.append(Saved.most)
        assert int(found.steps.max()) == max_iter
    assert most[0] == most[1] > 0
    assert not Saved.alive


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("made_inside", [False, True])
def test_the_loop_works_where_gradients_are_off(mode, made_inside):
    module = module_of()
    expected = module.purify(IMAGES, RNG)
    with mode():
        images, rng = (IMAGES.clone(), SampleRNG.for_images(torch.arange(24), seed=1)) if made_inside else (IMAGES, RNG)
        found = module.purify(images, rng)
    assert torch.equal(found, expected)


def test_an_empty_batch_stays_empty():
    found = purified(module_of(), IMAGES[:0], RNG[:0])
    assert found.images.shape == (0, 3, 8, 8)
    assert found.steps.shape == (0,)
