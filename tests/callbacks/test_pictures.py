"""What TensorBoard and the terminal show."""

import io

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_advdef.callbacks.pictures import curve_figure
from lightning_advdef.callbacks.progress import AttackProgress
from tests.conftest import scenario


@pytest.fixture
def events(advdef):
    folder = advdef.digits("test", scenarios=[scenario("pgd", "PGD", eps=0.1, steps=2), scenario("df", "DeepFool")])
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_event_file_holds_numbers_pictures_and_a_curve(events):
    tags = events.Tags()
    expected = {"test/clean_accuracy", "test/robust_accuracy/pgd", "test/rho/df", "test/worst_case_accuracy/linf_0.1"}
    assert expected <= set(tags["scalars"])
    assert set(tags["images"]) == {"examples/pgd", "examples/df", "accuracy_against_norm"}
    assert 0 <= events.Scalars("test/robust_accuracy/pgd")[-1].value <= 1
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


def test_many_scenarios_wrap_instead_of_pushing_the_bar_out():
    names = [f"scenario_with_a_long_name_{number}" for number in range(20)]
    output = io.StringIO()
    bar = AttackProgress(2, names, Console(file=output, force_terminal=True, width=60))
    columns = {f"{name}/correct": torch.ones(2) for name in ["clean", *names]}
    bar.judged({"index": torch.arange(2), **columns})
    bar.close()
    assert "2/2 images" in output.getvalue().replace("\x1b[0m", "").replace("\x1b[32m", "")
    assert "scenario_with_a_long_name_19" in output.getvalue()
