"""FeatureSqueezingModule: scores, threshold, and what an evaluation says of rejections."""

import functools
import json

import pytest
import torch

from lightning_advdef.attacks import PGD, Cascade, FullGradient, Square
from lightning_advdef.checkpoints import load_defense, save_defense
from lightning_advdef.defenses import FeatureSqueezingModule
from lightning_advdef.defenses.feature_squeezing import AllVersions
from lightning_advdef.evaluation import Judge, Scenario
from lightning_advdef.evaluation.judge import JudgeSettings
from lightning_advdef.evaluation.summary import summarise
from lightning_advdef.models import MLP
from lightning_advdef.purifiers import BitDepth, Chain, GaussianBlur, Median, RandomResizePad
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.conftest import result_of, scenario
from tests.evaluation.test_table import lines
from tests.purifiers.helpers import Darker
from tests.toys import Toy

SPEC = "1x8x8x10"
SQUEEZERS = [BitDepth(1), Median(3), GaussianBlur(1.0)]
NETWORK = functools.partial(MLP, hidden=[16])
GENERATOR = torch.Generator().manual_seed(0)
BATCH = Batch(torch.rand(30, 1, 8, 8, generator=GENERATOR), torch.arange(30) % 10, torch.arange(30))
RNG = SampleRNG.for_images(BATCH.indices)


def module_of(squeezers=SQUEEZERS, **settings):
    """A module in eval mode, sure enough of its answers for scores of all sizes."""
    torch.manual_seed(0)
    module = FeatureSqueezingModule(NETWORK, squeezers, spec=SPEC, **settings).eval()
    for parameter in module.parameters():
        parameter.data *= 4
    return module


@torch.no_grad()
def naive_score(module, image):
    """The score of one image ``(C, H, W)``, term by term."""
    answer = module.classifier(image.unsqueeze(0))[0].softmax(dim=0)
    distances = []
    for squeezer in module.squeezers:
        squeezed = squeezer(image.unsqueeze(0), SampleRNG.default(image.unsqueeze(0)))
        other = module.classifier(squeezed)[0].softmax(dim=0)
        distances.append(sum(abs(float(a) - float(b)) for a, b in zip(answer, other, strict=True)))
    return max(distances)


def test_the_score_is_the_largest_distance_of_answers():
    module = module_of()
    expected = [naive_score(module, image) for image in BATCH.images]
    torch.testing.assert_close(module.scores(BATCH.images, RNG), torch.tensor(expected))
    assert max(expected) > 1 > min(expected)


def test_answers_are_those_of_the_classifier():
    module = module_of()
    assert torch.equal(module(BATCH.images), module.classifier(BATCH.images))


def test_images_above_the_threshold_are_rejected():
    module = module_of(threshold=0.7)
    assert torch.equal(module.rejects(BATCH.images, RNG), module.scores(BATCH.images, RNG) > 0.7)


def test_squeezers_draw_different_numbers():
    noise = Darker(1.0)
    scores = module_of([noise, noise]).versions(BATCH.images, RNG)
    assert not torch.equal(scores[1], scores[2])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_calibration_rejects_the_given_share_of_validation_images(share):
    module = module_of(false_positives=share)
    data = Toy(SPEC, count=40, val_fraction=0.5, batch_size=7)
    found = module.train().calibrate(data)
    assert module.training, "modes are put back"
    module.eval()
    rejected = torch.cat(
        [module.rejects(batch.images, SampleRNG.default(batch.images)) for batch in data.val_dataloader()]
    )
    assert len(rejected) == 20
    assert int(rejected.sum()) == share * 20
    assert found == {"threshold": module.threshold}


def test_a_given_threshold_goes_before_the_calibrated_one():
    module = module_of(threshold=0.7)
    module.calibrate(Toy(SPEC, count=40, val_fraction=0.5))
    assert module.threshold == 0.7
    assert not module.calibrated_threshold.isnan()


