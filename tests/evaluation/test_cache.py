"""Adversarial images are made once, and again as soon as anything that made them differs."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from lightning_advdef.attacks import EOT, PGD, Cascade, DeepFool, Square, Transfer, Undefended
from lightning_advdef.defenses import StandardModule
from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation import Judge, Scenario
from lightning_advdef.evaluation.cache import AdversarialCache
from lightning_advdef.evaluation.judge import JudgeSettings
from lightning_advdef.evaluation.rows import read_rows
from lightning_advdef.files import write_arrays
from lightning_advdef.models import MLP
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.attacks.helpers import seeded
from tests.toys import DetachedInput, RoundedInput

ATTACK = PGD(0.1, steps=2)
CASCADE = Cascade(attacks={"pgd": ATTACK, "square": Square(0.1, queries=4)})


def network(seed, spec):
    return seeded(lambda: MLP(spec, hidden=[8]), seed)


def defense(seed=0, kind=StandardModule, **options):
    return kind(partial(network, seed), spec="digits", **options).eval()


IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
BATCH = Batch(IMAGES, defense()(IMAGES).argmax(dim=1), torch.arange(6))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch):
    """Names of the attacks that ran."""
    calls = []
    for kind in (PGD, Square):
        search = kind.search

        def noted(self, *arguments, search=search):
            calls.append(type(self).__name__)
            return search(self, *arguments)

        monkeypatch.setattr(kind, "search", noted)
    return calls


def judged(folder, module=None, attack=ATTACK, surrogate=None, batch=BATCH, **settings):
    scenario = Scenario("a", attack) if surrogate is None else Scenario("a", attack, surrogate)
    judge = Judge(module or defense(), [scenario], JudgeSettings(**settings), cache=AdversarialCache(folder))
    return judge(batch)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("attack", [ATTACK, CASCADE])
def test_a_second_run_attacks_nothing_and_gives_the_same_rows(folder, calls, attack, strict):
    first = judged(folder, attack=attack, strict=strict)
    assert calls
    calls.clear()
    second = judged(folder, attack=attack, strict=strict)
    assert calls == []
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].nan_to_num(-5), second[name].nan_to_num(-5)) for name in first)
    assert [path.suffix for path in folder.iterdir()] == [".npz"]


@pytest.mark.parametrize(
    "change",
    [
        {"module": defense(seed=1)},
        {"module": defense(votes=2)},
        {"module": defense(kind=RoundedInput)},
        {"attack": PGD(0.2, steps=2)},
        {"attack": PGD(0.1, steps=3)},
        {"attack": CASCADE},
        {"surrogate": Undefended},
        {"surrogate": partial(EOT, samples=2)},
        {"seed": 1},
        {"search": "bfloat16"},
        {"strict": True},
        {"batch": BATCH._replace(images=1 - BATCH.images)},
        {"batch": BATCH._replace(labels=(BATCH.labels + 1) % 10)},
        {"batch": BATCH._replace(indices=BATCH.indices + 1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_makes_the_images_is_part_of_their_name(folder, calls, change):
    judged(folder)
    calls.clear()
    judged(folder, **change)
    assert calls
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("change", [{"draws": 3}, {"rounded": True}, {"batch_size": 50}])
def test_what_grades_the_images_is_not(folder, calls, change):
    judged(folder)
    calls.clear()
    judged(folder, **change)
    assert calls == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04junk", None])
def test_a_damaged_file_says_what_to_do(folder, content):
    judged(folder)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(ResultFolderError, match=f"{path.name} cannot be read: remove this file"):
        judged(folder)


@pytest.mark.parametrize(
    ("attack", "change"),
    [
        (ATTACK, lambda images: images + 0.11),
        (ATTACK, lambda images: images * torch.nan),
        (ATTACK, lambda images: images[1:]),
        (DeepFool(steps=2), lambda images: images + 5),
    ],
)
def test_what_the_attack_would_not_have_made_is_refused(folder, attack, change):
    judged(folder, attack=attack)
    (path,) = folder.iterdir()
    rows = read_rows(path)
    write_arrays(path, rows | {"images": change(rows["images"])})
    with pytest.raises(ResultFolderError, match=f"{path.name} holds .* remove this file"):
        judged(folder, attack=attack)


def test_a_file_without_images_is_refused(folder):
    judged(folder)
    (path,) = folder.iterdir()
    write_arrays(path, {"column/forward": torch.zeros(6)})
    with pytest.raises(ResultFolderError, match="holds no images: remove this file"):
        judged(folder)


def test_the_scenarios_name_is_not(folder, calls):
    judged(folder)
    calls.clear()
    Judge(defense(), [Scenario("b", ATTACK)], cache=AdversarialCache(folder))(BATCH)
    assert calls == []


def test_purifiers_that_have_the_same_weights_have_sets_of_their_own(folder, calls):
    judged(folder, defense(kind=DetachedInput))
    calls.clear()
    judged(folder, defense(kind=RoundedInput))
    assert calls


def test_weights_that_changed_between_two_runs_of_one_module_are_noticed(folder, calls):
    module, cache = defense(), AdversarialCache(folder)
    Judge(module, [Scenario("a", ATTACK)], cache=cache)(BATCH)
    with torch.no_grad():
        module.classifier.head.bias.add_(1)
    calls.clear()
    Judge(module, [Scenario("a", ATTACK)], cache=cache)(BATCH)
    assert calls


def transfer(module):
    return Transfer(module, network=partial(network, 7))


def test_transferred_images_are_shared_by_two_defenses(folder, calls):
    judged(folder, defense(seed=0), surrogate=transfer)
    calls.clear()
    judged(folder, defense(seed=1), surrogate=transfer)
    assert calls == []


def test_a_cascade_through_transfer_is_not_since_its_survivors_are_the_defenses_own(folder, calls):
    judged(folder, defense(seed=0), CASCADE, transfer)
    other = defense(seed=1)
    batch = BATCH._replace(labels=torch.where(torch.arange(6) < 3, BATCH.labels, other(IMAGES).argmax(dim=1)))
    judged(folder, defense(seed=0), CASCADE, transfer, batch)
    calls.clear()
    judged(folder, other, CASCADE, transfer, batch)
    assert calls


def test_a_part_that_was_added_is_cached_apart_from_what_was_known(folder, calls):
    module, cache = defense(), AdversarialCache(folder)
    first = Judge(module, [Scenario("a", CASCADE)], cache=cache)(BATCH)
    more = replace(CASCADE, attacks={**CASCADE.attacks, "last": PGD(0.1, steps=5)})
    whole = Judge(module, [Scenario("a", more)], cache=cache)(BATCH)
    for _ in range(2):
        calls.clear()
        extended = Judge(module, [Scenario("a", more)], cache=cache)(BATCH, first)
        assert torch.equal(extended["a/correct"], whole["a/correct"])
    assert calls == []


def key_of(attack, source=None):
    surrogate = Undefended(source or defense())
    return AdversarialCache("unused").key(
        Scenario("a", attack), surrogate, BATCH, SampleRNG.for_images(BATCH.indices), {}
    )


def test_the_order_of_a_cascade_is_part_of_the_key():
    attacks = {"pgd": ATTACK, "square": Square(0.1, queries=4)}
    turned = dict(reversed(attacks.items()))
    assert key_of(Cascade(attacks=attacks)) != key_of(Cascade(attacks=turned))


def test_normalisation_which_no_checkpoint_holds_is_part_of_the_key():
    others = [
        StandardModule(lambda spec, mean=mean: MLP(spec, hidden=[8], normalization=[[mean], [0.5]]), spec="digits")
        for mean in (0.3, 0.5)
    ]
    for other in others:
        other.load_state_dict(defense().state_dict())
    assert key_of(ATTACK, others[0]) != key_of(ATTACK, others[1])
    assert key_of(ATTACK, others[0]) == key_of(ATTACK, others[0])
