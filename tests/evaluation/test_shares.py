import pytest
import torch

from lightning_advdef.evaluation.shares import idle, in_words, share_of
from tests.conftest import result_of, scenario


def test_share_holds_images_and_passes_of_all_scenarios():
    batch = {"index": torch.tensor([4, 7]), "label": torch.zeros(2)}
    batch |= {"a/forward": torch.tensor([1, 2]), "a/backward": torch.tensor([1, 1]), "b/forward": torch.tensor([5, 0])}
    batch |= {"b/backward": torch.zeros(2)}
    assert share_of([batch, batch], ["a", "b"], 3.0) == {"images": 4, "seconds": 3.0, "passes": 20}


def test_idle_is_what_the_first_one_ready_waits():
    shares = [{"seconds": 8, "passes": 3}, {"seconds": 10, "passes": 12}, {"seconds": 9, "passes": 3}]
    assert idle(shares) == pytest.approx(0.2)
    assert idle(shares, "passes") == pytest.approx(0.75)


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_a_process_alone_is_never_idle(seconds):
    assert idle([{"seconds": seconds}]) == 0


def test_two_processes_state_what_each_did(advdef, ddp):
    ddp("tests.evaluation.test_exactness:command_on_two", runs=advdef.runs)
    summary, rows = result_of(advdef.runs / "run")
    shares = summary["processes"]
    assert sum(share["images"] for share in shares) == len(rows["index"]) == 21
    assert sum(share["passes"] for share in shares) == rows["pgd/forward"].sum() + rows["pgd/backward"].sum()
    assert in_words(shares).startswith("2 processes judged ")


def test_one_process_states_its_time(advdef):
    folder = advdef.digits("test", scenarios=[scenario("pgd", "PGD", eps=0.1, steps=2)])
    (share,) = result_of(folder)[0]["processes"]
    assert share["images"] == 20
    assert share["seconds"] > 0
