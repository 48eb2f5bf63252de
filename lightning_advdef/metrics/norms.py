"""Sizes of perturbations, and what papers report about them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RelativeNorm(NamedTuple):
    """Perturbation relative to the image, over a data set.

    Attributes:
        mean: Mean of the ratios, the papers' rho; NaN without images.
        median: Median of the ratios; NaN without images.
        images: Number of images counted.
    """

    mean: float
    median: float
    images: int


class NormSummary(NamedTuple):
    """Norms of the perturbations of a minimal-norm attack; NaN where no image counts.

    Attributes:
        mean_included: Mean over broken images, where images misclassified from the start count with norm 0.
        median_included: Median over the same images.
        mean_excluded: Mean over images that were right at first and are broken.
        median_excluded: Median over the same images.
        median_all: Median over all images, misclassified ones with norm 0 and unbroken ones with infinite norm: the
            radius at which half of all images are lost. Infinite where the attack breaks fewer than half.
        broken: Share of all images that are broken, misclassified ones among them.
        misclassified: Share of all images that were misclassified from the start.
    """

    mean_included: float
    median_included: float
    mean_excluded: float
    median_excluded: float
    median_all: float
    broken: float
    misclassified: float


def relative_norm(perturbation_norms: Tensor, image_norms: Tensor, fooled: Tensor | None = None) -> RelativeNorm:
    """Norm of the perturbation divided by the norm of the image, over a data set.

    Source: Yan et al., 2018, "Deep Defense", equation 7. As there, all images count by default: misclassified ones,
    and unfooled ones with the norm their unfinished perturbation has.

    Args:
        perturbation_norms: Shape ``(N,)``.
        image_norms: Norms of the clean images, same shape. Images of norm 0 have no ratio and are left out.
        fooled: Images to count, bool, same shape; ``None`` counts all.
    """
    counted = image_norms > 0
    if fooled is not None:
        counted = counted & fooled.bool()
    ratios = perturbation_norms.double()[counted] / image_norms.double()[counted]
    return RelativeNorm(_mean(ratios), _median(ratios), ratios.numel())


def norm_summary(norms: Tensor, fooled: Tensor, misclassified: Tensor | None = None) -> NormSummary:
    """Mean and median norms under each convention for images that no attack is needed for.

    Args:
        norms: Norm of each perturbation, shape ``(N,)``; those of unfooled images do not matter.
        fooled: Whether the attack succeeded, bool, same shape.
        misclassified: Whether the clean image is already misclassified, bool, same shape; ``None`` takes images that
            are fooled with norm 0.
    """
    fooled = fooled.bool()
    wrong = fooled & (norms == 0) if misclassified is None else misclassified.bool()
    broken = fooled | wrong
    needed = torch.where(wrong, 0.0, norms.double())
    included, excluded = needed[broken], needed[broken & ~wrong]
    return NormSummary(
        mean_included=_mean(included),
        median_included=_median(included),
        mean_excluded=_mean(excluded),
        median_excluded=_median(excluded),
        median_all=_median(torch.where(broken, needed, torch.inf)),
        broken=_mean(broken.double()),
        misclassified=_mean(wrong.double()),
    )


def _mean(values: Tensor) -> float:
    """Mean, NaN of nothing."""
    return float(values.mean())


def _median(values: Tensor) -> float:
    """Median with the mean of the middle two, which may be infinite; NaN of nothing.

    ``torch.median`` takes the lower of the two, and ``torch.quantile`` gives NaN between infinities.
    """
    count = values.numel()
    if count == 0:
        return float("nan")
    ordered = values.sort().values
    return float((ordered[(count - 1) // 2] + ordered[count // 2]) / 2)
