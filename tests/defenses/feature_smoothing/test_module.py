"""FeatureSmoothingModule: Eq. 2 in training, Active Defense at test time, calibration."""

import functools
import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from lightning_advdef.attacks import APGD, BPDA, Unrolled
from lightning_advdef.callbacks import RobustnessEvaluation
from lightning_advdef.checkpoints import load_defense, load_weights, save_defense
from lightning_advdef.data import get_spec
from lightning_advdef.data.sources import as_is
from lightning_advdef.defenses import FeatureSmoothingModule, StandardModule
from lightning_advdef.defenses.feature_smoothing.feature_loss import feature_loss
from lightning_advdef.errors import CheckpointError
from lightning_advdef.evaluation import Scenario
from lightning_advdef.models import ConvNet, WideResNet
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.conftest import result_of, scenario
from tests.defenses.adversarial_training.helpers import quiet_trainer
from tests.defenses.feature_smoothing.helpers import NETWORK, SPEC, TAP, TanhNetwork, images_of, module_of, purified
from tests.toys import Toy

BATCH = Batch(images_of(8), torch.arange(8) % 5, torch.arange(8))
RNG = SampleRNG.for_images(BATCH.indices)


def toy(**settings):
    return Toy(**{"toy_spec": SPEC, "count": 24, "batch_size": 8, "val_fraction": 0.25} | settings)


def features_of(module, images):
    seen = []
    handle = module.classifier.get_submodule(TAP).register_forward_hook(lambda _, __, output: seen.append(output))
    logits = module.classifier(images)
    handle.remove()
    return seen[0], logits


# training


@pytest.mark.parametrize("hinge", ["image", "batch"])
def test_loss_is_cross_entropy_plus_the_weighted_hinge(hinge):
    module = module_of(hinge=hinge, weight=3.0, train_delta=0.33)
    features, logits = features_of(module, BATCH.images)
    roughness = [(each - each.mean()).abs().mean().item() for each in features]
    assert min(roughness) < 0.33 < sum(roughness) / 8, "the two variants differ"
    hinged = sum(max(value, 0.33) for value in roughness) / 8
    hinged = hinged if hinge == "image" else max(sum(roughness) / 8, 0.33)
    terms = module.loss(BATCH, RNG)
    cross_entropy = F.cross_entropy(logits, BATCH.labels)
    torch.testing.assert_close(terms["cross_entropy"], cross_entropy)
    torch.testing.assert_close(terms["loss"], cross_entropy + 3 * hinged)
    torch.testing.assert_close(terms["feature_loss"], torch.tensor(sum(roughness) / 8))


def test_defaults_are_those_of_the_paper():
    module = FeatureSmoothingModule(NETWORK, spec=SPEC)
    assert (module.weight, module.train_delta, module.hinge) == (1.0, 0.02, "image")
    assert (module.noise, module.step_size, module.votes) == (0.075, 80.0, 1)
    assert module.tap.layer == "features.group0"
    assert not module.clip


def test_a_training_step_is_one_pass_without_active_defense():
    module = module_of().train()
    module.loss(BATCH, RNG)
    called = []
    for name, layer in module.classifier.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda *_, name=name: called.append(name))
    module.loss(BATCH, RNG)["loss"].backward()
    assert len(called) == len(set(called)) == sum(not list(layer.children()) for layer in module.classifier.modules())
    assert module.last_steps is None


@pytest.mark.parametrize("hinge", ["image", "batch"])
def test_the_hinge_has_no_gradient_where_features_are_flat_enough(hinge):
    def hinge_gradient(images, train_delta):
        module = module_of(hinge=hinge, weight=5.0, train_delta=train_delta)
        terms = module.loss(Batch(images, BATCH.labels, BATCH.indices), RNG)
        (found,) = torch.autograd.grad(
            terms["loss"] - terms["cross_entropy"], module.classifier.features.conv1.weight, allow_unused=True
        )
        return torch.zeros(1) if found is None else found

    assert not hinge_gradient(BATCH.images, 10.0).any()
    assert hinge_gradient(BATCH.images, 0.0).any()
    rough_ones_alone = hinge_gradient(BATCH.images, 0.33)
    assert rough_ones_alone.any()
    assert torch.allclose(rough_ones_alone, hinge_gradient(BATCH.images, 0.0)) is (hinge == "batch")


