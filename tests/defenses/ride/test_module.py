import functools
import sys

import pytest
import torch

from lightning_advdef.__main__ import main
from lightning_advdef.checkpoints import load_defense, save_defense
from lightning_advdef.data import get_spec
from lightning_advdef.defenses import RIDEModule, StandardModule
from lightning_advdef.defenses.ride import RIDE
from lightning_advdef.defenses.ride import progress as progress_file
from lightning_advdef.defenses.ride.networks import FCN, UNet
from lightning_advdef.defenses.ride.progress import progress
from lightning_advdef.models import MLP
from tests.conftest import GOLDEN, QUIET, ROOT, result_of, scenario
from tests.defenses.ride.helpers import images_of, rng_of, settings

SPEC = "1x8x8x10"
NETWORK = functools.partial(MLP, hidden=[8])
SHORT = {"rounds": 2, "iterations": 2, "forwards": 2}
PAPER = {
    "mean": None,
    "std": None,
    "rounds": 5,
    "iterations": 2000,
    "noise": 0.1,
    "source": "image",
    "noisy_target": True,
    "mixing": 0.9,
    "suppression": True,
    "masked": 0.9,
    "dropout": 0.5,
    "forwards": 8,
    "pairs": 1,
    "lr": 1e-4,
    "weight_decay": 1e-4,
    "amsgrad": False,
    "loss": "mse",
    "returned": "estimate",
    "bfloat16": False,
    "chunk": 64,
}
RELEASED = {
    "noisy_target": False,
    "masked": 0.0,
    "forwards": 1,
    "lr": 1e-3,
    "weight_decay": 1e-5,
    "amsgrad": True,
    "loss": "norm",
}
FIXED = {"mixing": 1.0, "suppression": False}
NOISE = {"source": "noise", "noisy_target": False}


def module_of(spec=SPEC, **given):
    torch.manual_seed(0)
    return RIDEModule(NETWORK, spec=spec, **given).eval()


# settings


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {}),
        ({"preset": "released_code"}, RELEASED),
        ({"preset": "fast"}, {"iterations": 400, "lr": 1e-3}),
        ({"variant": "dae"}, FIXED),
        ({"variant": "i-dip"}, NOISE),
        ({"variant": "dip"}, NOISE | FIXED),
        ({"variant": "dae", "preset": "released_code"}, RELEASED | FIXED),
        ({"variant": "dae", "preset": "fast", "mixing": 0.7}, FIXED | {"iterations": 400, "lr": 1e-3, "mixing": 0.7}),
        (
            {"preset": "released_code", "masked": 0.5, "noisy_target": True},
            RELEASED | {"masked": 0.5, "noisy_target": True},
        ),
        (
            {"masked": 0.0, "dropout": 0.0, "suppression": False, "weight_decay": 0.0},
            {"masked": 0.0, "dropout": 0.0, "suppression": False, "weight_decay": 0.0},
        ),
        (
            {
                "returned": "image",
                "bfloat16": True,
                "chunk": 3,
                "pairs": 2,
                "forwards": 4,
                "rounds": 1,
                "iterations": 9,
            },
            {
                "returned": "image",
                "bfloat16": True,
                "chunk": 3,
                "pairs": 2,
                "forwards": 4,
                "rounds": 1,
                "iterations": 9,
            },
        ),
    ],
    ids=lambda value: None,
)
def test_a_preset_is_changed_by_the_variant_and_both_by_what_is_given(given, changed):
    assert module_of(**given).purifier == RIDE(FCN(width=16, depth=4, dropped=(2, 3)), **PAPER | changed)


def test_normalized_networks_have_the_statistics_of_the_data_and_the_papers_noise():
    purifier, spec = module_of("cifar10", space="normalized").purifier, get_spec("cifar10")
    assert (purifier.mean, purifier.std, purifier.noise) == (spec.mean, spec.std, 0.5)
    assert module_of("cifar10", space="normalized", noise=0.2).purifier.noise == 0.2


def test_the_network_of_an_image_may_be_a_unet():
    assert module_of(estimator="unet").purifier.architecture == UNet(width=16, depth=3)


def test_a_number_out_of_range_is_refused():
    with pytest.raises(ValueError, match="masked must lie in"):
        module_of(masked=1.0)


# as a defense


def test_the_classifier_sees_what_the_purifier_makes():
    module, images, rng = module_of(**SHORT), images_of(3), rng_of(3)
    assert module.stochastic
    with torch.no_grad():
        assert torch.equal(module(images, rng), module.classifier(module.purifier(images, rng)))
        assert torch.equal(module.undefended(images), module.classifier(images))


def test_votes_have_networks_of_their_own():
    module, images, rng = module_of(**SHORT, votes=2), images_of(3), rng_of(3)
    with torch.no_grad():
        votes = [module.classifier(module.purifier(images, rng.stream("vote", vote))) for vote in range(2)]
        torch.testing.assert_close(module(images, rng).exp(), sum(vote.softmax(dim=1) for vote in votes) / 2)
    assert not torch.allclose(*votes)


