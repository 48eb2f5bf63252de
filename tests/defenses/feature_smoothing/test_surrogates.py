"""Attackers who know Active Defense: what each adds, and that all of them attack."""

import pytest
import torch

from lightning_advdef.attacks import APGD, BPDA, EOT, FullGradient, Undefended, Unrolled
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import loss_and_gradient, mean_loss
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.defenses.feature_smoothing.feature_loss import feature_loss
from lightning_advdef.defenses.feature_smoothing.surrogates import (
    CoarselyUnrolled,
    FeatureTarget,
    FixedNoise,
    PenalizedFeatureLoss,
    attackers,
)
from lightning_advdef.evaluation import Judge, Scenario
from lightning_advdef.evaluation.judge import JudgeSettings
from lightning_advdef.evaluation.summary import summarise
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.defenses.feature_smoothing.helpers import images_of, module_of, purified
from tests.toys import Toy

IMAGES = images_of(12)
LABELS = torch.arange(12) % 5
RNG = SampleRNG.for_images(torch.arange(12), seed=2)
ATTACK = APGD(8 / 255, steps=3)


def calibrated(**settings):
    """A defense of few steps with an image of each class."""
    module = module_of(**{"step_size": 2.0, "delta": 0.3, "max_iter": 6} | settings)
    module.calibrate(Toy(toy_spec="3x8x8x5", count=24, val_fraction=0.5))
    assert module.calibrated_anchors.isfinite().all()
    return module


def gradient(surrogate, rng=RNG):
    with attack_mode(*surrogate.modules):
        return loss_and_gradient(surrogate, IMAGES, Goal(LABELS), cross_entropy, rng).gradient


# the paper's own loss


def hinge(module, images=IMAGES):
    return feature_loss(module.tap.features(images)).clamp(min=module.delta)


@pytest.mark.parametrize("weight", [3.0, -0.5])
@pytest.mark.parametrize("of", [Undefended, BPDA])
def test_the_penalty_is_the_weighted_hinge_and_nothing_else(weight, of):
    module = module_of()
    penalised, bare = PenalizedFeatureLoss(module, weight, of), of(module)
    with torch.no_grad():
        found, logits = mean_loss(penalised, IMAGES, Goal(LABELS), cross_entropy, RNG)
        plain, expected = mean_loss(bare, IMAGES, Goal(LABELS), cross_entropy, RNG)
        torch.testing.assert_close(found - plain, weight * hinge(module))
    assert torch.equal(logits, expected)
    leaf = IMAGES.clone().requires_grad_()
    (own,) = torch.autograd.grad(hinge(module, leaf).sum(), leaf)
    torch.testing.assert_close(gradient(penalised), gradient(bare) + weight * own)
    smooth = feature_loss(module.tap.features(IMAGES)) < module.delta
    assert 0 < smooth.sum() < 12
    assert not own[smooth].any()


def test_the_sign_of_the_weight_decides_where_the_feature_loss_goes():
    module = module_of()
    losses = []
    for weight in (-1e3, 1e3):
        adversarial = ATTACK(PenalizedFeatureLoss(module, weight), IMAGES, LABELS, RNG)
        losses.append(feature_loss(module.tap.features(adversarial)))
    before = feature_loss(module.tap.features(IMAGES))
    rough = before > module.delta
    assert (losses[0] < before)[rough].all()
    assert (losses[1] > before)[rough].all()


# known noise


@pytest.mark.parametrize("votes", [1, 2])
def test_fixed_noise_has_the_same_gradient_in_every_stream(votes):
    module = module_of(votes=votes)
    other = RNG.stream("step", 7)
    assert torch.equal(gradient(FixedNoise(module)), gradient(FixedNoise(module), other))
    assert not torch.allclose(gradient(FixedNoise(module)), gradient(FixedNoise(module, seed=1)))
    assert not torch.allclose(gradient(BPDA(module)), gradient(BPDA(module), other))


