"""What TensorBoard shows while a test runs."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_advdef.attacks import FGSM
from lightning_advdef.callbacks.judging import Judging
from lightning_advdef.evaluation import Judge, Scenario
from lightning_advdef.evaluation.judge import JudgeSettings
from lightning_advdef.evaluation.rows import robust
from lightning_advdef.evaluation.store import ResultStore, join_rows
from tests.toys import Foreign, foreign_loader

CLEAN, ROBUST = "running/clean_accuracy", "running/robust_accuracy/fgsm"
FGSM_ALONE = (Scenario("fgsm", FGSM(eps=0.1)),)


def pass_of(folder, events, rank=0, judged=frozenset(), scenarios=FGSM_ALONE):
    """The judging of one process, its store in ``folder``, its events in ``folder/events``."""
    logger = TensorBoardLogger(folder, name=events, version="")
    trainer = SimpleNamespace(
        world_size=1, global_rank=rank, is_global_zero=rank == 0, state=SimpleNamespace(fn="test"), loggers=[logger]
    )
    store = ResultStore(folder, {})
    store.open()
    torch.manual_seed(0)
    judge = Judge(Foreign(), scenarios, JudgeSettings(batch_size=8))
    return Judging(judge, trainer, foreign_loader(20, batch_size=8), store, judged, progress=False, diagnostics=False)


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


def test_worst_case_curves_and_examples_can_be_seen_too_once_it_takes_long(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_advdef.callbacks.running.FIRST_PICTURES", 0.0)
    pass_ = pass_of(tmp_path, "events", scenarios=[Scenario("fgsm", FGSM(eps=0.01), eps=[0.01, 0.3])])
    images, *_ = next(iter(foreign_loader(20, batch_size=8)))
    pass_.take([images, Foreign().eval()(images).argmax(1)])  # images that are wrong without an attack are not shown
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    tags = events.Tags()
    examples = {f"running/examples/fgsm/eps{eps}" for eps in (0.01, 0.3)}
    assert set(tags["images"]) == {"running/accuracy_against_eps/linf"} | examples
    worst = events.Scalars("running/worst_case_accuracy/linf_0.3")
    assert [(event.step, event.value) for event in worst] == [
        (8, pytest.approx(float(robust(pass_.kept[0], "fgsm/eps0.3").mean())))
    ]


def test_a_short_test_draws_nothing_while_it_runs(tmp_path):
    pass_ = pass_of(tmp_path, "events")
    pass_.take(next(iter(foreign_loader(20, batch_size=8))))
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert events.Tags()["images"] == []
