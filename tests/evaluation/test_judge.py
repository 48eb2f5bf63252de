"""Rows of a batch: budgets, rounding, margins, and what an extension takes over."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from lightning_advdef.attacks import APGD, FAB, FGSM, PGD, Cascade, DeepFool, FixedBudgetAttack, Noise, Square
from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.checkpoints import load_weights
from lightning_advdef.data import get_spec
from lightning_advdef.defenses import StandardModule
from lightning_advdef.evaluation import Judge, Scenario
from lightning_advdef.evaluation.judge import NORMS, JudgeSettings, rounded_to_8_bits
from lightning_advdef.evaluation.rows import robust
from lightning_advdef.evaluation.summary import summarise
from lightning_advdef.models import MLP
from lightning_advdef.types import Batch
from tests.attacks.helpers import ShortAutoAttack
from tests.conftest import GOLDEN
from tests.toys import Flat, NoisyInput


class Counting(nn.Module):
    """Counts the images that pass."""

    def __init__(self, network):
        super().__init__()
        self.network, self.rows = network, 0

    def forward(self, images):
        self.rows += len(images)
        return self.network(images)


def golden(defense=StandardModule, spec="digits"):
    module = defense(lambda shape: MLP(shape, hidden=[32]), spec=spec)
    load_weights(module, GOLDEN / "digits_mlp.safetensors", complete=False)
    return module.eval()


@pytest.fixture(scope="module")
def batch():
    from lightning_advdef.data import Digits

    data = Digits(batch_size=24)
    data.setup("test")
    return Batch(*next(iter(data.test_dataloader())))


def judged(defense, scenarios, batch, known=None, **settings):
    return Judge(defense, scenarios, JudgeSettings(**settings))(batch, known)


def summary(defense, scenarios, batch, **settings):
    judge = Judge(defense, scenarios, JudgeSettings(**settings))
    rows = judge(batch)
    return rows, summarise(rows, judge.scenarios, judge.describe())


def assert_same(ours, theirs, but=()):
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name not in but:
            assert torch.equal(ours[name].nan_to_num(-5), theirs[name].nan_to_num(-5)), name


# budgets

SIZES = [0.08, 0.03, 0.05]
CASCADE = {"apgd": APGD(0.05, steps=3), "fab": FAB(steps=4), "square": Square(0.05, queries=15)}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "attack", [PGD(0.3, steps=3), Cascade(attacks=CASCADE), Cascade(attacks=CASCADE, cascade=False)]
)
def test_several_budgets_give_a_row_each_and_larger_ones_are_never_safer(batch, attack, strict):
    judge = Judge(golden(), [Scenario("pgd", attack, eps=SIZES)], JudgeSettings(batch_size=32, strict=strict))
    rows = judge(batch)
    names = [scenario.name for scenario in judge.scenarios]
    assert names == ["pgd/eps0.03", "pgd/eps0.05", "pgd/eps0.08"]
    assert [float(scenario.attack.eps) for scenario in judge.scenarios] == sorted(SIZES)
    correct = torch.stack([rows[f"{name}/correct"] for name in names])
    assert (correct[1:] <= correct[:-1]).all()
    assert 0 < correct[0].sum() < 24
    assert correct[2].sum() < correct[0].sum()
    for name, eps in zip(names, sorted(SIZES), strict=True):
        assert (rows[f"{name}/linf"] <= eps + 1e-6).all()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("attack", [PGD(0.3, steps=3), Cascade(attacks=CASCADE)])
def test_images_that_a_smaller_budget_broke_cost_nothing(batch, attack, strict):
    rows = judged(golden(), [Scenario("a", attack, eps=[0.03, 0.08])], batch, batch_size=32, strict=strict)
    broken = rows["a/eps0.03/correct"] == 0
    columns = [name for name in rows if name.startswith("a/eps0.08") and name.endswith(("forward", "backward"))]
    assert len(columns) == 2 + 2 * len(attack.parts())
    for name in columns:
        assert rows[name][broken].sum() == 0, name
    assert (rows["a/eps0.08/forward"][~broken] > 0).all()


def test_only_what_is_left_passes_the_network_at_a_larger_budget(batch):
    counts = []
    for sizes in ([0.05], [0.08], [0.05, 0.08]):
        network = Counting(golden())
        rows = judged(network, [Scenario("a", FGSM(0.3), eps=sizes)], batch)
        counts.append(network.rows)
    # the clean verdict and a verdict of each row take the whole batch, twice since it is the first
    attacked = [counts[0] - 4 * 24, counts[1] - 4 * 24, counts[2] - 6 * 24]
    assert attacked[2] == attacked[0] + attacked[1] * (rows["a/eps0.05/correct"] > 0).sum() / 24


def test_every_part_that_is_run_by_itself_has_an_accuracy_of_its_own_at_every_budget(batch):
    defense, attack = golden(), Cascade(attacks=CASCADE, cascade=False)
    _, found = summary(defense, [Scenario("a", attack, eps=[0.03, 0.06])], batch)
    for part in found["scenarios"][1]["parts"]:
        alone = Cascade(attacks={part["name"]: CASCADE[part["name"]], "none": FGSM(0.05)}, cascade=False)
        _, single = summary(defense, [Scenario("a", alone.with_eps(0.06))], batch)
        assert part["accuracy"]["value"] == single["scenarios"][0]["parts"][0]["accuracy"]["value"], part["name"]


def test_a_budget_of_zero_is_the_clean_accuracy(batch):
    scenarios = [Scenario("a", Cascade(attacks=CASCADE), eps=[0.0, 0.05]), Scenario("b", ShortAutoAttack(0.0))]
    _, found = summary(golden(), scenarios, batch)
    for row in (found["scenarios"][0], found["scenarios"][2]):
        assert row["robust_accuracy"] == found["clean_accuracy"]
        assert all(part["cumulative_accuracy"] == found["clean_accuracy"] for part in row["parts"])
    assert found["scenarios"][1]["robust_accuracy"]["value"] < found["clean_accuracy"]["value"]


def test_the_standard_budget_is_that_of_the_data_set():
    module = StandardModule(MLP, spec="mnist")
    (row,) = Judge(module, [Scenario("a", PGD(0.1), eps="standard")]).scenarios
    assert (row.name, float(row.attack.eps)) == ("a", 0.3)


@pytest.mark.parametrize("attack", [PGD(0.1), FGSM(0.7, "l1")])
def test_without_a_usual_budget_the_attacks_own_stands(attack):
    for defense in (golden(spec="1x8x8x10"), nn.Identity()):
        (row,) = Judge(defense, [Scenario("a", attack, eps="standard")]).scenarios
        assert row.attack == attack


@pytest.mark.parametrize("eps", [[0.1, 0.1], []])
def test_budgets_that_are_none_or_equal_are_refused(eps):
    with pytest.raises(ValueError, match="different numbers"):
        Scenario("a", PGD(0.1), eps=eps)


def test_an_attack_without_a_budget_takes_no_other():
    with pytest.raises(ValueError, match="has no budget"):
        Scenario("a", DeepFool(), eps=[0.1])


# rounding and margins


class Threshold(nn.Module):
    """Class 0 from 100/255 upwards, to within a hundredth of a grey level."""

    def forward(self, images):
        score = images[:, 0, 0, 0] - 99.99 / 255
        return torch.stack([score, torch.zeros_like(score)], dim=1)


@dataclass(frozen=True)
class Darken(FixedBudgetAttack):
    """Takes the same from every pixel."""

    norms: ClassVar = ("linf",)

    def search(self, surrogate, images, goal, rng, ball):
        return images - self.eps


@pytest.mark.parametrize(
    ("levels", "correct", "rounded"), [(0.005, 1, 1), (0.3, 0, 1), (0.51, 0, 1), (1.0, 0, 0), (1.4, 0, 0)]
)
def test_rounding_undoes_changes_that_it_would_have_to_enlarge(levels, correct, rounded):
    batch = Batch(torch.full((1, 1, 1, 1), 100 / 255), torch.zeros(1, dtype=torch.int64), torch.arange(1))
    rows = judged(Threshold(), [Scenario("a", Darken(levels / 255))], batch, rounded=True)
    assert (rows["a/correct"].item(), rows["a/rounded_correct"].item()) == (correct, rounded)
    assert rows["clean/rounded_correct"].item() == 1


def test_the_margin_is_the_lead_of_the_wrong_classes():
    batch = Batch(torch.full((1, 1, 1, 1), 100 / 255), torch.zeros(1, dtype=torch.int64), torch.arange(1))
    rows = judged(Threshold(), [Scenario("a", Darken(2 / 255))], batch)
    assert rows["clean/margin"].item() == pytest.approx(-0.01 / 255, rel=1e-2)
    assert rows["a/margin"].item() == pytest.approx(1.99 / 255, rel=1e-4)
    assert "a/rounded_correct" not in rows


# parts in the summary


@pytest.mark.parametrize("attack", [ShortAutoAttack(0.06), Cascade(attacks=CASCADE, cascade=False)])
def test_cumulative_accuracy_never_rises_and_ends_at_the_minimum_over_parts(batch, attack):
    rows, found = summary(golden(), [Scenario("a", attack)], batch)
    parts = found["scenarios"][0]["parts"]
    cumulative = [part["cumulative_accuracy"]["value"] for part in parts]
    assert cumulative == sorted(cumulative, reverse=True)
    assert parts[0]["accuracy_before"] == found["clean_accuracy"]["value"]
    assert [part["accuracy_before"] for part in parts[1:]] == cumulative[:-1]
    smallest = rows["clean/correct"]
    for name in attack.parts():
        smallest = torch.fmin(smallest, rows[f"a/{name}/correct"])
    assert cumulative[-1] == smallest.mean() == robust(rows, "a").mean()
    assert sum(part["broken"] for part in parts) == rows["clean/correct"].sum() - smallest.sum()
    assert [part["accuracy"] is None for part in parts[1:]] == [attack.cascade] * (len(parts) - 1)


# extensions

FIRST = {"apgd": APGD(0.05, steps=3), "square": Square(0.05, queries=15)}
MORE = FIRST | {"pgd": PGD(0.05, steps=15, restarts=2)}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("cascade", [True, False])
@pytest.mark.parametrize("eps", [None, [0.03, 0.05]])
def test_an_extension_gives_the_rows_of_a_full_run(batch, strict, cascade, eps):
    settings = {"batch_size": 32, "strict": strict, "rounded": True}
    scenarios = [[Scenario("a", Cascade(attacks=attacks, cascade=cascade), eps=eps)] for attacks in (FIRST, MORE)]
    first = judged(golden(), scenarios[0], batch, **settings)
    extended = judged(golden(), [*scenarios[1], Scenario("b", FGSM(0.05))], batch, first, **settings)
    whole = judged(golden(), [*scenarios[1], Scenario("b", FGSM(0.05))], batch, **settings)
    # what the first evaluation spent at a larger budget is spent, though the new part broke some at a smaller one
    spent = {name for name in whole if eps and name.endswith(("forward", "backward", "zero_gradients"))}
    assert_same(extended, whole, but=spent)


def test_what_is_known_does_not_pass_the_network_again(batch):
    first = judged(golden(), [Scenario("a", Cascade(attacks=FIRST)), Scenario("b", PGD(0.05, steps=9))], batch)
    network = Counting(golden())
    scenarios = [Scenario("a", Cascade(attacks=MORE)), Scenario("b", PGD(0.05, steps=9)), Scenario("c", FGSM(0.05))]
    rows = judged(network, scenarios, batch, first)
    # the clean images and each of the two rows that are new, all of them twice, and the attacks
    attacked = (rows["a/forward"] - first["a/forward"] + rows["c/forward"]).sum()
    assert network.rows == 6 * 24 + attacked
    assert (rows["a/forward"] > first["a/forward"]).sum() == (first["a/broken_by"] == -1).sum()


def test_a_part_that_was_added_attacks_the_survivors_alone(batch):
    first = judged(golden(), [Scenario("a", Cascade(attacks=FIRST))], batch)
    rows = judged(golden(), [Scenario("a", Cascade(attacks=MORE))], batch, first)
    assert torch.equal(rows["a/pgd/correct"].isnan(), first["a/broken_by"] != -1)
    for name in ("prediction", "correct", "margin", "linf", "l2", "l1"):
        settled = first["a/broken_by"] != -1
        assert torch.equal(rows[f"a/{name}"][settled], first[f"a/{name}"][settled])


def test_of_a_random_defense_all_parts_are_run_again(batch):
    settings = {"draws": 3}
    first = judged(golden(NoisyInput), [Scenario("a", Cascade(attacks=FIRST, draws=2))], batch, **settings)
    scenarios = [Scenario("a", Cascade(attacks=MORE, draws=2))]
    extended = judged(golden(NoisyInput), scenarios, batch, first, **settings)
    assert_same(extended, judged(golden(NoisyInput), scenarios, batch, **settings))


def test_a_random_defense_is_not_judged_by_the_draws_that_decided_about_survivors(batch):
    rows = judged(golden(NoisyInput), [Scenario("a", Cascade(attacks={"fgsm": FGSM(0.06)}, draws=4))], batch, draws=40)
    decided, found = rows["a/fgsm/correct"], rows["a/correct"]
    lucky = decided == 0
    assert lucky.any()
    # an image that was wrong on all four draws may well be right on some of forty others
    assert found[lucky].mean() > 0
    assert set((40 * found).round().tolist()) <= set(range(41))


def test_a_network_that_gives_nan_is_refused(batch):
    defense = golden()
    with torch.no_grad():
        defense.classifier.head.bias[0] = torch.nan
    with pytest.raises(RuntimeError, match="NaN"):
        judged(defense, [Scenario("a", Cascade(attacks=FIRST))], batch)


def test_spec_of_the_golden_network():
    assert get_spec("digits").shape == (1, 8, 8)


class OftenWrong(nn.Module):
    """Right on 15% of the draws, whatever the image."""

    stochastic = True

    def adaptive_surrogates(self):
        return {}

    def forward(self, images, rng):
        score = 0.15 - rng.stream("coin").uniform(1).squeeze(1)
        return torch.stack([score, -score], dim=1)


def test_larger_budgets_take_no_unlucky_verdict_of_a_random_defense_over():
    count = 2000
    batch = Batch(torch.rand(count, 1, 1, 2), torch.zeros(count, dtype=torch.int64), torch.arange(count))
    rows = judged(OftenWrong(), [Scenario("noise", Noise(0.1), eps=[0.1, 0.2, 0.3, 0.4])], batch)
    # the standard error of a mean over 20,000 draws is 0.0025
    assert all(rows[f"noise/eps{eps}/correct"].mean() == pytest.approx(0.15, abs=0.01) for eps in (0.1, 0.2, 0.3, 0.4))


# random defenses that do not say so


class Suspicious(nn.Module):
    """Adds noise to images that are none of those it knows."""

    def __init__(self, known):
        super().__init__()
        self.network = golden()
        self.register_buffer("known", known)

    def forward(self, images):
        nearest = (images[:, None] - self.known).flatten(2).abs().amax(2).amin(1)
        suspicious = (nearest > 0.02)[:, None, None, None]
        return self.network(images + 0.5 * suspicious * torch.randn_like(images))


def test_a_defense_that_is_random_under_attack_alone_is_graded_on_several_draws(batch):
    torch.manual_seed(0)
    seen = []
    judge = Judge(Suspicious(batch.images), [Scenario("a", PGD(0.1, steps=5))], JudgeSettings(draws=10))
    judge.watch = lambda scenario, part, images, rows: seen.append(rows["a/correct"])
    rows = judge(batch)
    assert set(rows["clean/stochastic"].tolist()) == {1}
    assert set(rows["clean/correct"].tolist()) <= {0, 1}
    shares = rows["a/correct"]
    assert ((shares > 0) & (shares < 1)).any()
    # no draw that suited the attack ended it
    assert set(rows["a/forward"].tolist()) == {6}
    assert [found.tolist() for found in seen] == [shares.tolist()]


def test_what_is_known_of_a_defense_that_turns_out_to_be_random_is_judged_again(batch):
    torch.manual_seed(0)
    defense = Suspicious(batch.images)
    first = judged(defense, [Scenario("a", FGSM(0.01))], batch)
    assert set(first["clean/stochastic"].tolist()) == {0}
    rows = judged(defense, [Scenario("a", FGSM(0.01)), Scenario("b", FGSM(0.1))], batch, first)
    assert set(rows["clean/stochastic"].tolist()) == {1}
    assert (rows["a/forward"] == first["a/forward"]).all()
    assert ((rows["b/correct"] > 0) & (rows["b/correct"] < 1)).any()


def test_images_to_look_at_decide_for_all_batches(batch):
    class Bright(nn.Module):
        """Adds noise to one image of the batch."""

        def forward(self, images):
            bright = (images == batch.images[-1]).flatten(1).all(dim=1)[:, None, None, None]
            return golden()(images + bright * torch.randn_like(images))

    judge = Judge(Bright(), [])
    judge.look_for_randomness(batch)
    assert set(judge(Batch(*(tensor[:4] for tensor in batch)))["clean/stochastic"].tolist()) == {1}


@pytest.mark.parametrize("attack", [FGSM(0.5), Cascade(attacks={"fgsm": FGSM(0.5)})])
def test_a_budget_at_which_nothing_is_left_asks_about_no_empty_batch(attack):
    batch = Batch(torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64), torch.arange(3))
    rows = judged(Flat(), [Scenario("a", attack, eps=[0.5, 0.6])], batch)
    assert rows["a/eps0.6/correct"].tolist() == [0, 0, 0]
    assert rows["a/eps0.6/forward"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [2 / 255, 0.3])
def test_rounding_makes_no_perturbation_larger(norm, eps):
    clean = torch.arange(256).repeat(4).view(4, 1, 16, 16) / 255
    adversarial = (clean + Noise(eps)(Flat(), clean, torch.zeros(4).long()) - clean).clamp(0, 1)
    rounded = rounded_to_8_bits(adversarial, clean, norm)
    assert (lp_norm(rounded - clean, norm) <= lp_norm(adversarial - clean, norm) + 1e-5).all()
    assert (rounded - adversarial).abs().max() < 1 / 255
    torch.testing.assert_close(rounded * 255, (rounded * 255).round(), atol=1e-4, rtol=0)


def test_rounding_takes_the_nearest_level_that_the_budget_allows():
    def levels(norm, *change):
        clean = torch.full((1, 1, 1, len(change)), 100 / 255)
        found = rounded_to_8_bits(clean + torch.tensor(change).view_as(clean) / 255, clean, norm)
        return ((found - clean) * 255).round().flatten().tolist()

    assert levels("linf", 1.7, -1.7, 2.6, 0.4) == [2, -2, 2, 0], "2.6 is as far as a pixel may go"
    assert levels("l1", 1.7, -1.7, 2.4, 0.4) == [2, -2, 2, 0], "6 levels in all, where it was 6.2"
    assert levels("l2", 1.7, -1.7) == [1, -1], "2 levels each would be too far"


def test_nan_logits_are_no_verdict():
    class Broken(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :4] * math.nan

    with pytest.raises(RuntimeError, match="Broken gave NaN logits"):
        Judge(Broken(), [])(Batch(torch.rand(4, 1, 3, 3), torch.zeros(4, dtype=torch.int64), torch.arange(4)))
