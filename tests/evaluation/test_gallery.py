"""Images kept from either end of robustness."""

import numpy as np
import pytest
import torch

from lightning_advdef.attacks import FGSM, DeepFool
from lightning_advdef.evaluation.examples import examples_of
from lightning_advdef.evaluation.gallery import Gallery, read_gallery, robustness_score
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.types import Batch
from tests.conftest import result_of, scenario

COUNT = 20
SCENARIO = Scenario("fgsm", FGSM(eps=0.1))


def judged(order):
    """A batch whose margin after the attack is known; image 5 is wrong from the start."""
    index = torch.tensor(order)
    margins = torch.arange(COUNT).float() - 10
    rows = {"index": index, "label": torch.zeros_like(index), "clean/prediction": (index == 5).long()}
    rows |= {"clean/correct": (index != 5).float(), "fgsm/margin": margins[index]}
    rows["fgsm/prediction"] = (rows["fgsm/margin"] > 0).long()
    images = index.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 32
    return Batch(images, rows["label"], index), images + 0.01, rows


def filled(path, *orders):
    gallery = Gallery([SCENARIO], path)
    for order in orders:
        gallery("fgsm", *judged(order))
    return gallery


def test_both_ends_are_kept_and_images_wrong_from_the_start_are_not(tmp_path):
    kept = filled(tmp_path / "a.npz", range(COUNT)).kept["fgsm"]
    assert kept.indices.tolist() == [19, 18, 17, 16, 3, 2, 1, 0]
    assert kept.clean[0].max() == 19 / 32
    assert kept.perturbation.float() == pytest.approx(torch.full((8, 1, 2, 2), 0.01), abs=1e-3)


def test_ends_do_not_depend_on_batches_processes_or_repeated_images(tmp_path):
    whole = filled(tmp_path / "whole.npz", range(COUNT)).kept["fgsm"]
    for name, orders in (("one", ([0, 7, 19, 4], range(5, 12))), ("two", ([18, 3, 2, 1, 17, 16], range(12, 20), [0]))):
        filled(tmp_path / f"{name}.npz", *orders).save()
    joined = Gallery([SCENARIO], tmp_path / "joined.npz")
    for name in ("one", "two"):
        joined.join(tmp_path / f"{name}.npz")
    joined.save()
    for ours, theirs in zip(read_gallery(tmp_path / "joined.npz")["fgsm"], whole, strict=True):
        assert torch.equal(ours, theirs)


def test_what_was_kept_before_an_interruption_is_kept_on(tmp_path):
    filled(tmp_path / "a.npz", range(10, COUNT)).save()
    again = filled(tmp_path / "a.npz", range(10))
    assert again.kept["fgsm"].indices.tolist() == [19, 18, 17, 16, 3, 2, 1, 0]


def test_the_score_of_a_minimal_norm_attack_is_its_norm_or_infinite_where_it_failed():
    rows = {"label": torch.tensor([0, 0]), "clean/prediction": torch.tensor([0, 0])}
    rows |= {"df/prediction": torch.tensor([1, 0]), "df/l2": torch.tensor([0.5, 0.1])}
    assert robustness_score(rows, Scenario("df", DeepFool())).tolist() == [0.5, float("inf")]


def test_an_evaluation_keeps_its_extremes(advdef):
    scenarios = [scenario("pgd", "PGD", eps=0.1, steps=2), scenario("df", "DeepFool")]
    folder = advdef.digits("test", "--evaluation.batch_size=7", scenarios=scenarios, limit=30)
    _, rows = result_of(folder)
    rows = {name: torch.from_numpy(column) for name, column in rows.items()}
    kept = read_gallery(folder / "examples.npz")
    assert set(kept) == {"pgd", "df"}
    right = rows["clean/correct"] > 0
    assert kept["df"].score[0] == rows["df/l2"][right].min()
    norms = kept["df"].perturbation.float().flatten(1).norm(dim=1)
    assert norms.numpy() == pytest.approx(kept["df"].score.numpy(), rel=5e-3)
    shown = examples_of(kept, rows)["df"]
    assert (shown.classes[:, 0] == shown.classes[:, 1]).all()
    assert (shown.classes[:, 1] != shown.classes[:, 2]).all()


def test_a_scenario_that_is_added_leaves_the_images_of_the_others(advdef):
    first = [scenario("pgd", "PGD", eps=0.1, steps=2)]
    folder = advdef.digits("test", scenarios=first)
    before = read_gallery(folder / "examples.npz")["pgd"]
    advdef.digits("test", scenarios=[*first, scenario("fgsm", "FGSM", eps=0.1)])
    after = read_gallery(folder / "examples.npz")
    assert np.array_equal(after["pgd"].indices, before.indices)
    assert len(after["fgsm"].indices) == 8


def test_a_larger_budget_that_is_added_shows_no_clean_image_as_adversarial(advdef):
    for sizes in ([0.1], [0.1, 0.2]):
        folder = advdef.digits("test", scenarios=[scenario("fgsm", "FGSM", eps=0.1) | {"eps": sizes}], limit=8)
    kept = read_gallery(folder / "examples.npz")["fgsm/eps0.2"]
    assert 0 < len(kept.indices) < 8
    assert (kept.perturbation.flatten(1).abs().amax(dim=1) > 0.1).all()


def test_a_part_that_is_added_leaves_what_one_evaluation_of_all_parts_keeps(advdef):
    parts = {"fgsm": scenario("", "FGSM", eps=0.1)["attack"], "pgd": scenario("", "PGD", eps=0.1)["attack"]}
    for attacks, name in (({"fgsm": parts["fgsm"]}, "extended"), (parts, "extended"), (parts, "whole")):
        advdef.digits("test", scenarios=[scenario("all", "Cascade", attacks=attacks)], limit=30, name=name)
    extended, whole = (read_gallery(advdef.runs / name / "examples.npz")["all"] for name in ("extended", "whole"))
    assert extended.indices.tolist() == whole.indices.tolist()
