"""The classifier that an attack differentiates in place of the deployed defense."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.surrogates.passes import Passes
from lightning_advdef.attacks.surrogates.plain import as_defense
from lightning_advdef.errors import NotANumberError
from lightning_advdef.models.outputs import require_classes
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Access, slices


class Surrogate(ABC):
    """Images in, logits of ``draws`` random draws out.

    Args:
        defense: The deployed defense (or any network) under attack.

    Attributes:
        access: What the attacker knows, printed beside each number.
        draws: Draws ``S`` per call.
        fixed_shape: Set in strict mode: no image may leave the batch, so that its shape never changes.
        working: Where a fixed shape keeps finished images in the batch: which images are not finished, bool, shape
            ``(N,)`` over the rows of the whole batch. Passes are booked for these alone.
        enlisted: The same for a part of a cascade, which sets it from outside: which images the part is run for.
        random: Set where the defense was found to answer differently when asked again.
        strongest: Set where the adversarial images themselves are wanted, as in training: no image is final when it is
            misclassified, and the iterate of highest loss is returned.
        search_dtype: What the network computes in while the attack searches; ``torch.bfloat16`` is faster, and then
            every success is confirmed in float32.
        max_rows: Most images times draws times gradients that one pass may hold, but at least one image; None for no
            bound.
        ledger: Further columns ``(N, ...)`` that an attack wants to be stored with each image.
        known: Columns of the ledger of an earlier call, which spare a cascade the parts that it has run already.
    """

    access: Access
    draws: int = 1

    def __init__(self, defense: nn.Module) -> None:
        self.defense = as_defense(defense)
        self.fixed_shape = False
        self.working: Tensor | None = None
        self.enlisted: Tensor | None = None
        self.random = bool(self.defense.stochastic)
        self.strongest = False
        self.search_dtype = torch.float32
        self.max_rows: int | None = None
        self.ledger: dict[str, Tensor] = {}
        self.known: Mapping[str, Tensor] = {}
        self.passes: Passes | None = None
        self._saw_nan: Tensor | None = None
        self._largest_label = 0
        self._followed: torch.device | None = None

    @abstractmethod
    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Differentiable logits, shape ``(S, N, K)``."""

    @property
    def exact(self) -> bool:
        """Whether a wrong prediction here settles an image: the deployed defense has it, too, now and always."""
        return False

    @property
    def may_compact(self) -> bool:
        """Whether an image that is fooled may leave the batch."""
        return self.exact and not self.fixed_shape

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that run in eval mode without parameter gradients, and are left as they were."""
        assert isinstance(self.defense, nn.Module)
        return (self.defense,)

    def follow(self, images: Tensor, module: nn.Module) -> None:
        """Moves a module that is no part of the defense to where the images are, once."""
        if self._followed != images.device:
            module.to(images.device)
            self._followed = images.device

    def settings(self) -> dict[str, Any]:
        """What it was made with besides the defense, as plain values; weights as their hash."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Plain values that are equal exactly if two surrogates of one defense are the same."""
        return {"surrogate": type(self).__name__, "access": self.access, "surrogate_settings": self.settings()}

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits ``(S, N, K)``; books ``S`` forward passes per image, in passes of at most ``max_rows``."""
        chunks = self.chunks(len(images), self.draws)
        if len(chunks) == 1:
            return self._search(images, rng)
        return torch.cat([self._search(images[rows], rng[rows]) for rows in chunks], dim=1)

    def mean_logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits ``(N, K)`` in float32, averaged over the draws."""
        return self(images, rng).float().mean(dim=0)

    def _search(self, images: Tensor, rng: SampleRNG) -> Tensor:
        if self.search_dtype == torch.float32:
            return self._forward(images, rng)
        # weights change between regions of autocast, so no copy of them may be kept
        with torch.autocast(images.device.type, self.search_dtype, cache_enabled=False):
            return self._forward(images, rng)

    def _forward(self, images: Tensor, rng: SampleRNG) -> Tensor:
        self.count_forward(rng, self.draws)
        logits = self.logits(images, rng)
        self.watch_logits(logits)
        return logits

    def fooled(self, images: Tensor, logits: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """Whether images reach the goal, bool, shape ``(N,)``; a search in another dtype is confirmed in float32.

        For attacks that keep what reaches the goal whatever the surrogate; others ask whether it is :meth:`final`.

        Args:
            images: What was asked about, shape ``(N, C, H, W)``.
            logits: The answer, shape ``(N, K)``.
            goal: What is wanted of them.
            rng: The rows' random numbers for this step.
        """
        reached = goal.reached(logits)
        if self.search_dtype == torch.float32:
            return reached
        rows = reached.nonzero().squeeze(1)
        if len(rows):
            with torch.no_grad(), self.in_float32():
                sure = self(images[rows], rng[rows]).mean(dim=0)
            reached[rows] = goal[rows].reached(sure)
        return reached

    def final(self, images: Tensor, logits: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """Whether reaching the goal decides an image, bool, shape ``(N,)``: see :meth:`fooled`, never if not exact."""
        if not self.exact:
            return torch.zeros_like(goal.labels, dtype=torch.bool)
        return self.fooled(images, logits, goal, rng)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """For attacks that measure how far a boundary is by small differences of logits, which bfloat16 rounds away."""
        asked, self.search_dtype = self.search_dtype, torch.float32
        try:
            yield
        finally:
            self.search_dtype = asked

    def chunks(self, count: int, copies: int) -> list[slice]:
        """Rows of a batch of ``count`` images that may pass together, each image in so many ``copies``.

        Where the shape is fixed, all chunks are of one size.
        """
        size = max(1, count if self.max_rows is None else self.max_rows // copies)
        while self.fixed_shape and count % size:
            size = size - 1 if size < count else count
        return slices(max(1, count), size)

    def watch(self, values: Tensor) -> None:
        """Remembers NaN in logits or gradients, which a sign or a maximum would hide; costs no device sync."""
        if self._saw_nan is not None:
            self._saw_nan |= values.detach().isnan().any()

    def watch_logits(self, logits: Tensor) -> None:
        """The same, and whether the labels are classes that the logits ``(..., K)`` know.

        Raises:
            ValueError: If the largest label is none of them.
        """
        require_classes(type(self).__name__, logits.shape[-1], self._largest_label)
        self.watch(logits)

    def start_watching(self, device: torch.device, largest_label: int = 0) -> None:
        """Begins to look for NaN, and for logits that have no place for the largest label."""
        self._saw_nan = torch.zeros((), dtype=torch.bool, device=device)
        self._largest_label = largest_label

    def refuse_nan(self) -> None:
        """Ends the watch.

        Raises:
            NotANumberError: If any watched value was NaN.
        """
        saw_nan, self._saw_nan, self._largest_label = self._saw_nan, None, 0
        if saw_nan is not None and saw_nan:
            raise NotANumberError(
                f"{type(self).__name__} gave NaN logits or gradients during the attack, so its result would mean "
                "nothing: check the network's weights and its preprocessing"
            )

    def auxiliary(self, images: Tensor, labels: Tensor, rng: SampleRNG) -> Tensor | None:
        """A further loss that the attack maximises, shape ``(N,)``; None for none."""
        return None

    def count_forward(self, rng: SampleRNG, times: int) -> None:
        """Books forward passes for the images of ``rng``."""
        if self.passes is not None:
            self.passes.forward.index_add_(0, rng.rows, self._booked(rng, times))

    def count_backward(self, rng: SampleRNG, times: int, gradient: Tensor) -> None:
        """Books backward passes for the images of ``rng``, and whether their ``gradient`` ``(N, ...)`` was zero."""
        if self.passes is not None:
            self.passes.backward.index_add_(0, rng.rows, self._booked(rng, times))
            zero = gradient.flatten(1).count_nonzero(dim=1) == 0
            self.passes.zero_gradients.index_add_(0, rng.rows, self._booked(rng, 1) * zero)

    def leave_out(self, decided: Tensor) -> None:
        """Books no more passes for decided images, bool, shape ``(N,)``, which a fixed shape keeps in the batch."""
        if self.exact and self.fixed_shape:
            self.working = ~decided

    @contextmanager
    def enlisting(self, images: Tensor) -> Iterator[None]:
        """Books what runs inside for these images alone, bool, shape ``(N,)``, if a fixed shape keeps the others."""
        before = self.enlisted
        if self.fixed_shape:
            self.enlisted = images if before is None else before & images
        try:
            yield
        finally:
            self.enlisted = before

    def _booked(self, rng: SampleRNG, times: int) -> Tensor:
        booked = torch.full_like(rng.rows, times)
        for mask in (self.working, self.enlisted):
            booked = booked if mask is None else booked * mask[rng.rows]
        return booked

    def start_counting(self, count: int, device: torch.device) -> Passes:
        """Resets the books for a batch of ``count`` images and returns them."""
        zeros = torch.zeros(count, dtype=torch.int64, device=device)
        self.passes = Passes(zeros, zeros.clone(), zeros.clone())
        self.ledger = {}
        return self.passes

    def spent(self, rng: SampleRNG) -> dict[str, Tensor]:
        """Forward and backward passes booked so far for the images of ``rng``; 0 while nobody keeps books."""
        if self.passes is None:
            return {"forward": torch.zeros_like(rng.rows), "backward": torch.zeros_like(rng.rows)}
        return {"forward": self.passes.forward[rng.rows], "backward": self.passes.backward[rng.rows]}


SurrogateFactory = Callable[[nn.Module], Surrogate]


class FullGradient(Surrogate):
    """White box: autograd through the whole deployed defense."""

    access: Access = "white"

    @property
    def exact(self) -> bool:
        """True for a deterministic defense under judgement, unless it may reject what it gets wrong."""
        return not (self.random or self.strongest or hasattr(self.defense, "rejects"))

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits of the deployed defense, shape ``(1, N, K)``."""
        return self.defense(images, rng.stream("defense")).unsqueeze(0)


class Undefended(Surrogate):
    """Gray box: the bare classifier, without the defense's test-time part."""

    access: Access = "gray"

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits of the undefended classifier, shape ``(1, N, K)``."""
        logits: Tensor = self.defense.undefended(images)
        return logits.unsqueeze(0)


def as_surrogate(target: nn.Module | Surrogate) -> Surrogate:
    """A surrogate as it is; a network or defense as its own full gradient."""
    return target if isinstance(target, Surrogate) else FullGradient(target)
