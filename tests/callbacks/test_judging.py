"""Judging: batches of a loader on their way to the judge."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_advdef.attacks import FGSM
from lightning_advdef.callbacks import judging
from lightning_advdef.callbacks.judging import Judging
from lightning_advdef.evaluation import Judge, Scenario
from lightning_advdef.evaluation.judge import JudgeSettings
from tests.toys import Foreign, foreign_loader


def judging_of(loader, function="test", **options):
    trainer = SimpleNamespace(world_size=1, global_rank=0, is_global_zero=True, state=SimpleNamespace(fn=function))
    judge = Judge(Foreign(), [Scenario("fgsm", FGSM(eps=0.1))], JudgeSettings(batch_size=12))
    return Judging(judge, trainer, loader, **options)


def test_full_batches_are_judged_and_the_rest_at_the_end():
    loader = foreign_loader(20, batch_size=8)
    pass_ = judging_of(loader)
    sizes = []
    for batch in loader:
        pass_.take(batch)
        sizes.append([len(rows["index"]) for rows in pass_.kept])
    assert sizes == [[], [12], [12]]
    pass_.flush()
    assert torch.cat([rows["index"] for rows in pass_.kept]).tolist() == list(range(20))
    assert pass_.share()["images"] == 20


def test_images_judged_before_are_left_out():
    loader = foreign_loader(20, batch_size=8)
    pass_ = judging_of(loader, judged={0, 5, 19})
    for batch in loader:
        pass_.take(batch)
    pass_.flush()
    assert sum(len(rows["index"]) for rows in pass_.kept) == 17


@pytest.mark.parametrize(("function", "refused"), [("test", True), ("predict", True), ("validate", False)])
def test_only_where_images_must_be_told_apart_a_shuffled_loader_is_refused(function, refused):
    loader = DataLoader(foreign_loader(8).dataset, 8, shuffle=True)
    pass_ = judging_of(loader, function)
    if refused:
        with pytest.raises(ValueError, match="the loader shuffles"):
            pass_.take(next(iter(loader)))
    else:
        pass_.take(next(iter(loader)))


@pytest.mark.parametrize("function", ["test", "validate", "predict"])
def test_the_bar_knows_how_many_images_there_are(function, monkeypatch):
    totals = []
    monkeypatch.setattr(judging.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(judging, "AttackProgress", lambda total, names: totals.append((total, names)))
    judging_of(foreign_loader(20), function)
    judging_of(foreign_loader(20), function, progress=False)
    assert totals == [(20, ["fgsm"])]


def test_a_process_without_images_took_no_time():
    assert judging_of(foreign_loader(20)).share() == {"images": 0, "seconds": 0, "passes": 0}
