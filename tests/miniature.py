"""Commands of the pages on generated data, with the settings that take long cut down."""

import functools
import glob
import inspect
import subprocess
import sys

import yaml

from lightning_advdef import defenses
from lightning_advdef.__main__ import COMMANDS, run
from tests.conftest import QUIET
from tests.pages import advdef_words, config_files
from tests.test_configs import OF_PRESETS, TRIFLES, ParseOnly, parsed, small, spec_of
from tests.toys import Toy

COUNT = 20
OWN = {"distill": ["--images=8", "--epochs=1", "--batch=8", "--noise=0.1"], "export": ["--images=8"], "calibrate": []}

# what a command says, with its work done, of a network that is wrong on all images; tests/evaluation draws the figures
OF_RANDOM_LABELS = ("accuracy does not drop", "broke no image", "logged no val/mean_norm")


def execute(words):
    """Runs one command of a page in the current folder."""
    advdef = advdef_words(words)
    if advdef is None:
        _execute_other(words)
    elif advdef[0] in OWN:
        data = ["--data=tests.toys.Toy", f"--data.toy_spec={_spec(advdef)}", f"--data.count={COUNT}"]
        _run_on_random_labels([*advdef, *data, *OWN[advdef[0]], *QUIET])
    elif advdef[0] in COMMANDS:
        _run_on_random_labels([word for given in advdef for word in sorted(glob.glob(given)) or [given]])
    else:
        run([advdef[0], "-c", str(_miniature(advdef)), *QUIET])


def _run_on_random_labels(words):
    try:
        run(words)
    except (ValueError, OSError) as error:
        if not any(sentence in str(error) for sentence in OF_RANDOM_LABELS):
            raise


def _execute_other(words):
    if words[0] == "make":
        return  # its targets are looked at without running them
    assert words[:2] == ["tensorboard", "--logdir"], words
    # a server would not end
    module = [sys.executable, "-m", "tensorboard.main", "--inspect"]
    subprocess.run([*module, *words[1:]], check=True, capture_output=True)


def _spec(words):
    """Name of the data set's spec, of the configuration files alone."""
    return spec_of(parsed(*config_files(words)))


def _miniature(words):
    """A configuration file with all that the words ask for, on few generated images."""
    cli = ParseOnly(args=words)
    spec = spec_of(cli.config[words[0]])
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_link_targets=True))[words[0]]
    config["data"] = {
        "class_path": "tests.toys.Toy",
        "init_args": {"toy_spec": spec, "count": COUNT, "batch_size": 4, "limit": 2},
    }
    config["model"]["init_args"] = _small_model(config["model"])
    config["evaluation"] = small(config["evaluation"]) | {"diagnostics": False}
    if words[0] == "fit":
        config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 2, "num_sanity_val_steps": 0}
    config["trainer"] |= {"strategy": "auto", "num_nodes": 1}
    config["overwrite"] = True
    with open("miniature.yaml", "w") as file:
        yaml.safe_dump(config, file)
    return "miniature.yaml"


def _small_model(model):
    settings = model["init_args"]
    kind = getattr(defenses, model["class_path"].rpartition(".")[2], None)
    known = inspect.signature(kind).parameters if kind else {}
    found = {name: TRIFLES[name] for name in OF_PRESETS if name in known} | small(settings)
    if str(settings.get("weights")).startswith("checkpoints/") and "network" in settings:
        found["network"] = settings["network"]  # weights of the repository fit the network as it is
    return found


def execute_python(block, names):
    """Runs a Python block of a page; MNIST is generated."""
    import lightning_advdef.data

    real, lightning_advdef.data.MNIST = lightning_advdef.data.MNIST, functools.partial(Toy, "mnist", COUNT)
    try:
        exec(block, names)
    finally:
        lightning_advdef.data.MNIST = real
