"""What TensorBoard and the terminal show."""

import io

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_advdef.callbacks.pictures import curve_figure
from lightning_advdef.callbacks.progress import AttackProgress, RobustSoFar
from tests.conftest import result_of, scenario


@pytest.fixture
def tested(advdef):
    return advdef.digits("test", scenarios=[scenario("pgd", "PGD", eps=0.1, steps=2), scenario("df", "DeepFool")])


@pytest.fixture
def events(tested):
    accumulator = EventAccumulator(str(tested))
    accumulator.Reload()
    return accumulator


def test_event_file_holds_numbers_pictures_and_a_curve(tested, events):
    tags = events.Tags()
    expected = {"test/clean_accuracy", "test/robust_accuracy/pgd", "test/rho/df", "test/worst_case_accuracy/linf_0.1"}
    assert expected <= set(tags["scalars"])
    assert set(tags["images"]) == {"examples/pgd", "examples/df", "accuracy_against_norm"}
    stated = {each["name"]: each["robust_accuracy"]["value"] for each in result_of(tested)[0]["scenarios"]}
    assert events.Scalars("test/robust_accuracy/pgd")[-1].value == pytest.approx(stated["pgd"])
    assert events.Images("examples/pgd")[0].encoded_image_string.startswith(b"\x89PNG")


def test_event_file_holds_a_curve_over_the_budgets_of_one_norm(advdef):
    ladder = scenario("pgd", "PGD", eps=0.1, steps=2) | {"eps": [0.05, 0.1]}
    accumulator = EventAccumulator(str(advdef.digits("test", scenarios=[ladder, scenario("l2", "FGM", eps=1.0)])))
    accumulator.Reload()
    curves = [tag for tag in accumulator.Tags()["images"] if tag.startswith("accuracy_against_eps")]
    assert curves == ["accuracy_against_eps/linf"]


def test_event_file_holds_hyperparameters_with_their_metrics(events):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    metadata = events.summary_metadata
    found = HParamsPluginData.FromString(metadata["_hparams_/session_start_info"].plugin_data.content)
    assert "network/class_path" in found.session_start_info.hparams
    experiment = HParamsPluginData.FromString(metadata["_hparams_/experiment"].plugin_data.content).experiment
    assert "test/robust_accuracy/pgd" in {info.name.tag for info in experiment.metric_infos}


def test_no_curve_without_a_minimal_norm_attack():
    assert curve_figure({}, []) is None


def test_bar_counts_images_and_shows_robust_accuracy_below_it():
    output = io.StringIO()
    bar = AttackProgress(4, ["a", "b"], Console(file=output, force_terminal=True, width=80))
    ones = torch.ones(4)
    bar.judged({"index": torch.arange(4), "clean/correct": ones, "a/correct": ones, "b/correct": ones * 0})
    bar.close()
    assert "robust so far: a 100.0%  b 0.0%" in output.getvalue()
    assert "4/4" in output.getvalue()


def test_an_image_that_is_wrong_without_an_attack_is_not_robust():
    so_far = RobustSoFar(["a"])
    so_far.add({"index": torch.arange(2), "clean/correct": torch.tensor([1.0, 0.0]), "a/correct": torch.ones(2)})
    so_far.add({"index": torch.arange(2, 4), "clean/correct": torch.ones(2), "a/correct": torch.tensor([0.5, 0.0])})
    assert (so_far.images, so_far.accuracies()) == (4, {"a": 0.375})


def test_many_scenarios_wrap_instead_of_pushing_the_bar_out():
    names = [f"scenario_with_a_long_name_{number}" for number in range(20)]
    output = io.StringIO()
    bar = AttackProgress(2, names, Console(file=output, force_terminal=True, width=60))
    columns = {f"{name}/correct": torch.ones(2) for name in ["clean", *names]}
    bar.judged({"index": torch.arange(2), **columns})
    bar.close()
    assert "2/2 images" in output.getvalue().replace("\x1b[0m", "").replace("\x1b[32m", "")
    assert "scenario_with_a_long_name_19" in output.getvalue()