def test_a_test_without_a_threshold_says_how_to_find_one():
    with pytest.raises(ValueError, match=r"no threshold for this network.*--model\.threshold.*advdef calibrate"):
        module_of().rejects(BATCH.images, RNG)


def test_a_checkpoint_keeps_squeezers_and_threshold(tmp_path):
    module = module_of()
    module.calibrate(Toy(SPEC, count=40, val_fraction=0.5))
    save_defense(module, tmp_path / "a.ckpt")
    loaded = load_defense(tmp_path / "a.ckpt")
    assert loaded.squeezers == SQUEEZERS
    assert loaded.threshold == module.threshold


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, True),
        ({"false_positives": 0.1}, False),
        ({"squeezers": SQUEEZERS[:2]}, False),
        ({"squeezers": [*SQUEEZERS[:2], GaussianBlur(2.0)]}, False),
        ({"squeezers": [*SQUEEZERS[:2], Chain([GaussianBlur(1.0)])]}, False),
    ],
)
def test_the_threshold_of_other_squeezers_or_another_share_is_not_taken_over(tmp_path, settings, kept):
    calibrated = module_of()
    calibrated.calibrate(Toy(SPEC, count=40, val_fraction=0.5))
    save_defense(calibrated, tmp_path / "a.ckpt")
    module = module_of(**settings, weights=str(tmp_path / "a.ckpt"))
    module.setup("test")
    assert module.calibrated_threshold.isnan() == (not kept)
    if not kept:
        with pytest.raises(ValueError, match=r"no threshold for this network.*advdef calibrate"):
            _ = module.threshold


@pytest.mark.parametrize("hyper_parameters", [None, {}, {"spec": SPEC}])
def test_a_checkpoint_that_does_not_tell_its_squeezers_gives_its_threshold(tmp_path, hyper_parameters):
    state = module_of().state_dict() | {"calibrated_threshold": torch.tensor(0.7)}
    content = {"state_dict": state} | ({} if hyper_parameters is None else {"hyper_parameters": hyper_parameters})
    torch.save(content, tmp_path / "a.ckpt")
    module = module_of(weights=str(tmp_path / "a.ckpt"))
    module.setup("test")
    assert module.threshold == pytest.approx(0.7)


@pytest.mark.parametrize("settings", [{"squeezers": []}, {"false_positives": 1.0}, {"false_positives": -0.1}])
def test_other_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"squeezers|false_positives"):
        module_of(**settings)


# evaluation


def judged(module):
    """Rows and summary of a weak attack."""
    judge = Judge(module, [Scenario("pgd", PGD(0.02, steps=3))])
    rows = judge(Batch(BATCH.images, module(BATCH.images).argmax(dim=1), BATCH.indices))
    return rows, summarise(rows, judge.scenarios, judge.describe())


def test_a_rejected_image_is_not_broken():
    rows, summary = judged(module_of(threshold=1.5))
    right, rejected = rows["pgd/correct"] == 1, rows["pgd/rejected"] == 1
    for kind in (right & rejected, right & ~rejected, ~right & rejected, ~right & ~rejected):
        assert kind.any(), "all four kinds are needed for the test to say something"
    found = summary["scenarios"][0]
    assert found["rejected"]["value"] == pytest.approx(float(rejected.double().mean()))
    assert found["right_or_rejected"]["value"] == pytest.approx(float((right | rejected).double().mean()))
    assert found["robust_accuracy"]["value"] == pytest.approx(float(right.double().mean()))
    assert summary["rejected"]["value"] == pytest.approx(float(rows["clean/rejected"].double().mean()))


def test_rejection_does_not_excuse_an_image_that_is_wrong_without_an_attack():
    judge = Judge(module_of(threshold=-1.0), [Scenario("pgd", PGD(0.05, steps=1))])
    summary = summarise(judge(BATCH), judge.scenarios, judge.describe())
    assert summary["rejected"]["value"] == 1
    assert summary["scenarios"][0]["right_or_rejected"]["value"] == summary["clean_accuracy"]["value"] < 1


