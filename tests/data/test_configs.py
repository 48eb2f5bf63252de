from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from lightning_advdef import data
from lightning_advdef.data import DataModule

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))


def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    return parser


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds_its_data_set(path):
    cli = parser()
    built = cli.instantiate_classes(cli.parse_args([f"--data={path}", "--data.batch_size=2", "--data.limit=5"])).data
    assert (built.batch_size, built.limit) == (2, 5)


def test_every_data_set_has_a_config():
    names = {name for name in data.__all__ if name not in ("DataModule", "get_spec")}
    text = "".join(path.read_text() for path in CONFIGS)
    assert len(CONFIGS) == len(names)
    assert all(f"class_path: {name}\n" in text for name in names)
