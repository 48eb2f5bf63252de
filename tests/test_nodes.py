"""Several machines, played by processes that find each other as machines do."""

import contextlib
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT, result_of, scenario
from tests.ddp import free_port
from tests.evaluation.test_exactness import assert_same
from tests.evaluation.test_kill import Words
from tests.pages import all_commands

SCENARIOS = [scenario("pgd", "PGD", eps=0.1, steps=5), scenario("deepfool", "DeepFool", steps=5)]
IMAGES = 21
PATIENCE_SECONDS = 300


def launch(arguments):
    """Starts the command on two machines of one process each, and waits for the end."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", *options_of_the_page()]
    command = [*torchrun, "-m", "lightning_advdef", *arguments, "--trainer.num_nodes=2"]
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            stack.callback(end, process)


def options_of_the_page():
    """Those of torchrun in docs/cluster.md, for one process on each machine and a meeting here."""
    (words,) = (words for words in all_commands(ROOT / "docs" / "cluster.md") if words[0] == "torchrun")
    options = dict(zip(words[1 : words.index("-m") : 2], words[2 : words.index("-m") : 2], strict=True))
    options |= {"--nproc-per-node": "1", "--rdzv-endpoint": f"127.0.0.1:{free_port()}"}
    return [word for option in options.items() for word in option]


def end(process):
    try:
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, output


def assert_two_machines_give_the_rows_of_one_process(advdef, alone, together):
    options = {"scenarios": SCENARIOS, "limit": IMAGES}
    launch(Words(advdef.runs).digits("test", *alone, *together, name="several", **options))
    single = advdef.digits("test", *alone, name="single", **options)
    assert result_of(advdef.runs / "several")[0]["world_size"] == 2
    assert_same(advdef.runs / "several", result_of(single)[1], strict=False)


@pytest.mark.slow
def test_two_machines_give_the_rows_of_one_process(advdef):
    assert_two_machines_give_the_rows_of_one_process(advdef, [], ["-c", ROOT / "configs" / "trainer" / "ddp.yaml"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_machines_that_share_a_gpu_give_the_rows_of_one_process(advdef):
    # each takes its first GPU, which is the same; NCCL refuses that and gloo does not
    gloo = ["--trainer.strategy=DDPStrategy", "--trainer.strategy.process_group_backend=gloo"]
    assert_two_machines_give_the_rows_of_one_process(advdef, ["--trainer.accelerator=gpu"], gloo)
