"""Attack a batch in every scenario and write one row per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_advdef.attacks import Surrogate
from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.attacks.verdict import deployed_logits, exact_arithmetic, is_stochastic
from lightning_advdef.evaluation.scenario import Scenario, require_unique_names
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch, Norm

Rows = dict[str, Tensor]
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
    """

    batch_size: int = 256
    strict: bool = False
    draws: int = 10
    seed: int = 0


class Judge:
    """Turns batches into rows; knows neither where images come from nor where rows go.

    Args:
        defense: The deployed defense, or any network that maps images to logits.
        scenarios: What to run.
        settings: How.
        mean_image: Mean training image ``(C, H, W)``, for norms relative to the centred image; None to leave them out.

    Raises:
        ValueError: If two scenarios share a name.
    """

    def __init__(
        self,
        defense: nn.Module,
        scenarios: Sequence[Scenario],
        settings: JudgeSettings | None = None,
        mean_image: Tensor | None = None,
    ) -> None:
        require_unique_names(scenarios)
        self.defense = defense
        self.settings = settings or JudgeSettings()
        self.mean_image = mean_image
        self.scenarios = list(scenarios)
        self.surrogates = {scenario.name: self._bind(scenario) for scenario in scenarios}
        self.stochastic: bool | None = None
        self.watch: Callable[[str, Batch, Tensor, Rows], None] | None = None

    def _bind(self, scenario: Scenario) -> Surrogate:
        surrogate = scenario.bind(self.defense)
        surrogate.fixed_shape = self.settings.strict
        return surrogate

    def describe(self) -> list[dict[str, Any]]:
        """The scenarios as plain values."""
        return [scenario.describe(self.surrogates[scenario.name]) for scenario in self.scenarios]

    def __call__(self, batch: Batch) -> Rows:
        """One row per image: columns ``index``, ``label``, ``clean/...`` and ``<scenario>/...``."""
        with torch.inference_mode(False), torch.no_grad():
            # tensors made in inference mode cannot be saved for backward: all of them are copied
            return self._judge(Batch(*(tensor.clone() for tensor in batch)))

    def _judge(self, batch: Batch) -> Rows:
        count = len(batch.images)
        if self.settings.strict:
            batch = self._pad(batch)
        rng = SampleRNG.for_images(batch.indices, self.settings.seed)
        rows = self._clean_rows(batch, rng)
        for scenario in self.scenarios:
            adversarial, found = self._attack(scenario, batch, rng)
            rows |= found
            if self.watch is not None:
                self.watch(scenario.name, batch, adversarial[:count], rows)
        return {name: column[:count].cpu() for name, column in rows.items()}

    def _pad(self, batch: Batch) -> Batch:
        """Repeats the first image until the batch has the one shape of strict mode."""
        count, size = len(batch.images), self.settings.batch_size
        if count > size:
            raise ValueError(f"strict mode takes at most {size} images, got {count}")
        lacking = -(-size // _STRICT_MULTIPLE) * _STRICT_MULTIPLE - count
        return Batch(*(torch.cat([tensor, tensor[:1].expand(lacking, *tensor.shape[1:])]) for tensor in batch))

    def _clean_rows(self, batch: Batch, rng: SampleRNG) -> Rows:
        if self.stochastic is None:
            self._look_for_randomness(batch, rng)
        rows = {"index": batch.indices, "label": batch.labels}
        rows["clean/stochastic"] = torch.full_like(batch.labels, int(bool(self.stochastic)))
        rows |= self._verdict("clean", batch.images, batch.labels, rng)
        rows |= {f"clean/{norm}": lp_norm(batch.images, norm) for norm in NORMS}
        if self.mean_image is not None:
            centred = batch.images - self.mean_image.to(batch.images)
            rows |= {f"clean/centred_{norm}": lp_norm(centred, norm) for norm in NORMS}
        return rows

    def _look_for_randomness(self, batch: Batch, rng: SampleRNG) -> None:
        self.stochastic = is_stochastic(self.defense, batch.images, rng)
        for surrogate in self.surrogates.values():
            surrogate.random = self.stochastic

    def _attack(self, scenario: Scenario, batch: Batch, rng: SampleRNG) -> tuple[Tensor, Rows]:
        surrogate = self.surrogates[scenario.name]
        passes = surrogate.start_counting(len(batch.images), batch.images.device)
        with exact_arithmetic():
            adversarial = scenario.attack(surrogate, batch.images, batch.labels, rng)
        surrogate.passes = None
        rows = self._verdict(scenario.name, adversarial, batch.labels, rng)
        rows |= {f"{scenario.name}/{norm}": lp_norm(adversarial - batch.images, norm) for norm in NORMS}
        rows |= {f"{scenario.name}/{kind}": counts for kind, counts in vars(passes).items()}
        return adversarial, rows

    def _verdict(self, name: str, images: Tensor, labels: Tensor, rng: SampleRNG) -> Rows:
        """First prediction and share of correct draws."""
        draws = self.settings.draws if self.stochastic else 1
        logits = deployed_logits(self.defense, images, rng.stream(name), draws)
        drawn = logits.argmax(dim=2)
        return {f"{name}/prediction": drawn[0], f"{name}/correct": (drawn == labels).float().mean(dim=0)}
