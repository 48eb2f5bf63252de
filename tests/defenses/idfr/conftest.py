"""A target, and both trainings that follow it."""

import pytest

from tests.defenses.idfr.helpers import (
    loaded,
    module_of,
    saved,
    target_of,
)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Checkpoints of a target and of both trainings that follow."""
    folder = tmp_path_factory.mktemp("idfr")
    target = target_of(folder)
    denoiser = saved(module_of(weights=target), folder / "denoise.ckpt", max_epochs=2)
    restorer = saved(module_of(stage="restore", weights=denoiser), folder / "restore.ckpt", max_epochs=2)
    return {"target": target, "denoise": denoiser, "restore": restorer}


@pytest.fixture
def whole(runs):
    """Target, denoiser and restorer, all trained."""
    return loaded(runs["restore"])
