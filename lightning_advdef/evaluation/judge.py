"""Attack a batch in every scenario and write one row per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_advdef.attacks import Surrogate
from lightning_advdef.attacks.cascade import ROBUST, AttackInParts
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import margin
from lightning_advdef.attacks.lp_ball import lp_norm, per_image
from lightning_advdef.attacks.surrogates import as_defense
from lightning_advdef.attacks.verdict import deployed_logits, is_stochastic, rejections
from lightning_advdef.evaluation.cache import AdversarialCache
from lightning_advdef.evaluation.rows import Rows
from lightning_advdef.evaluation.runner import ScenarioRunner
from lightning_advdef.evaluation.scenario import Scenario, expand, require_unique_names
from lightning_advdef.evaluation.summary import attack_norm
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch, Norm, slices

Search = Literal["float32", "bfloat16"]
_SPENT = ("forward", "backward", "zero_gradients")
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")

# on a CPU the last elements of a tensor that do not fill a vector register are computed by other code, which rounds
# pow, log and the like differently; with this many images nothing is left over
_STRICT_MULTIPLE = 64


@dataclass(frozen=True)
class JudgeSettings:
    """How verdicts are made.

    Args:
        batch_size: Largest batch that is attacked at once; the only one in strict mode.
        strict: One padded batch shape and no image leaves early: bit-equal for any order, loader, number of processes.
        draws: Passes on which a stochastic defense is graded.
        seed: Of all attacks and gradings.
        search: What networks compute in while attacks search; verdicts are float32 whatever this is.
        rounded: Also judge the adversarial images after rounding to 8 bits.

    Raises:
        ValueError: If strict mode is asked for a search in bfloat16.
    """

    batch_size: int = 256
    strict: bool = False
    draws: int = 10
    seed: int = 0
    search: Search = "float32"
    rounded: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot be promised."""
        if self.strict and self.search != "float32":
            raise ValueError("strict mode promises equal bits and searches in float32: leave out --evaluation.search")


class _AnswersDiffer(Exception):  # noqa: N818 - no error, since the batch is then judged again
    """A defense that was taken for deterministic answers differently when asked again."""


class Made(NamedTuple):
    """Images of a scenario, ``(N, C, H, W)``, and which are adversarial, bool, ``(N,)``: others were broken earlier."""

    images: Tensor
    real: Tensor