@pytest.mark.parametrize("cascade", [True, False])
def test_each_part_of_a_cascade_tells_what_is_right_or_rejected(cascade):
    attacks = {"weak": PGD(0.1, steps=1), "strong": PGD(0.1, steps=5)}
    module = module_of(threshold=1.0)
    judge = Judge(module, [Scenario("both", Cascade(attacks=attacks, cascade=cascade))])
    rows = judge(Batch(BATCH.images, module(BATCH.images).argmax(dim=1), BATCH.indices))
    assert set(rows["both/broken_by"].tolist()) == {-1, 0, 1}
    found = summarise(rows, judge.scenarios, judge.describe())["scenarios"][0]
    standing = (rows["clean/correct"] == 1).double()
    for number, part in enumerate(found["parts"]):
        standing[rows["both/broken_by"] == number] = 0
        assert part["cumulative_right_or_rejected"]["value"] == pytest.approx(float(standing.mean()))
        assert part["cumulative_right_or_rejected"]["value"] > part["cumulative_accuracy"]["value"]
        alone = (rows[f"both/{part['name']}/correct_or_rejected"] == 1).double().mean()
        expected = None if cascade and number else pytest.approx(float(alone))
        assert (part["right_or_rejected"] and part["right_or_rejected"]["value"]) == expected


def test_it_is_stochastic_if_a_squeezer_is():
    assert module_of([BitDepth(1), RandomResizePad()]).stochastic
    assert not module_of().stochastic


def test_a_random_squeezer_is_graded_draw_by_draw():
    module = module_of([BitDepth(1), Darker(0.5)], threshold=1.0)
    rows, _ = judged(module)
    shares = rows["pgd/rejected"]
    assert ((shares > 0) & (shares < 1)).any()
    assert (rows["pgd/correct_or_rejected"] >= torch.maximum(shares, rows["pgd/correct"]) - 1e-6).all()


def rows_of(module, *scenarios, known=None, strict=False):
    batch = Batch(BATCH.images, module(BATCH.images).argmax(dim=1), BATCH.indices)
    return Judge(module, scenarios, JudgeSettings(strict=strict, batch_size=30))(batch, known)


@pytest.mark.parametrize("strict", [False, True])
def test_no_image_leaves_an_attack_on_its_prediction_alone(strict):
    rows = rows_of(module_of(threshold=1.0), Scenario("pgd", PGD(0.1, steps=3)), strict=strict)
    assert (rows["pgd/correct"] == 0).any()
    assert (rows["pgd/forward"] == 4).all()


@pytest.mark.parametrize("surrogate", [FullGradient, AllVersions])
def test_the_last_of_several_budgets_is_no_safer_than_by_itself(surrogate):
    module, attack = module_of(threshold=1.0), PGD(0.2, steps=10)
    sweep = rows_of(module, Scenario("pgd", attack, surrogate, eps=[0.02, 0.05, 0.2]))
    alone = rows_of(module, Scenario("pgd", attack, surrogate, eps=[0.2]))
    rejected = (sweep["pgd/eps0.02/correct"] == 0) & (sweep["pgd/eps0.02/correct_or_rejected"] == 1)
    assert (alone["pgd/eps0.2/correct_or_rejected"][rejected] == 0).any(), "some are worth another attack"
    for column in ("correct", "correct_or_rejected"):
        assert (sweep[f"pgd/eps0.2/{column}"] <= alone[f"pgd/eps0.2/{column}"]).all(), column
    shares = [sweep[f"pgd/eps{eps}/correct_or_rejected"] for eps in ("0.02", "0.05", "0.2")]
    assert (shares[0] >= shares[1]).all()
    assert (shares[1] >= shares[2]).all()


