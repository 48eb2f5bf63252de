"""Every configuration file is run: fitted for a step, if there is something to train, and tested, on generated data."""

import inspect
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from jsonargparse import Namespace

from lightning_advdef import data, defenses
from lightning_advdef.attacks import AutoAttack
from lightning_advdef.cli import AdvDefCLI
from lightning_advdef.defenses.purification import TrainingFreeModule
from lightning_advdef.evaluation.diagnostics import probes
from tests.conftest import ROOT, Command, result_of

CONFIGS = ROOT / "configs"
SUITES = sorted((CONFIGS / "evaluation").glob("*.yaml"))
EXPERIMENTS = [path for path in sorted(CONFIGS.glob("*/*.yaml")) if "model" in yaml.safe_load(path.read_text())]
TRIFLES = {
    "steps": 2,
    "restarts": 1,
    "queries": 4,
    "targets": 2,
    "rounds": 2,
    "search_steps": 2,
    "samples": 2,
    "width": 8,
    "depth": 10,
    "max_iter": 3,
    "iterations": 2,
}
# left out where a preset has them
OF_PRESETS = ("rounds", "iterations")
# suites of attackers who know one defense, by the beginning of their name
OWNERS = {
    "idfr": {
        "class_path": "IDFRModule",
        "init_args": {
            "stage": "restore",
            "denoiser": {"class_path": "InputDenoiser", "init_args": {"width": 2}},
            "restorer": {"class_path": "FeatureRestorer", "init_args": {"hidden": [32]}},
        },
    },
    "ride": {"class_path": "RIDEModule", "init_args": {"rounds": 2, "iterations": 2, "forwards": 1}},
    "squeezing": {
        "class_path": "FeatureSqueezingModule",
        "init_args": {"squeezers": ["BitDepth", "Median"], "threshold": 0.5},
    },
}


def name_of(path):
    return str(Path(path).relative_to(CONFIGS).with_suffix(""))


@cache
def read(*files):
    """The command line that some files give together; reading them is most of what a test of so few images costs."""
    return ParseOnly(args=["test", *(word for path in files for word in ("-c", str(path)))])


def parsed(*files):
    """The configuration of some files."""
    return read(*files).config["test"]


class ParseOnly(AdvDefCLI):
    """Stops before anything is built."""

    def before_instantiate_classes(self):
        """No folder is made."""

    def instantiate_classes(self):
        """Nothing."""

    def _run_subcommand(self, subcommand):
        """Nothing."""


def scenarios_of(config):
    return [entry.as_dict() if isinstance(entry, Namespace) else entry for entry in config.evaluation.scenarios]


