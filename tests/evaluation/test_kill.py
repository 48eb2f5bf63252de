"""An evaluation that loses its power in the middle of a cascade goes on where it was."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_advdef.__main__ import run
from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation import Judge
from lightning_advdef.evaluation.rows import read_rows
from tests.conftest import QUIET, ROOT, Command, scenario

IMAGES, BATCH = 24, 4
AT_PASS = {False: 80, True: 120}  # of a process: within the cascade of its second batch
PATIENCE_SECONDS = 120


class Words(Command):
    """The words of a command, instead of running it."""

    def __call__(self, command, *arguments, name="run"):
        return [command, *QUIET, "--runs", str(self.runs), "--name", name, *map(str, arguments)]


def words(runs, strict=False, processes=1, name="run", eps=0.05):
    """The command under test."""
    bounded = {"pgd": {"steps": 3}, "square": {"queries": 15}}
    classes = {"pgd": "PGD", "square": "Square"}
    parts = {key: {"class_path": classes[key], "init_args": {"eps": eps} | bounded[key]} for key in classes}
    several = [f"--trainer.devices={processes}", "--trainer.strategy=ddp"] if processes > 1 else []
    return Words(Path(runs)).digits(
        "test",
        *("--model=tests.toys.Halting", f"--evaluation.batch_size={BATCH}", f"--evaluation.strict={strict}", *several),
        scenarios=[scenario("cascade", "Cascade", attacks=parts), scenario("deepfool", "DeepFool", steps=3)],
        limit=IMAGES,
        name=name,
    )


def judged_by(arguments):
    """Runs the command in this process and tells which images it judged."""
    judged, judge = [], Judge.__call__

    def noted(self, batch, *known):
        judged.extend(batch.indices.tolist())
        return judge(self, batch, *known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "__call__", noted)
        run(arguments)
    return judged


def kill(arguments, folder, processes, at_pass):
    """Starts the command, waits until each of its processes hangs in that pass, and kills them all at once.

    Returns:
        Indices of the images that were judged by then.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_advdef", *arguments],
        cwd=ROOT,
        env=os.environ | {"HALT_AT_PASS": str(at_pass), "HALT_FOLDER": str(folder)},
        start_new_session=True,
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while len(list(folder.glob("halted_*"))) < processes:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline, "it never came to that pass"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shards = folder.glob("runs/run/shards/*.npz")
    return [int(index) for shard in shards for index in read_rows(shard)["index"]]


def assert_was_killed_in_the_middle(folder, before):
    assert 0 < len(before) < IMAGES, f"{len(before)} of {IMAGES} images were judged"
    assert not (folder / "runs" / "run" / "robustness.npz").exists()


def assert_each_image_was_judged_once(judged):
    assert len(judged) == len(set(judged)) == IMAGES


def assert_same_rows(folder):
    ours, theirs = ((folder / "runs" / name / "robustness.npz").read_bytes() for name in ("run", "whole"))
    assert ours == theirs
    assert not (folder / "runs" / "run" / "shards").exists()


def test_a_killed_evaluation_continues_to_the_same_bytes_and_another_is_refused(tmp_path):
    runs = tmp_path / "runs"
    before = kill(words(runs), tmp_path, processes=1, at_pass=AT_PASS[False])
    assert_was_killed_in_the_middle(tmp_path, before)
    with pytest.raises(ResultFolderError, match=r"^[^\n]* a different run \([^\n]*0.05 there, 0.06 now\)[^\n]*$"):
        run(words(runs, eps=0.06))
    after = judged_by(words(runs))
    assert_each_image_was_judged_once(before + after)
    run(words(runs, name="whole"))
    assert_same_rows(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_two_killed_processes_continue_to_the_same_bytes(tmp_path, ddp, strict):
    command = functools.partial(words, tmp_path / "runs", strict, processes=2)
    before = kill(command(), tmp_path, processes=2, at_pass=AT_PASS[strict])
    assert_was_killed_in_the_middle(tmp_path, before)
    after = ddp("tests.evaluation.test_kill:judged_by", arguments=command())
    assert_each_image_was_judged_once(before + after[0] + after[1])
    ddp("tests.evaluation.test_kill:judged_by", arguments=command(name="whole"))
    assert_same_rows(tmp_path)
