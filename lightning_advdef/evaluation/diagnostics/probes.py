"""A few extra passes on a small sample of the judged images, for what their rows cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, Subset

from lightning_advdef.attacks import EOT, PGD, FullGradient, Noise, Surrogate
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import loss_and_gradient
from lightning_advdef.attacks.losses import margin
from lightning_advdef.attacks.surrogates import as_defense
from lightning_advdef.attacks.verdict import deployed_logits, exact_arithmetic, unchecked_logits
from lightning_advdef.data.sources import ImageDataset
from lightning_advdef.errors import NotANumberError
from lightning_advdef.evaluation.judge import Judge
from lightning_advdef.evaluation.rows import Rows, classes_of
from lightning_advdef.evaluation.runner import ScenarioRunner, in_groups
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import DIFFERENTIATING, Batch, Eps, slices

PROBED, FEWEST = 32, 8  # images that the deployed defense sees
_SHARE = 0.25  # of the passes of the evaluation; what a purifier of many steps makes of an image takes seconds
COMPARED = 256  # images that the bare classifier sees, whose passes are cheap
NOISE = Noise(Eps("8/255"), kind="sign")
NEARBY = Noise(Eps("1/255"))
# a ball that holds the grey image, whatever the image: in the middle of it no image differs from another
HUGE = PGD(Eps(0.5), steps=20, loss="margin")


@dataclass(frozen=True)
class Probes:
    """What the extra passes found.

    Args:
        scenario: Whose surrogate was differentiated; empty where none takes gradients of the deployed defense, whose
            full gradient was taken then.
        compared: Rows of the images that the bare classifier saw, int64, shape ``(M,)``.
        undefended: Which of them it gets right, bool, shape ``(M,)``.
        probed: Rows of the images that the deployed defense saw, int64, shape ``(P,)``.
        noisy: Which of these it gets right under small noise, bool, shape ``(P,)``.
        survived: Which it gets right after an attack with a huge budget, bool, shape ``(P,)``; None where a gradient is
            not finite, there or on the way, since no attack can follow it.
        cosines: Between the gradients at two nearby points, 0 where one is zero or not finite, shape ``(P,)``.
        finite: Which gradients are finite at both, bool, shape ``(P,)``.
        has_test_time_part: Whether the deployed defense answers otherwise than the bare classifier.
    """

    scenario: str
    compared: Tensor
    undefended: Tensor
    probed: Tensor
    noisy: Tensor
    survived: Tensor | None
    cosines: Tensor
    finite: Tensor
    has_test_time_part: bool


def probe_cost(draws: int) -> Cost:
    """Passes through the deployed defense for each probed image, where gradients take so many draws."""
    return HUGE.cost(classes=2).plus(Cost(2, 2)).times(draws).plus(Cost(3, 0))


def affordable(runners: Iterable[ScenarioRunner], images: int, graded: int, classes: int, draws: int) -> int:
    """How many images are probed: 32, or fewer where that is more than a quarter of the evaluation, but at least 8.

    Args:
        runners: All scenarios; those count that ask the deployed defense.
        images: How many images are judged.
        graded: Passes of a verdict.
        classes: Number of classes.
        draws: Draws of the surrogate that is differentiated.
    """
    each = float(graded)
    for runner in runners:
        attack, surrogate = runner.scenario.attack, runner.surrogate
        asked = surrogate.access in DIFFERENTIATING
        each += graded + (attack.cost(classes).times(surrogate.draws).forward if asked else 0)
    enough = _SHARE * images * each / probe_cost(draws).forward
    return min(images, PROBED if math.isnan(enough) else min(PROBED, max(FEWEST, int(enough))))


def chosen(count: int, wanted: int) -> Tensor:
    """Rows spread evenly over ``count``, ascending, int64; all if there are no more than ``wanted``."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long()