def test_training_flattens_the_features(tmp_path):
    def trained(weight):
        module = module_of(weight=weight, train_delta=0.0, optimizer=functools.partial(torch.optim.Adam, lr=1e-2))
        quiet_trainer(tmp_path, max_epochs=3).fit(module.train(), toy())
        return feature_loss(module.eval().tap.features(BATCH.images)).mean().item()

    assert trained(10.0) < 0.7 * trained(0.0)


def test_terms_are_logged(tmp_path):
    trainer = quiet_trainer(tmp_path, limit_val_batches=1)
    trainer.fit(module_of().train(), toy())
    wanted = {"train/loss", "train/cross_entropy", "train/feature_loss", "val/feature_loss", "val/clean_accuracy"}
    assert wanted <= set(trainer.callback_metrics)


@pytest.mark.parametrize(
    "settings", [{"weight": -1.0}, {"noise": -0.1}, {"delta": -1.0}, {"max_iter": -1}, {"step_size": -1.0}]
)
def test_negative_numbers_are_refused(settings):
    with pytest.raises(ValueError, match="must not be negative"):
        module_of(**settings)


def test_an_unknown_layer_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"no layer 'group0'.*features\.group0\.block0\.add"):
        module_of(tap="group0")


def test_layers_of_other_networks_can_be_tapped():
    module = FeatureSmoothingModule(ConvNet, spec="3x32x32x5", tap="features.conv2", delta=0.01, max_iter=2).eval()
    images = torch.rand(2, 3, 32, 32)
    assert module(images).shape == (2, 5)
    assert module.loss(Batch(images, BATCH.labels[:2], BATCH.indices[:2]), RNG)["loss"].isfinite()


def test_vectors_can_be_tapped():
    module = module_of(tap="features", delta=0.0, max_iter=2)
    assert module(BATCH.images, RNG).shape == (8, 5)
    assert module.last_steps.tolist() == [2] * 8


# the deployed defense


def test_the_answer_is_that_of_the_classifier_for_smoothed_images():
    module = module_of()
    found = purified(module, BATCH.images, RNG)
    assert torch.equal(module(BATCH.images, RNG), module.classifier(found.images))
    assert torch.equal(module.last_steps, found.steps)
    assert module.undefended is module.classifier


def test_votes_are_the_mean_of_the_softmax_of_single_runs():
    module, images = module_of(votes=3).double(), BATCH.images.double()
    found, steps = module(images, RNG), module.last_steps
    module.votes = 1
    singles, single_steps = [], []
    for vote in range(3):
        singles.append(module(images, RNG.stream("vote", vote)).softmax(dim=1))
        single_steps.append(module.last_steps)
    torch.testing.assert_close(found, torch.stack(singles).mean(dim=0).log(), rtol=0, atol=1e-9)
    assert torch.equal(steps, torch.cat(single_steps))
    assert not torch.allclose(singles[0], singles[1], atol=1e-5)


@pytest.mark.parametrize(("settings", "stochastic"), [({}, True), ({"noise": 0.0}, False), ({"noise_seed": 0}, False)])
def test_a_defense_without_fresh_noise_is_deterministic(settings, stochastic):
    module = module_of(**settings)
    assert module.stochastic is stochastic
    assert torch.equal(module(BATCH.images, RNG), module(BATCH.images, RNG.stream("other"))) is not stochastic


def test_without_delta_the_answer_says_what_to_do():
    module = module_of(delta=None)
    with pytest.raises(ValueError, match=r"no delta for this network: give --model\.delta, or .* advdef calibrate"):
        module(BATCH.images, RNG)


def test_smoothing_takes_autocast():
    module = module_of()
    with torch.autocast("cpu", torch.bfloat16):
        found = module.purify(BATCH.images, RNG)
    assert found.dtype == torch.float32
    assert (module.last_steps > 0).any()
    with torch.no_grad():
        loss = feature_loss(module.tap.features(found))
    finished = module.last_steps < module.max_iter
    assert (loss[finished] < 1.02 * module.delta).all()


# calibration


def expected_delta(module, data):
    data.setup("fit")
    with torch.no_grad():
        losses = [feature_loss(features_of(module, batch.images)[0]) for batch in data.val_dataloader()]
    return 0.92 * torch.cat(losses).mean()


def test_calibrate_finds_the_mean_loss_of_the_validation_split_less_8_percent():
    module, data = module_of(delta=None), toy(val_fraction=0.4)
    module.train()
    expected = expected_delta(module.eval(), toy(val_fraction=0.4))
    found = module.train().calibrate(data)
    assert found == {"delta": pytest.approx(float(expected))}
    assert module.delta == pytest.approx(float(expected))
    assert module.training
    torch.testing.assert_close(module.state_dict()["calibrated_delta"], expected)
    assert module.calibrate(data) == found