def test_fixed_noise_knows_a_defense_whose_noise_is_fixed():
    module = module_of(noise_seed=5)
    with torch.no_grad():
        assert torch.equal(FixedNoise(module)(IMAGES, RNG)[0], module(IMAGES, RNG))
    assert torch.equal(gradient(FixedNoise(module)), gradient(BPDA(module)))


def test_fixed_noise_differs_between_the_draws_of_a_step():
    surrogate = EOT(module_of(), of=FixedNoise, samples=2)
    with torch.no_grad():
        one, other = surrogate(IMAGES, RNG)
        again = surrogate(IMAGES, RNG.stream("step", 7))
    assert not torch.allclose(one, other)
    assert torch.equal(again, torch.stack([one, other]))


# a coarse loop


def test_the_coarse_loop_has_fewer_and_larger_steps():
    module = module_of(max_iter=500)
    coarse = CoarselyUnrolled(module, steps=4, factor=7.0).purifier
    assert (coarse.max_iter, coarse.step_size) == (4, pytest.approx(7 * module.step_size))
    assert (coarse.delta, coarse.noise) == (module.delta, module.noise)
    assert coarse.features == module.purifier.features


def test_the_coarse_answer_is_that_of_a_defense_with_such_steps():
    fine, coarse = module_of(), module_of(max_iter=4, step_size=2.1)
    with torch.no_grad():
        found = CoarselyUnrolled(fine, steps=4, factor=7.0)(IMAGES, RNG)[0]
        torch.testing.assert_close(found, coarse(IMAGES, RNG.stream("defense")))


# feature targets


def smooth_features(module, images):
    quiet = module_of(
        **{"step_size": module.step_size, "delta": module.delta, "max_iter": module.max_iter, "noise": 0.0}
    )
    with torch.no_grad():
        return module.tap.features(purified(quiet, images, RNG[: len(images)]).images).flatten(1)


@pytest.mark.parametrize("votes", [1, 3])
def test_the_further_loss_is_the_distance_to_an_image_of_the_next_class(votes):
    module = calibrated(votes=votes)
    surrogate = FeatureTarget(module, weight=4.0)
    targets = smooth_features(module, module.calibrated_anchors)[(LABELS + 1) % 5]
    with attack_mode(module):
        surrogate(IMAGES, RNG)
        found = surrogate.auxiliary(IMAGES, LABELS, RNG)
        expected = torch.zeros(12)
        for vote in range(votes):
            rng = RNG.stream("defense") if votes == 1 else RNG.stream("defense").stream("vote", vote)
            features = module.tap.features(purified(module, IMAGES, rng).images).flatten(1)
            expected -= 4 * (features - targets).norm(dim=1) ** 2 / targets.norm(dim=1) ** 2 / votes
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_an_attack_brings_features_to_the_target():
    module = calibrated(noise=0.01)
    targets = smooth_features(module, module.calibrated_anchors)[(LABELS + 1) % 5]
    adversarial = APGD(0.1, steps=10)(FeatureTarget(module, weight=1e3), IMAGES, LABELS, RNG)
    before, after = ((smooth_features(module, images) - targets).norm(dim=1) for images in (IMAGES, adversarial))
    assert (after < 0.95 * before).all()


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4], [0, 3], [4, 2]])
def test_the_target_is_never_of_the_own_class(kept):
    module = calibrated()
    missing = [label for label in range(5) if label not in kept]
    module.calibrated_anchors[missing] = torch.nan
    features = smooth_features(module, module.calibrated_anchors)
    found = FeatureTarget(module)._of_other_classes(torch.arange(5))
    for label in range(5):
        chosen = [other for other in range(5) if torch.allclose(features[other], found[label], atol=1e-4)]
        expected = next((label + step) % 5 for step in range(1, 5) if (label + step) % 5 in kept)
        assert chosen == [expected]


def test_classes_without_an_anchor_have_a_target_too():
    module = calibrated()
    found = FeatureTarget(module)._of_other_classes(torch.tensor([57, 60]))
    assert found.isfinite().all()