def sample(loader: Any, rows: Rows, move: Callable[[Any], Any] = lambda batch: batch) -> Batch | None:
    """The images to compare, read again from the data set; None if they cannot be told by their index.

    Args:
        loader: What the judged images came from.
        rows: Their rows, sorted by index.
        move: What a batch of the loader went through before it was judged, such as the way to another device.
    """
    dataset: Any = getattr(loader, "dataset", None)
    ours = isinstance(dataset, ImageDataset)
    if not _can_be_read_again(loader):
        return None
    those = chosen(len(rows["index"]), COMPARED)
    wanted = rows["index"][those]
    positions = torch.searchsorted(dataset.indices, wanted) if ours else wanted
    if not 0 <= int(positions.min()) <= int(positions.max()) < len(dataset):
        return None
    images, labels, *numbers = move(_read(loader, positions))
    # a foreign data set may number its images in its own way, and its loader may have an order of its own
    same = torch.equal(numbers[0].cpu(), wanted) if numbers else _in_order(loader)
    if not same or not torch.equal(labels.cpu(), rows["label"][those]):
        return None
    return Batch(images, labels, wanted.to(images.device))


def first_look(loader: Any, move: Callable[[Any], Any]) -> Batch | None:
    """A few images spread over the data set, whatever the order and the number of processes; see :func:`sample`."""
    if not _can_be_read_again(loader) or not len(loader.dataset):
        return None
    positions = chosen(len(loader.dataset), PROBED)
    images, labels, *_ = move(_read(loader, positions))
    return Batch(images, labels, positions.to(images.device))


