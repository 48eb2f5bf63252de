"""A long-lived pool of two gloo processes.

Each is set up as torchrun would do it, so a ``Trainer(devices=2, strategy="ddp")`` inside a task joins the group
instead of starting processes; Lightning makes the group once and later Trainers reuse it. A task is a function at the
top of a module, named by a string; both processes call it at the same time.
"""

import importlib
import multiprocessing
import os
import socket
import traceback

WORLD_SIZE = 2
PATIENCE_SECONDS = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(rank, port, connection):
    """Life of one process: calls tasks until the connection closes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(WORLD_SIZE),
        "LOCAL_WORLD_SIZE": str(WORLD_SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
        "OMP_NUM_THREADS": "1",
    }
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            task, arguments = connection.recv()
        except EOFError:
            return
        try:
            module, _, name = task.partition(":")
            connection.send((True, getattr(importlib.import_module(module), name)(**arguments)))
        except BaseException:
            connection.send((False, traceback.format_exc()))


class Pool:
    """Starts with the first task; starts anew after one that failed, since the other process may be stuck in it."""

    def __init__(self):
        self.processes = []
        self.connections = []

    def __call__(self, task, **arguments):
        """Runs ``module:function`` on both processes.

        Returns:
            What each returned, by rank.
        """
        if not self.processes:
            self._start()
        for connection in self.connections:
            connection.send((task, arguments))
        answers = []
        for rank, connection in enumerate(self.connections):
            if not connection.poll(PATIENCE_SECONDS):
                self.close()
                raise TimeoutError(f"process {rank} did not finish {task}")
            succeeded, answer = connection.recv()
            if not succeeded:
                self.close()
                raise RuntimeError(f"process {rank} failed in {task}:\n{answer}")
            answers.append(answer)
        return answers

    def _start(self):
        context = multiprocessing.get_context("spawn")
        port = free_port()
        for rank in range(WORLD_SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)

    def close(self):
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self.processes, self.connections = [], []