class Judge:
    """Turns batches into rows; knows neither where images come from nor where rows go.

    Args:
        defense: The deployed defense, or any network that maps images to logits.
        scenarios: What to run; those with several budgets or ``surrogate: adaptive`` become several rows.
        settings: How.
        mean_image: Mean training image ``(C, H, W)``, for norms relative to the centred image; None to leave them out.
        cache: Where adversarial images are kept between runs; None to keep none.

    Raises:
        ValueError: If two scenarios share a name.
    """

    def __init__(
        self,
        defense: nn.Module,
        scenarios: Sequence[Scenario],
        settings: JudgeSettings | None = None,
        mean_image: Tensor | None = None,
        cache: AdversarialCache | None = None,
    ) -> None:
        self.defense = defense
        self.settings = settings or JudgeSettings()
        as_defense(defense).fixed_shape = self.settings.strict
        self.mean_image = mean_image
        self.stochastic: bool | None = None
        self._asks_twice = True  # about each image of the first batch, adversarial or not
        self.scenarios = expand(scenarios, defense)
        require_unique_names(self.scenarios)
        self.runners = {s.name: ScenarioRunner(s, self.bind(s), cache) for s in self.scenarios}
        self.watch: Callable[[str, Batch, Tensor, Rows], None] | None = None

    def bind(self, scenario: Scenario) -> Surrogate:
        """The surrogate of a scenario, with the settings of this evaluation."""
        surrogate = scenario.bind(self.defense)
        surrogate.fixed_shape = self.settings.strict
        surrogate.search_dtype = getattr(torch, self.settings.search)
        surrogate.max_rows = self._padded_size if self.settings.strict else self.settings.batch_size
        surrogate.random = surrogate.random or bool(self.stochastic)
        return surrogate

    @property
    def _padded_size(self) -> int:
        return -(-self.settings.batch_size // _STRICT_MULTIPLE) * _STRICT_MULTIPLE

    def describe(self) -> list[dict[str, Any]]:
        """The scenarios as plain values."""
        return [runner.scenario.describe(runner.surrogate) for runner in self.runners.values()]

    def in_use(self) -> dict[str, Any]:
        """Values of the defense's test-time part that its settings do not tell, such as calibrated ones."""
        stated: dict[str, Any] = getattr(self.defense, "in_use", dict)()
        return stated

    def __call__(self, batch: Batch, known: Rows | None = None) -> Rows:
        """One row per image: columns ``index``, ``label``, ``clean/...`` and ``<scenario>/...``.

        Args:
            batch: The images.
            known: Rows of the same images from an evaluation with fewer scenarios, or fewer parts of a cascade: these
                are not judged again, and a part that was added attacks the survivors alone.
        """
        with torch.inference_mode(False), torch.no_grad():
            # tensors made in inference mode cannot be saved for backward: all of them are copied
            return self._judge(Batch(*(tensor.clone() for tensor in batch)), known or {})

    def _judge(self, batch: Batch, known: Rows) -> Rows:
        count = len(batch.images)
        known = {name: column.to(batch.images.device) for name, column in known.items()}
        if self.settings.strict:
            known = {name: _padded(column, self._padded_size) for name, column in known.items()}
            batch = self._pad(batch)
        if self.stochastic is None:
            self.note_randomness(bool(getattr(self.defense, "stochastic", False)))
        try:
            rows, made = self._all_columns(batch, known)
        except _AnswersDiffer:
            self.note_randomness(True)
            rows, made = self._all_columns(batch, known)
        self._asks_twice = False
        for name, images in made.items():
            self._show(name, batch, images, rows, count)
        return {name: column[:count].cpu() for name, column in rows.items()}

    def _all_columns(self, batch: Batch, known: Rows) -> tuple[Rows, dict[str, Made]]:
        """Rows of a batch, and the images of each scenario that was run.

        Raises:
            _AnswersDiffer: If the defense turns out to be random.
        """
        rng = SampleRNG.for_images(batch.indices, self.settings.seed)
        rows = self._clean_rows(batch, rng)
        if known and not torch.equal(known["clean/stochastic"], rows["clean/stochastic"]):
            known = {}  # one draw and several are no columns of one row
        made: dict[str, Made] = {}
        for scenario in self.scenarios:
            earlier = columns_of(known, scenario.name)
            if not self._missing(scenario, earlier):
                rows |= _named(scenario.name, earlier)
                continue
            made[scenario.name], columns = self._scenario_columns(scenario, batch, rng, rows, made, earlier)
            rows |= _named(scenario.name, columns)
        return rows, made

    def _show(self, scenario: str, batch: Batch, made: Made, rows: Rows, count: int) -> None:
        """Lets ``watch`` see the first ``count`` images, but for those whose adversarial image nobody has."""
        real = made.real[:count].nonzero().squeeze(1)
        if self.watch is not None and len(real):
            seen = Batch(*(tensor[real] for tensor in batch))
            self.watch(scenario, seen, made.images[real], {name: column[real] for name, column in rows.items()})

    def _missing(self, scenario: Scenario, earlier: Rows) -> bool:
        """Whether there is something to run that the earlier columns do not hold."""
        parts = scenario.attack.parts()
        return "correct" not in earlier or any(f"{part}/correct" not in earlier for part in parts)

    def _pad(self, batch: Batch) -> Batch:
        """Repeats the first image until the batch has the one shape of strict mode."""
        count, size = len(batch.images), self.settings.batch_size
        if count > size:
            raise ValueError(f"strict mode takes at most {size} images, got {count}")
        return Batch(*(_padded(tensor, self._padded_size) for tensor in batch))

    def _clean_rows(self, batch: Batch, rng: SampleRNG) -> Rows:
        rows = {"index": batch.indices, "label": batch.labels}
        rows["clean/stochastic"] = torch.full_like(batch.labels, int(bool(self.stochastic)))
        rows |= _named("clean", self._verdict(batch.images, batch.images, batch.labels, rng.stream("clean")))
        rows |= {f"clean/{norm}": lp_norm(batch.images, norm) for norm in NORMS}
        if self.mean_image is not None:
            centred = batch.images - self.mean_image.to(batch.images)
            rows |= {f"clean/centred_{norm}": lp_norm(centred, norm) for norm in NORMS}
        return rows

    def look_for_randomness(self, batch: Batch) -> None:
        """Decides by some clean images, the same in all processes, whether the defense is random.

        The first batch may still overrule that it is not: some defenses are random on suspicious images alone.
        """
        with torch.inference_mode(False), torch.no_grad():
            images, indices = batch.images.clone(), batch.indices.clone()
            rng = SampleRNG.for_images(indices, self.settings.seed)
            groups = slices(len(images), self.settings.batch_size)
            self.note_randomness(any(is_stochastic(self.defense, images[rows], rng[rows]) for rows in groups))

    def note_randomness(self, stochastic: bool) -> None:
        """Takes note that the defense answers differently when asked again, or that it does not."""
        self.stochastic = stochastic
        for runner in self.runners.values():
            runner.surrogate.random = stochastic

    def _scenario_columns(
        self,
        scenario: Scenario,
        batch: Batch,
        rng: SampleRNG,
        rows: Rows,
        made: Mapping[str, Made],
        earlier: Rows,
    ) -> tuple[Made, Rows]:
        """Adversarial images and columns; images that are settled by what is known are not attacked.

        Settled are the images that earlier parts of the same cascade broke, and those that the scenario named in
        ``after`` broke within its smaller budget. Of a random defense nothing is settled: a verdict taken over would be
        that of the draws on which an image was unlucky. Of a detector only what is wrong and not rejected is settled,
        and no part is taken over: a survivor may be wrong already, by an image that is not known any more. Where each
        part is run by itself, all images are attacked, and what is settled are the verdicts.
        """
        earlier = {} if self.stochastic or "clean/rejected" in rows else earlier
        smaller = {} if scenario.after is None else columns_of(rows, scenario.after)
        nothing = torch.zeros_like(batch.labels, dtype=torch.bool)
        broken = earlier["broken_by"] != ROBUST if earlier else nothing
        beaten = nothing
        if smaller and not self.stochastic:
            beaten = smaller.get("correct_or_rejected", smaller["correct"]) == 0
        each_part = isinstance(scenario.attack, AttackInParts) and not scenario.attack.cascade
        attacked = torch.ones_like(nothing) if each_part else ~(broken | beaten)
        ledger = {name: column for name, column in earlier.items() if "/" in name or name == "broken_by"}
        images, columns = self.runners[scenario.name](batch, rng, attacked, ledger)
        real = ~(broken | beaten)
        if scenario.after is not None and scenario.after in made:
            before = made[scenario.after]
            images = torch.where(per_image(beaten), before.images, images)
            real |= beaten & before.real
        columns = columns | self._verdict(
            images, batch.images, batch.labels, rng.stream(scenario.name), attack_norm(scenario.attack)
        )
        columns |= {norm: lp_norm(images - batch.images, norm) for norm in NORMS}
        found: Rows = {}
        for name, column in columns.items():
            if name in _SPENT:
                found[name] = column + earlier.get(name, 0)
            elif name.rpartition("/")[2] in _SPENT:
                found[name] = earlier.get(name, column)
            elif each_part and "/" in name:
                found[name] = column
            else:
                kept = torch.where(broken, earlier.get(name, column), column)
                found[name] = torch.where(beaten, smaller.get(name, kept), kept)
        return Made(images, real), found

    def _verdict(self, images: Tensor, clean: Tensor, labels: Tensor, rng: SampleRNG, norm: Norm = "linf") -> Rows:
        """First prediction, share of correct draws, margin of the first draw; also of the rounded images on request.

        Raises:
            _AnswersDiffer: If the defense was taken for deterministic, and a second pass says otherwise.
        """
        draws = self.settings.draws if self.stochastic else 1
        logits = deployed_logits(self.defense, images, rng, draws)
        if self._asks_twice and not self.stochastic:
            again = deployed_logits(self.defense, images, rng.stream("again"))
            if not torch.equal(logits, again):
                raise _AnswersDiffer
        predictions = logits.argmax(dim=2)
        columns = {
            "prediction": predictions[0],
            "correct": (predictions == labels).float().mean(dim=0),
            "margin": margin(logits[0], Goal(labels)),
        }
        rejected = rejections(self.defense, images, rng, draws)
        if rejected is not None:
            columns["rejected"] = rejected.float().mean(dim=0)
            columns["correct_or_rejected"] = ((predictions == labels) | rejected).float().mean(dim=0)
        columns |= self._steps(len(images))
        if self.settings.rounded:
            rounded = deployed_logits(self.defense, rounded_to_8_bits(images, clean, norm), rng, draws).argmax(dim=2)
            columns["rounded_correct"] = (rounded == labels).float().mean(dim=0)
        return columns

    def _steps(self, count: int) -> Rows:
        """Steps of an iterative test-time part on the last draw, and the share of its votes that were cut off."""
        steps: Tensor | None = getattr(self.defense, "last_steps", None)
        capped: Tensor | None = getattr(self.defense, "last_capped", None)
        if steps is None or capped is None:
            return {}
        shares = {"defense_steps": steps, "defense_capped": capped}
        return {name: votes.view(-1, count).float().mean(dim=0) for name, votes in shares.items()}


def rounded_to_8_bits(images: Tensor, clean: Tensor, norm: Norm) -> Tensor:
    """Nearest multiples of 1/255, but no perturbation is larger than before: some pixels take that on the clean side.

    Args:
        images: Pixels in [0, 1], shape ``(N, C, H, W)``.
        clean: Without the perturbation, multiples of 1/255, same shape.
        norm: In which the perturbation is measured. In l_inf the pixels step back that moved further than any did
            before; in other norms those that moved further than they did before, in images whose norm grew.
    """
    change, nearest = images - clean, (images * 255).round() / 255
    moved, limit = (nearest - clean).abs(), lp_norm(change, norm) + 1e-6
    if norm == "linf":
        far = moved > per_image(limit)
    else:
        far = (moved > change.abs() + 1e-6) & per_image(lp_norm(moved, norm) > limit)
    # clean pixels of a file are multiples themselves, so that the step back never passes them
    return torch.where(far, nearest - change.sign() / 255, nearest).clamp(0, 1)


def columns_of(rows: Rows, scenario: str) -> Rows:
    """The columns of one scenario, without its name."""
    prefix = f"{scenario}/"
    return {name.removeprefix(prefix): column for name, column in rows.items() if name.startswith(prefix)}


def _named(scenario: str, columns: Rows) -> Rows:
    return {f"{scenario}/{name}": column for name, column in columns.items()}


def _padded(tensor: Tensor, size: int) -> Tensor:
    return torch.cat([tensor, tensor[:1].expand(size - len(tensor), *tensor.shape[1:])])