def _can_be_read_again(loader: Any) -> bool:
    """Whether batches can be made of chosen images."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, ImageDataset):
        return True
    # batches of a foreign data set without a sampler of batches are made by itself
    batched = getattr(loader, "batch_sampler", None) is not None
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and batched


def _read(loader: Any, positions: Tensor) -> Any:
    """One batch of the images at these positions of the data set."""
    found = DataLoader(Subset(loader.dataset, positions.tolist()), len(positions), collate_fn=loader.collate_fn)
    return next(iter(found))


def _in_order(loader: Any) -> bool:
    """Whether images come as they lie in the data set."""
    return type(loader.sampler) is SequentialSampler and type(loader.batch_sampler) is BatchSampler


def pick(batch: Batch, wanted: int = COMPARED) -> Batch:
    """The images to compare, or fewer, of all that were judged."""
    order = batch.indices.argsort()
    return Batch(*(tensor[order[chosen(len(order), wanted)]] for tensor in batch))


def probe(judge: Judge, summary: Mapping[str, Any], rows: Rows, batch: Batch) -> Probes:
    """Looks at the sample.

    Images, random numbers and arithmetic depend on nothing but the evaluation, so that an evaluation that was
    continued, or run by other processes, finds the same.

    Args:
        judge: What judged the images.
        summary: The summary of the evaluation.
        rows: Columns of all images.
        batch: What :func:`sample` or :func:`pick` gave, on the device of the defense.
    """
    judge.note_randomness(bool(rows["clean/stochastic"].any()))
    with torch.inference_mode(False), torch.no_grad():
        # tensors made in inference mode cannot be saved for backward: all of them are copied
        batch = Batch(*(tensor.clone() for tensor in batch))
        undefended = _right(as_defense(judge.defense).undefended, batch, judge)
        name, surrogate = differentiated(judge, summary)
        graded = judge.settings.draws if judge.stochastic else 1
        count = affordable(judge.runners.values(), len(rows["index"]), graded, classes_of(rows), surrogate.draws)
        compared = chosen(len(rows["index"]), COMPARED)

        def look(wanted: int) -> Probes:
            few = chosen(len(batch.images), wanted)
            return Probes(name, compared, undefended, compared[few], *_look_again(judge, surrogate, batch, few))

        found = look(count)
        if count < min(PROBED, len(batch.images)) and found.survived is not None and found.survived.any():
            # one of so few that holds against everything may do so by luck, many of more do not
            found = look(PROBED)
        return found


def _look_again(
    judge: Judge, surrogate: Surrogate, batch: Batch, few: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, bool]:
    """What the deployed defense makes of a few rows of the batch, in the order of :class:`Probes`."""
    batch = Batch(*(tensor[few.to(tensor.device)] for tensor in batch))
    rng = SampleRNG.for_images(batch.indices, judge.settings.seed).stream("diagnostics")
    with surrogate.in_float32():
        cosines, finite = _gradients(surrogate, batch, rng, judge.settings.batch_size)
        huge = _after_huge_budget(surrogate, batch, rng.stream("huge")) if finite.all() else None
    noisy = NOISE(judge.defense, batch.images, batch.labels, rng.stream("noise"))
    return (
        _right(judge.defense, batch._replace(images=noisy), judge, rng.stream("noisy")),
        None if huge is None else _right(judge.defense, batch._replace(images=huge), judge, rng.stream("survived")),
        cosines,
        finite,
        _answers_differ(judge, batch, rng.stream("part")),
    )


def _after_huge_budget(surrogate: Surrogate, batch: Batch, rng: SampleRNG) -> Tensor | None:
    everything = torch.ones_like(batch.labels, dtype=torch.bool)
    try:
        return ScenarioRunner(Scenario("huge_budget", HUGE), surrogate)(batch, rng, everything, {}).images
    except NotANumberError:  # so far from the images, it is no reason to lose their verdicts
        return None


def differentiated(judge: Judge, summary: Mapping[str, Any]) -> tuple[str, Surrogate]:
    """Scenario and surrogate of the strongest attack that follows gradients of the deployed defense.

    Returns:
        An empty name and the full gradient if there is no such attack.
    """
    found = [
        (told["robust_accuracy"]["value"], number)
        for number, (scenario, told) in enumerate(zip(judge.scenarios, summary["scenarios"], strict=True))
        if scenario.attack.needs == "gradients" and told["access"] in DIFFERENTIATING
    ]
    if not found:
        return "", judge.bind(Scenario("full_gradient", HUGE, FullGradient))
    scenario = judge.scenarios[min(found)[1]]
    surrogate = judge.runners[scenario.name].surrogate
    if scenario.attack.own_draws > 1 and surrogate.draws == 1:
        surrogate = EOT.over(surrogate, scenario.attack.own_draws)
    return scenario.name, surrogate


def _right(network: torch.nn.Module, batch: Batch, judge: Judge, rng: SampleRNG | None = None) -> Tensor:
    """Which images one pass gets right, bool, shape ``(N,)``; with NaN among its logits it gets none right."""
    rng = rng or SampleRNG.for_images(batch.indices, judge.settings.seed)
    logits = torch.cat([unchecked_logits(network, batch.images[rows], rng[rows])[0] for rows in _groups(batch, judge)])
    return ((logits.argmax(dim=1) == batch.labels) & ~logits.isnan().any(dim=1)).cpu()


def _groups(batch: Batch, judge: Judge) -> list[slice]:
    """As many images as are judged at once."""
    return slices(len(batch.images), judge.settings.batch_size)


def _gradients(surrogate: Surrogate, batch: Batch, rng: SampleRNG, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and which gradients are finite; every gradient has draws of its own, as the steps of an attack have."""
    near = NEARBY(surrogate, batch.images, batch.labels, rng.stream("near"))

    def compared(rows: slice) -> tuple[Tensor, Tensor]:
        here, there = (
            loss_and_gradient(surrogate, images[rows], Goal(batch.labels[rows]), margin, own[rows]).gradient
            for images, own in ((batch.images, rng.stream("here")), (near, rng.stream("there")))
        )
        cosine = torch.cosine_similarity(here.double().flatten(1), there.double().flatten(1))
        return cosine.nan_to_num(0.0), (here.isfinite() & there.isfinite()).flatten(1).all(dim=1)

    with attack_mode(*surrogate.modules), exact_arithmetic():
        found, _ = in_groups(compared, len(near), size)
    cosines, finite = zip(*found, strict=True)
    return torch.cat(cosines).cpu(), torch.cat(finite).cpu()


def _answers_differ(judge: Judge, batch: Batch, rng: SampleRNG) -> bool:
    """Whether the deployed defense gives other logits than the bare classifier, by more than other kernels explain."""
    rows = _groups(batch, judge)[0]
    bare = as_defense(judge.defense).undefended
    deployed, undefended = (deployed_logits(n, batch.images[rows], rng[rows]) for n in (judge.defense, bare))
    return not torch.allclose(deployed, undefended, rtol=1e-3, atol=1e-3)