def test_weights_of_a_standard_training_are_enough(tmp_path):
    torch.manual_seed(1)
    trained = StandardModule(NETWORK, spec=SPEC).eval()
    save_defense(trained, tmp_path / "model.ckpt")
    module = module_of(**SHORT, weights=str(tmp_path / "model.ckpt"))
    module.setup("test")
    with torch.no_grad():
        assert torch.equal(module.undefended(images_of(3)), trained(images_of(3)))


def test_a_checkpoint_brings_the_purifier_back(tmp_path):
    module = module_of(**SHORT, variant="i-dip", preset="released_code", space="normalized", estimator="unet", lr=0.01)
    save_defense(module, tmp_path / "model.ckpt")
    loaded = load_defense(tmp_path / "model.ckpt")
    assert loaded.purifier == module.purifier
    with torch.no_grad():
        assert torch.equal(loaded(images_of(2), rng_of(2)), module(images_of(2), rng_of(2)))


# at the command line


def test_a_fit_ends_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = ["fit", "-c", "configs/ride/mnist.yaml", "--runs", str(tmp_path), *QUIET, "--trainer.max_epochs=1"]
    monkeypatch.setattr(sys, "argv", ["advdef", *arguments])
    with pytest.raises(SystemExit):
        main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("advdef: error: RIDEModule has nothing to train")
    assert "--model.weights FILE" in last


def test_a_test_needs_the_weights_of_a_classifier_alone(advdef):
    weights = GOLDEN / "digits_mlp.safetensors"
    attacked = f"[{scenario('gray', 'FGSM', 'Undefended', eps=0.1)}]"
    folder = advdef(
        *("test", "--model", "RIDEModule", "--model.network", "MLP", "--model.network.hidden", "[32]"),
        *("--model.weights", weights, "--model.iterations", 5, "--model.rounds", 1),
        *("--data", "Digits", "--data.limit", 4, "--evaluation.scenarios", attacked, "--evaluation.draws", 1),
    )
    summary, _ = result_of(folder)
    assert summary["clean_accuracy"]["images"] == 4
    assert summary["scenarios"][0]["name"] == "gray"


# figures


def test_the_course_shows_scores_and_distances_of_two_images():
    module, clean = module_of(rounds=2, iterations=30, lr=0.01), images_of(3)
    found = module.figures(clean, (clean + 0.1).clamp(0, 1))
    assert list(found) == ["course", "purified"]
    axes = found["course"].axes
    assert [each.get_ylabel() for each in axes] == ["score", "mean distance, of 255"] * 2
    for each in axes:
        assert each.get_xlabel() == "step"
        assert len(each.get_legend().get_texts()) == 2
        assert all(list(line.get_xdata()) == list(range(1, 61)) for line in each.lines)
    distances = [line.get_ydata() for each in axes[1::2] for line in each.lines]
    assert all(values[-1] < values[0] for values in distances), "networks learn the images"


def test_figures_know_nothing_of_chunks():
    clean = images_of(2)
    one, other = (module_of(**SHORT, chunk=chunk).figures(clean, clean)["course"].axes for chunk in (1, 64))
    for found, expected in zip(one, other, strict=True):
        for line, whole in zip(found.lines, expected.lines, strict=True):
            torch.testing.assert_close(torch.as_tensor(line.get_ydata()), torch.as_tensor(whole.get_ydata()))


def test_images_are_shown_before_and_after_with_their_classes():
    module, clean = module_of(**SHORT), images_of(3)
    axes = module.figures(clean, clean)["purified"].axes
    classes = module.undefended(clean).argmax(dim=1)
    assert [each.get_title().partition(":")[0] for each in axes] == ["clean", "attacked", "purified"] * 2
    assert axes[0].get_title() == f"clean: class {int(classes[0])}"
    assert axes[4].get_title() == f"attacked: class {int(classes[1])}"


def test_figures_show_the_purification_that_is_deployed():
    module, clean = module_of(**SHORT), images_of(2)
    expected = module.purifier(clean, rng_of(2, seed=0))
    shown = [each.images[0].get_array() for each in module.figures(clean, clean)["purified"].axes[2::3]]
    for image, own in zip(shown, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(image.copy()), own[0])


# progress


def test_a_long_purification_counts_the_rounds_of_all_chunks(monkeypatch):
    counts = []

    class Watched(progress_file.Progress):
        def update(self, task, **values):
            counts.append((values["completed"], self.tasks[task].total))

    monkeypatch.setattr(progress_file, "Progress", Watched)
    purifier = settings(chunk=2)
    with progress(purifier, 3) as watch:
        purifier.run(images_of(3), rng_of(3), watch)
    assert counts == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(("patience", "drawn"), [(1e9, False), (0.0, True)])
def test_the_bar_is_drawn_for_long_purifications_only(monkeypatch, patience, drawn):
    bars = []

    class Watched(progress_file.Progress):
        def start(self):
            bars.append(self)
            super().start()

    monkeypatch.setattr(progress_file, "Progress", Watched)
    monkeypatch.setattr(progress_file, "_SECONDS_BEFORE", patience)
    with torch.no_grad():
        module_of(**SHORT)(images_of(2), rng_of(2))
    assert len(bars) == drawn
    assert not any(bar.live.is_started for bar in bars)