def small(settings):
    """Settings with few steps, narrow networks and two budgets, in whatever they are nested."""
    if isinstance(settings, list):
        return [small(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    if isinstance(settings.get("eps"), list):
        settings = settings | {"eps": settings["eps"][-2:]}
    return {
        key: min(value, TRIFLES[key]) if key in TRIFLES and value else small(value) for key, value in settings.items()
    }


def spec_of(config):
    """Name of the data set's spec, from its class or its settings."""
    settings = config.data.init_args
    return settings.get("spec") or getattr(data, config.data.class_path.rpartition(".")[2])(**settings).spec


def class_of(config):
    """The defense."""
    return getattr(defenses, config["model"]["class_path"].rpartition(".")[2])


def is_trained(config):
    """Whether there is something to fit: a purifier needs the weights of other trainings alone."""
    return not issubclass(class_of(config), TrainingFreeModule)


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    """What the diagnostics take of every defense, in few steps."""
    monkeypatch.setattr(probes, "HUGE", replace(probes.HUGE, steps=TRIFLES["steps"]))


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    """What AutoAttack consists of, in few steps: it has none of its own to set."""
    parts = AutoAttack.parts

    def shortened(self):
        return {name: replace(part, **trifles_of(part)) for name, part in parts(self).items()}

    monkeypatch.setattr(AutoAttack, "parts", shortened)


def trifles_of(attack):
    return {field.name: TRIFLES[field.name] for field in fields(attack) if field.name in TRIFLES}


def test_there_are_experiments_and_suites():
    assert EXPERIMENTS
    assert SUITES


def _timed(path):
    """Large networks take up to 20 seconds and have smaller siblings; CIFAR-100 and SVHN are run as CIFAR-10 is."""
    large = ("imagenet", "nin", "wrn")
    marks = [pytest.mark.slow] if any(name in path.stem for name in (*large, "cifar100", "svhn")) else []
    return pytest.param(path, marks=marks, id=name_of(path))


@pytest.mark.parametrize("experiment", [_timed(path) for path in EXPERIMENTS])
def test_experiment_is_run(tmp_path, monkeypatch, experiment):
    monkeypatch.chdir(ROOT)  # a frozen classifier is one of the shipped networks
    config = merged(experiment)
    small_scenarios = [small(entry) for entry in config["evaluation"]["scenarios"]] or [
        {"name": "fgsm", "attack": {"class_path": "FGSM", "init_args": {"eps": 0.01}}}
    ]
    toy = {"toy_spec": spec_of(parsed(experiment)), "count": 4, "batch_size": 4}
    known = inspect.signature(class_of(config)).parameters
    of_presets = {name: TRIFLES[name] for name in OF_PRESETS if name in known}
    config["model"]["init_args"] = of_presets | small(config["model"]["init_args"])
    # trained networks are not needed to take a step, and nothing is downloaded
    if not config["model"]["init_args"].get("freeze_classifier"):
        config["model"]["init_args"]["weights"] = None
    if "weights" in config["model"]["init_args"]["network"]["init_args"]:
        config["model"]["init_args"]["network"]["init_args"]["weights"] = None
    config["data"] = {"class_path": "tests.toys.Toy", "init_args": toy}
    # a method is diagnosed on one data set, which is most of what a test of so few images costs
    config["evaluation"] |= {"scenarios": small_scenarios, "draws": 2, "diagnostics": experiment.stem == "mnist"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    advdef = Command(tmp_path)
    options = ["-c", tmp_path / "config.yaml"]
    if is_trained(config):
        folder = advdef("fit", *options, "--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=0")
        options += ["--model.weights", folder / "model.ckpt"]
    assert result_of(advdef("test", *options))[0]["clean_accuracy"]["images"] == 4


def merged(*files):
    """Model, data and evaluation of some files together, without their references to others."""
    cli = read(*files)
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_link_targets=True))["test"]
    return {key: value for key, value in config.items() if key in ("model", "data", "evaluation")}


@pytest.mark.parametrize("suite", SUITES, ids=name_of)
def test_suite_is_run(tmp_path, monkeypatch, suite):
    spec = "cifar10" if "cifar10" in suite.stem else "mnist"
    scenarios = merged(CONFIGS / "standard" / f"{spec}.yaml", suite)["evaluation"]["scenarios"]
    network = {"class_path": "MLP", "init_args": {"hidden": [8]}}
    owner = OWNERS.get(suite.stem.partition("_")[0])
    defense = owner or {"class_path": "StandardModule", "init_args": {}}
    config = {
        "model": defense | {"init_args": defense["init_args"] | {"network": network}},
        "data": {"class_path": "tests.toys.Toy", "init_args": {"toy_spec": spec, "count": 12, "batch_size": 12}},
        "evaluation": {"scenarios": small(scenarios), "draws": 2, "diagnostics": False},
        "trainer": {"logger": False},  # pictures are a third of the time of many scenarios
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(ROOT)  # suites name the shipped networks by their place in the repository
    summary, rows = result_of(Command(tmp_path)("test", "-c", tmp_path / "config.yaml"))
    assert summary["clean_accuracy"]["value"] > 0, "an untrained network guesses a few"
    # a list of eps gives a row each
    assert {found["name"].partition("/")[0] for found in summary["scenarios"]} == {entry["name"] for entry in scenarios}
    if owner:
        names = [found["name"] for found in summary["scenarios"]]
        adaptive = [entry["name"] for entry in scenarios if entry.get("surrogate") == "adaptive"]
        assert adaptive
        assert all(sum(name.startswith(f"{each}/") for name in names) > 1 for each in adaptive), (
            "an attack for each part"
        )
    for found in summary["scenarios"]:
        assert 0 <= found["robust_accuracy"]["value"] <= summary["clean_accuracy"]["value"]
        assert np.isfinite(rows[f"{found['name']}/linf"]).all()


@pytest.fixture(scope="module")
def short_suite(tmp_path_factory):
    """How a suite is added does not depend on its length, but the time to read it does."""
    path = tmp_path_factory.mktemp("suites") / "short.yaml"
    path.write_text("evaluation: {scenarios+: [{name: added, attack: {class_path: FGSM, init_args: {eps: 0.1}}}]}")
    return path


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=name_of)
def test_a_suite_appends_to_the_experiment(experiment, short_suite):
    own = scenarios_of(parsed(experiment))
    together = scenarios_of(parsed(experiment, short_suite))
    assert together[:-1] == own
    assert together[-1]["name"] == "added"


def test_no_two_scenarios_of_experiments_and_suites_share_a_name():
    suites = [yaml.safe_load(suite.read_text())["evaluation"] for suite in SUITES]
    assert all(list(suite) == ["scenarios+"] for suite in suites), "a suite appends, and does nothing else"
    appended = [entry["name"] for suite in suites for entry in suite["scenarios+"]]
    assert len(set(appended)) == len(appended)
    for experiment in EXPERIMENTS:
        own = (yaml.safe_load(experiment.read_text()).get("evaluation") or {}).get("scenarios") or []
        assert not {entry["name"] for entry in own} & set(appended)


def test_every_experiment_has_a_name_of_its_own():
    names = [yaml.safe_load(path.read_text())["name"] for path in EXPERIMENTS]
    assert len(set(names)) == len(names)


def test_an_attack_keeps_its_own_defaults_where_a_configuration_names_it(tmp_path):
    model = {"class_path": "AdversarialTrainingModule", "init_args": {"network": "LeNet"}}
    model["init_args"]["attack"] = {"class_path": "FGM", "init_args": {"eps": 1.0}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": "MNIST"}))
    assert parsed(tmp_path / "config.yaml").model.init_args.attack.init_args.norm == "l2"
