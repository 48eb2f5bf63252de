import functools

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.defenses import DefenseModule, StandardModule
from lightning_advdef.distillation import PairMaker
from lightning_advdef.models import MLP
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.attacks.helpers import seeded
from tests.toys import NoisyInput, Toy

NETWORK = functools.partial(MLP, hidden=[12])
NOISE = 0.1


class Counted(DefenseModule):
    """Squares pixels in place; counts the images and stops at a given one."""

    def __init__(self, *args, factor=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor, self.seen, self.stop_at = factor, 0, None

    def purify(self, images, rng):
        if self.seen == self.stop_at:
            raise KeyboardInterrupt
        self.seen += len(images)
        return images.mul_(images).mul_(self.factor)


class Halved(DefenseModule):
    def purify(self, images, rng):
        return F.avg_pool2d(images, 2)


def make(defense=Counted, **settings):
    return seeded(lambda: defense(NETWORK, spec="digits", **settings)).eval()


def pairs_of(maker, count=12, batch_size=4, **settings):
    done = []
    return maker.make(Toy(count=20, val_fraction=0.1, **settings), count, batch_size, done.append), done


def batch_of(count=12):
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(count) % 10, torch.arange(count))


def test_versions_are_the_image_with_noise_and_under_attack(tmp_path):
    defense, batch = make(), batch_of()
    clean, noisy, attacked = PairMaker(defense, NOISE, tmp_path).of(batch).images
    assert torch.equal(clean, batch.images)
    for version in (noisy, attacked):
        assert NOISE * 0.9 < (version - clean).abs().max() <= NOISE + 1e-6
        assert version.min() >= 0
        assert version.max() <= 1
    losses = [F.cross_entropy(defense.classifier(each), batch.labels).item() for each in (clean, noisy, attacked)]
    assert losses[2] > max(losses[:2]) + 0.1


def test_purified_is_what_the_deployed_purifier_makes_of_the_images(tmp_path):
    pairs = PairMaker(make(factor=0.5), NOISE, tmp_path).of(batch_of())
    torch.testing.assert_close(pairs.purified, 0.5 * pairs.images**2)


def test_a_stochastic_purifier_draws_for_each_image_and_version(tmp_path):
    pairs = PairMaker(make(NoisyInput), NOISE, tmp_path).of(batch_of())
    drawn = (pairs.purified - pairs.images).flatten(0, 1).flatten(1)
    assert len(drawn[:, 0].unique()) == 36


def test_pairs_of_an_image_do_not_depend_on_its_batch(tmp_path):
    maker, batch = PairMaker(make(NoisyInput), NOISE, tmp_path), batch_of()
    whole = maker.of(batch)
    part = maker.of(Batch(*(tensor[3:5] for tensor in batch)))
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(one[:, 3:5], other)


def test_training_images_are_taken_as_many_as_asked_for(tmp_path):
    pairs, done = pairs_of(PairMaker(make(), NOISE, tmp_path), count=10)
    assert pairs.images.shape == (3, 10, 1, 8, 8)
    assert done == [4, 8, 10]
    fewer, _ = pairs_of(PairMaker(make(), NOISE, tmp_path), count=10, limit_train=3)
    assert fewer.images.shape[1] == 3


def test_what_was_made_is_not_made_again(tmp_path):
    first, second = make(), make()
    pairs, _ = pairs_of(PairMaker(first, NOISE, tmp_path))
    again, _ = pairs_of(PairMaker(second, NOISE, tmp_path))
    assert (first.seen, second.seen) == (36, 0)
    assert torch.equal(again.images, pairs.images)
    assert torch.equal(again.purified, pairs.purified)


def test_an_interruption_costs_one_batch(tmp_path):
    defense = make()
    defense.stop_at = 24
    with pytest.raises(KeyboardInterrupt):
        pairs_of(PairMaker(defense, NOISE, tmp_path))
    later = make()
    pairs, done = pairs_of(PairMaker(later, NOISE, tmp_path))
    assert (later.seen, done) == (12, [4, 8, 12])
    whole, _ = pairs_of(PairMaker(make(), NOISE, tmp_path / "elsewhere"))
    assert torch.equal(pairs.purified, whole.purified)


@pytest.mark.parametrize("change", ["noise", "settings", "weights", "images"])
def test_pairs_of_another_recipe_are_not_used(tmp_path, change):
    pairs_of(PairMaker(make(), NOISE, tmp_path))
    other = make(**({"factor": 2.0} if change == "settings" else {}))
    if change == "weights":
        with torch.no_grad():
            next(other.classifier.parameters())[0] += 1e-3
    maker = PairMaker(other, 0.2 if change == "noise" else NOISE, tmp_path)
    pairs_of(maker, **({"toy_spec": "1x8x8x4"} if change == "images" else {}))
    assert other.seen == 36


def test_random_numbers_are_those_of_distillation(tmp_path):
    pairs = PairMaker(make(NoisyInput), 0.0, tmp_path).of(batch_of())
    rng = SampleRNG.for_images(torch.arange(12), split="distill")
    expected = make(NoisyInput).purify(batch_of().images, rng.stream("version", 0))
    assert torch.equal(pairs.purified[0], expected)


def test_a_defense_without_a_purifier_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^StandardModule has no purifier that could be distilled: give a config"):
        PairMaker(make(StandardModule), NOISE, tmp_path)


def test_a_purifier_that_changes_the_shape_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^Halved purifies images of shape \(1, 8, 8\) to \(1, 4, 4\), and a stand-in"
    ):
        PairMaker(make(Halved), NOISE, tmp_path).of(batch_of())