def test_a_part_that_was_added_to_a_cascade_makes_no_wrong_image_right():
    module = module_of(threshold=1.0)
    pgd, square = PGD(0.1, steps=3), Square(0.1, queries=10)
    first = rows_of(module, Scenario("a", Cascade(attacks={"pgd": pgd})))
    both = Scenario("a", Cascade(attacks={"pgd": pgd, "square": square}))
    found, fresh = rows_of(module, both, known=first), rows_of(module, both)
    assert (found["a/correct"] <= first["a/correct"]).all()
    assert (found["a/correct_or_rejected"] <= first["a/correct_or_rejected"]).all()
    assert found.keys() == fresh.keys()
    assert all(torch.equal(found[name].nan_to_num(-5), fresh[name].nan_to_num(-5)) for name in found)


def test_the_command_calibrates_and_the_result_tells_rejections(advdef, tmp_path):
    from lightning_advdef.__main__ import run

    save_defense(module_of(), tmp_path / "trained.ckpt")
    squeezers = [{"class_path": "BitDepth", "init_args": {"bits": 1}}]
    settings = [
        *("--model", "FeatureSqueezingModule", "--model.network", "MLP", "--model.network.hidden", "[16]"),
        *("--model.squeezers", json.dumps(squeezers), "--data", "tests.toys.Toy", "--data.toy_spec", SPEC),
        *("--data.val_fraction", "0.5"),
    ]
    trained, calibrated = (f"--model.weights={tmp_path / name}.ckpt" for name in ("trained", "calibrated"))
    run(["calibrate", *settings, trained, "--runs", str(advdef.runs), "-o", str(tmp_path / "calibrated.ckpt")])
    scenarios = json.dumps([scenario("pgd", "PGD", eps=0.1, steps=1)])
    summary, rows = result_of(advdef("test", *settings, calibrated, "--evaluation.scenarios", scenarios))
    assert summary["rejected"]["value"] == pytest.approx(rows["clean/rejected"].mean())
    shown = lines(summary)
    assert [line[0] for line in shown].count("rejected") == 2
    assert [line[0] for line in shown].count("right or rejected") == 1


# attackers


def attacked(module, surrogate):
    labels = module(BATCH.images).argmax(dim=1)
    adversarial = PGD(0.2, steps=20)(surrogate, BATCH.images, labels)
    wrong = module(adversarial).argmax(dim=1) != labels
    return wrong, module.rejects(adversarial, RNG)


@pytest.mark.parametrize("name", ["evading", "all_versions"])
def test_who_knows_the_detector_breaks_more_images_that_it_accepts(name):
    module = module_of(threshold=1.0)
    wrong, rejected = attacked(module, FullGradient(module))
    wrong_knowing, rejected_knowing = attacked(module, module.adaptive_surrogates()[name](module))
    assert (wrong_knowing & ~rejected_knowing).sum() > (wrong & ~rejected).sum()


def test_the_penalty_is_the_weighted_excess_of_the_score():
    module = module_of([GaussianBlur(1.0)], threshold=0.3)
    surrogate = module.adaptive_surrogates()["evading"](module)
    expected = -10 * (module.scores(BATCH.images, RNG) - 0.3).clamp(min=0)
    torch.testing.assert_close(surrogate.auxiliary(BATCH.images, BATCH.labels, RNG), expected)
    assert (expected < 0).any()


def test_the_penalty_goes_around_squeezers_without_a_gradient():
    module = module_of([BitDepth(1)], threshold=0.0)
    images = BATCH.images.clone().requires_grad_()
    module.adaptive_surrogates()["evading"](module).auxiliary(images, BATCH.labels, RNG).sum().backward()
    expected = BATCH.images.clone().requires_grad_()
    rounded = BATCH.images.round().requires_grad_()
    score = (module.classifier(rounded).softmax(1) - module.classifier(expected).softmax(1)).abs().sum()
    (10 * score).backward()
    torch.testing.assert_close(images.grad, -(expected.grad + rounded.grad), rtol=1e-4, atol=1e-5)