def test_calibration_keeps_an_image_of_each_class():
    module, data = module_of(delta=None), toy(val_fraction=0.4)
    module.calibrate(data)
    batches = list(data.val_dataloader())
    images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    assert module.calibrated_anchors.shape == (5, 3, 8, 8)
    for label in range(5):
        anchor = module.calibrated_anchors[label]
        of_class = images[labels == label]
        if len(of_class):
            assert (of_class == anchor).flatten(1).all(dim=1).any()
        else:
            assert anchor.isnan().all()


def test_calibrate_without_a_validation_split_is_refused():
    with pytest.raises(ValueError, match="val_fraction"):
        module_of(delta=None).calibrate(toy(val_fraction=0.0))


def test_validation_in_fit_calibrates_as_well(tmp_path):
    module = module_of(delta=None)
    quiet_trainer(tmp_path, limit_val_batches=1.0, max_epochs=2).fit(module.train(), toy())
    expected = expected_delta(module.eval(), toy())
    assert module.delta == pytest.approx(float(expected), rel=1e-4)
    assert module.calibrate(toy())["delta"] == pytest.approx(module.delta)


def test_a_given_delta_goes_before_the_calibrated_one():
    module = module_of(delta=None)
    module.calibrate(toy())
    calibrated = pytest.approx(float(expected_delta(module, toy())))
    assert module.in_use() == {"delta": calibrated, "delta_from": "calibration"}
    module.given_delta = 0.1
    assert module.in_use() == {"delta": 0.1, "delta_from": "configuration"}
    assert module.calibrate(toy()) == {"delta": calibrated, "delta in the settings, which wins": 0.1}


def test_the_command_calibrates_and_what_it_writes_can_be_tested(advdef, tmp_path, capsys):
    from lightning_advdef.__main__ import run

    settings = [
        *("--model", "FeatureSmoothingModule", "--model.network", "WideResNet"),
        *("--model.network.depth", "10", "--model.network.width", "1", "--model.max_iter", "3"),
        *("--data", "tests.toys.Toy", "--data.toy_spec", SPEC, "--data.count", "8", "--data.val_fraction", "0.5"),
    ]
    save_defense(module_of(delta=None, max_iter=3), tmp_path / "weights.ckpt")
    command = ["calibrate", *settings, "--runs", str(advdef.runs), "-o", str(tmp_path / "calibrated.ckpt")]
    run([*command, f"--model.weights={tmp_path / 'weights.ckpt'}"])
    printed = float(capsys.readouterr().out.partition("delta: ")[2].split()[0])
    assert load_defense(tmp_path / "calibrated.ckpt").delta == pytest.approx(printed, rel=1e-5)
    scenarios = json.dumps([scenario("pgd", "PGD", surrogate="BPDA", eps=0.1, steps=1)])
    weights = f"--model.weights={tmp_path / 'calibrated.ckpt'}"
    folder = advdef("test", *settings, weights, "--evaluation.scenarios", scenarios)
    summary, rows = result_of(folder)
    assert summary["clean_accuracy"]["images"] == 8
    assert rows["pgd/defense_steps"].max() > 0
    assert summary["in_use"] == {"delta": pytest.approx(printed, rel=1e-5), "delta_from": "calibration"}


@pytest.mark.parametrize(
    ("output", "message"), [("a.ckpt", "no trained weights to calibrate"), ("a.safetensors", "a name that ends in")]
)
def test_calibration_writes_no_file_that_says_nothing(advdef, tmp_path, output, message):
    from lightning_advdef.__main__ import run

    settings = ["--model", "FeatureSmoothingModule", "--model.network", "WideResNet", "--data", "Digits"]
    with pytest.raises(ValueError, match=message):
        run(["calibrate", *settings, "--runs", str(advdef.runs), "-o", str(tmp_path / output)])
    assert not list(tmp_path.glob("a.*"))


# files


def test_a_checkpoint_keeps_what_calibration_found(tmp_path):
    module = module_of(delta=None, noise_seed=1)
    trainer = quiet_trainer(tmp_path, limit_val_batches=1.0)
    trainer.fit(module.train(), toy())
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    loaded = load_defense(tmp_path / "a.ckpt")
    assert loaded.delta == module.delta
    assert torch.equal(loaded.calibrated_anchors.nan_to_num(-1), module.calibrated_anchors.nan_to_num(-1))
    assert torch.equal(loaded(BATCH.images), module.eval()(BATCH.images))