@pytest.mark.parametrize("kept", [[], [2]])
def test_without_an_image_of_another_class_the_remedy_is_told(kept):
    module = calibrated()
    anchors = module.calibrated_anchors[kept].clone()
    module.calibrated_anchors.fill_(torch.nan)
    module.calibrated_anchors[kept] = anchors
    with pytest.raises(ValueError, match="advdef calibrate -o FILE"):
        ATTACK(FeatureTarget(module), IMAGES, LABELS, RNG)


def test_draws_of_feature_targets_are_averaged():
    module = calibrated()
    averaged, single = EOT(module, of=FeatureTarget, samples=2), FeatureTarget(module)
    with attack_mode(module):
        averaged(IMAGES, RNG)
        found = averaged.auxiliary(IMAGES, LABELS, RNG)
        parts = []
        for sample in range(2):
            rng = RNG.stream("eot").stream(sample)
            single.logits(IMAGES, rng)
            parts.append(single.auxiliary(IMAGES, LABELS, rng))
    torch.testing.assert_close(found, (parts[0] + parts[1]) / 2)
    assert not torch.allclose(*parts)


# all of them


def test_the_module_offers_what_settings_alone_cannot_say():
    named = module_of().adaptive_surrogates()
    assert {"feature_loss", "minus_feature_loss", "fixed_noise", "unrolled"} <= set(named)
    weights = [named[name](module_of()).weight for name in ("feature_loss", "minus_feature_loss")]
    assert weights == [pytest.approx(10**0.5), pytest.approx(-(10**0.5))]


def test_descriptions_tell_attackers_apart():
    module = calibrated()
    described = [make(module).describe() for make in attackers().values()]
    described += [make(module).describe() for make in (FullGradient, BPDA, Undefended)]
    described += [
        FixedNoise(module, 1).describe(),
        FeatureTarget(module, 2.0).describe(),
        Unrolled(module, 3).describe(),
    ]
    described += [CoarselyUnrolled(module, steps=3).describe(), CoarselyUnrolled(module, factor=3.0).describe()]
    assert all(one != other for row, one in enumerate(described) for other in described[:row])
    assert all(each["access"] == "adaptive" for each in described[: len(attackers())])


@pytest.mark.parametrize("name", attackers())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_attacker_stays_in_its_budget_and_moves_the_images(name, dtype):
    module = calibrated()
    surrogate = attackers()[name](module)
    surrogate.search_dtype, surrogate.max_rows = dtype, 16
    passes = surrogate.start_counting(12, IMAGES.device)
    adversarial = APGD(8 / 255, steps=2)(surrogate, IMAGES, LABELS, RNG)
    size = (adversarial - IMAGES).abs().flatten(1).amax(dim=1)
    assert (size > 4 / 255).all()
    assert (size <= 8 / 255 + 1e-6).all()
    assert not passes.zero_gradients.any()
    assert module.last_steps is None or not module.last_steps.is_inference()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("strict", [False, True])
def test_an_adaptive_scenario_has_a_row_for_each_with_steps(strict):
    module = calibrated(max_iter=2)
    attack = APGD(8 / 255, steps=1)
    judge = Judge(module, [Scenario("a", attack, "adaptive")], JudgeSettings(batch_size=12, draws=2, strict=strict))
    rows = judge(Batch(IMAGES, LABELS, torch.arange(12)))
    summary = summarise(rows, judge.scenarios, judge.describe())
    assert [each["name"] for each in summary["scenarios"]] == [f"a/{name}" for name in attackers()]
    for each in summary["scenarios"]:
        assert rows[f"{each['name']}/linf"].max() <= 8 / 255 + 1e-6
        assert each["defense_steps"] == pytest.approx(rows[f"{each['name']}/defense_steps"].mean().item())
        assert each["defense_capped"] == pytest.approx(rows[f"{each['name']}/defense_capped"].mean().item())
        assert each["zero_gradient_share"] == 0


def test_the_full_gradient_of_active_defense_is_zero_and_the_books_say_so():
    module = calibrated()
    judge = Judge(module, [Scenario("a", APGD(8 / 255, steps=1))], JudgeSettings(batch_size=12, draws=1))
    rows = judge(Batch(IMAGES, LABELS, torch.arange(12)))
    assert (rows["a/zero_gradients"] > 0).all()
