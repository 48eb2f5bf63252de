"""What TensorBoard shows while a test runs."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_advdef.attacks import FGSM
from lightning_advdef.callbacks.judging import Judging
from lightning_advdef.callbacks.running import RunningAccuracies
from lightning_advdef.evaluation import Judge, Scenario
from lightning_advdef.evaluation.judge import JudgeSettings
from lightning_advdef.evaluation.rows import robust
from lightning_advdef.evaluation.store import ResultStore, join_rows
from tests.toys import Foreign, foreign_loader

CLEAN, ROBUST = "running/clean_accuracy", "running/robust_accuracy/fgsm"


def judge():
    torch.manual_seed(0)
    return Judge(Foreign(), [Scenario("fgsm", FGSM(eps=0.1))], JudgeSettings(batch_size=8))


def pass_of(folder, events, rank=0, judged=frozenset()):
    """The judging of one process, its store in ``folder``, its events in ``folder/events``."""
    logger = TensorBoardLogger(folder, name=events, version="")
    trainer = SimpleNamespace(
        world_size=1, global_rank=rank, is_global_zero=rank == 0, state=SimpleNamespace(fn="test"), loggers=[logger]
    )
    store = ResultStore(folder, {})
    store.open()
    return Judging(judge(), trainer, foreign_loader(20, batch_size=8), store, judged, progress=False, diagnostics=False)


def steps(folder, tag):
    """Values by step, as an open TensorBoard reads them now."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)} if tag in events.Tags()["scalars"] else {}


def means(parts):
    """Clean and robust accuracy of some rows."""
    rows = join_rows(parts)
    return float(rows["clean/correct"].mean()), float(robust(rows, "fgsm").mean())


def test_after_each_batch_the_accuracies_so_far_can_be_read(tmp_path):
    pass_ = pass_of(tmp_path, "events")
    for number, batch in enumerate(foreign_loader(20, batch_size=8), 1):
        pass_.take(batch)
        if len(batch[0]) == 8:
            clean, under_attack = means(pass_.kept)
            assert steps(tmp_path / "events", CLEAN)[8 * number] == pytest.approx(clean)
            assert steps(tmp_path / "events", ROBUST)[8 * number] == pytest.approx(under_attack)
    pass_.flush()
    assert list(steps(tmp_path / "events", ROBUST)) == [8, 16, 20]


def test_a_continued_test_goes_on_from_the_rows_that_are_there(tmp_path):
    first, *others = foreign_loader(20, batch_size=8)
    interrupted = pass_of(tmp_path, "before")
    interrupted.take(first)
    continued = pass_of(tmp_path, "after", judged=set(range(8)))
    for batch in [first, *others]:
        continued.take(batch)
    continued.flush()
    found = steps(tmp_path / "after", ROBUST)
    assert list(found) == [8, 16, 20]
    assert found[20] == pytest.approx(means(interrupted.kept + continued.kept)[1])


def test_other_processes_write_nothing(tmp_path):
    pass_ = pass_of(tmp_path, "events", rank=1)
    pass_.take(next(iter(foreign_loader(20, batch_size=8))))
    assert not (tmp_path / "events").exists()


def test_an_image_that_is_wrong_without_an_attack_is_not_robust():
    so_far = RunningAccuracies(["a"])
    so_far.add({"index": torch.arange(2), "clean/correct": torch.tensor([1.0, 0.0]), "a/correct": torch.ones(2)})
    so_far.add({"index": torch.arange(2, 4), "clean/correct": torch.ones(2), "a/correct": torch.tensor([0.5, 0.0])})
    assert (so_far.images, so_far.clean, so_far.robust) == (4, 0.75, {"a": 0.375})