@pytest.mark.parametrize(("tap", "kept"), [(TAP, True), ("features.group1", False)])
def test_the_delta_of_another_layer_is_not_taken_over(tmp_path, tap, kept):
    calibrated = module_of(delta=None)
    calibrated.calibrate(toy())
    save_defense(calibrated, tmp_path / "a.ckpt")
    module = module_of(delta=None, tap=tap, weights=str(tmp_path / "a.ckpt"))
    module.setup("test")
    anchors, expected = (each.calibrated_anchors.nan_to_num(-1) for each in (module, calibrated))
    assert torch.equal(anchors, expected), "images, whatever the layer"
    if kept:
        assert module.delta == calibrated.delta
    else:
        with pytest.raises(ValueError, match=r"Active Defense has no delta for this network.*advdef calibrate"):
            _ = module.delta


def test_weights_of_a_standard_module_are_enough_for_a_test(tmp_path):
    standard = StandardModule(NETWORK, spec=SPEC)
    trainer = quiet_trainer(tmp_path)
    trainer.fit(standard, toy())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module = module_of(delta=None)
    load_weights(module, tmp_path / "a.ckpt", complete=True)
    assert torch.equal(module.eval().classifier(BATCH.images), standard.eval().classifier(BATCH.images))
    assert module.calibrated_delta.isnan()
    with pytest.raises(CheckpointError):
        load_weights(FeatureSmoothingModule(TanhNetwork, tap="features", spec=SPEC), tmp_path / "a.ckpt", complete=True)


def test_the_state_holds_the_network_once():
    names = list(module_of().state_dict())
    own = [f"classifier.{name}" for name in WideResNet(get_spec(SPEC), depth=10, width=1).state_dict()]
    assert sorted(names) == sorted([*own, "calibrated_delta", "calibrated_anchors"])


# evaluation


class Shuffled(Toy):
    def test_dataloader(self):
        dataset = self._dataset("test")
        generator = torch.Generator().manual_seed(3)
        return DataLoader(dataset, self.batch_size, shuffle=True, collate_fn=as_is, generator=generator)


def evaluate(folder, data, strict, **settings):
    """Summary and columns of ``advdef test`` with two attackers."""
    attack = APGD(8 / 255, steps=2)
    scenarios = [Scenario("bpda", attack, surrogate=BPDA), Scenario("unrolled", attack, surrogate=Unrolled)]
    evaluation = RobustnessEvaluation(
        scenarios, batch_size=12, strict=strict, draws=2, folder=str(folder), progress=False
    )
    trainer = quiet_trainer(folder, callbacks=[evaluation])
    trainer.test(module_of(max_iter=4, step_size=2.0, delta=0.34, **settings), datamodule=data, verbose=False)
    return result_of(folder)


def toys(data_class=Toy, batch_size=20):
    return data_class(toy_spec=SPEC, count=20, batch_size=batch_size)


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled.*")
def test_strict_rows_know_neither_batch_size_nor_order(tmp_path):
    _, expected = evaluate(tmp_path / "a", toys(), True, votes=2)
    _, found = evaluate(tmp_path / "b", toys(Shuffled, 7), True, votes=2)
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        assert (found[name] == column).all(), name


def test_fast_verdicts_are_those_of_strict_mode(tmp_path):
    _, expected = evaluate(tmp_path / "a", toys(), True)
    _, found = evaluate(tmp_path / "b", toys(batch_size=7), False)
    for name in expected:
        if name.endswith("/prediction"):
            assert (found[name] == expected[name]).all(), name


def test_steps_and_capped_runs_are_told(tmp_path):
    summary, rows = evaluate(tmp_path, toys(), False, votes=2)
    for name in ("clean", "bpda", "unrolled"):
        steps, capped = rows[f"{name}/defense_steps"], rows[f"{name}/defense_capped"]
        assert steps.shape == (20,)
        assert ((steps >= 0) & (steps <= 4)).all()
        assert steps.min() < steps.max()
        assert set(capped) <= {0, 0.5, 1}
        assert (steps[capped == 1] == 4).all()
        assert (capped == 1).any()
        told = summary if name == "clean" else next(s for s in summary["scenarios"] if s["name"] == name)
        assert told["defense_steps"] == pytest.approx(steps.mean())
        assert told["defense_capped"] == pytest.approx(capped.mean())
