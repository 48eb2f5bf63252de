"""Accuracy as a function of budget, and over scenarios."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def worst_case(correct: Tensor) -> Tensor:
    """What each image keeps against an attacker who picks the best scenario for that image.

    Args:
        correct: Whether each answer is right, or for a stochastic defense the share of draws with the right answer,
            shape ``(S, N)``: scenarios by images. The mean over draws comes first: a minimum over single draws would
            count bad luck as attacks.

    Returns:
        Minimum over scenarios, float, shape ``(N,)``; its mean is the worst-case accuracy.

    Raises:
        ValueError: If there is no scenario.
    """
    if correct.ndim != 2 or len(correct) == 0:
        raise ValueError(f"worst_case needs shape (scenarios, images) with a scenario, got {tuple(correct.shape)}")
    values = correct if correct.is_floating_point() else correct.float()
    return values.amin(dim=0)


def accuracy_norm_curve(norms: Tensor, fooled: Tensor) -> tuple[Tensor, Tensor]:
    """Share of images not yet broken, by the norm of the perturbation.

    Images that are misclassified from the start belong in it as fooled with norm 0. If all images are fooled, the
    area under the steps is the mean norm.

    Args:
        norms: Norm of each smallest perturbation found, shape ``(N,)``; those of unfooled images do not matter.
        fooled: Whether the attack succeeded, bool, same shape.

    Returns:
        Radii, ascending from 0, float64, shape ``(R,)``, and accuracy from each radius on up to the next, same shape.

    Raises:
        ValueError: If there are no images.
    """
    if norms.numel() == 0:
        raise ValueError("an accuracy curve needs at least one image, got none")
    broken_at = norms.double()[fooled.bool()]
    radii: Tensor = torch.unique(torch.cat([broken_at.new_zeros(1), broken_at]))
    broken = torch.searchsorted(broken_at.sort().values, radii, right=True)
    return radii, 1 - broken / norms.numel()


def eps_for_accuracy(
    accuracy_at: Callable[[float], float], target: float, low: float, high: float, tolerance: float
) -> float:
    """Smallest budget at which accuracy has dropped to a target, by bisection.

    Deep Defense compares networks at the budget that leaves its own at 50%. Where accuracy is not falling everywhere,
    the result is one of the budgets at which it crosses the target.

    Args:
        accuracy_at: Accuracy in [0, 1] at a budget.
        target: Accuracy to drop to.
        low: Budget at which accuracy is still above the target.
        high: Budget at which accuracy is at most the target.
        tolerance: Greatest error of the result, positive.

    Returns:
        A budget at which accuracy is at most the target, and at most ``tolerance`` above one at which it is not.

    Raises:
        ValueError: If the target is not crossed between ``low`` and ``high``, or an argument is out of range.
    """
    if not low < high or not tolerance > 0:
        raise ValueError(
            f"the search needs low < high and tolerance > 0, got low={low}, high={high}, tolerance={tolerance}"
        )
    at_low, at_high = accuracy_at(low), accuracy_at(high)
    if not at_high <= target < at_low:
        remedy = f"raise high above {high}" if at_high > target else f"lower low below {low}"
        raise ValueError(
            f"accuracy does not drop to {target} between eps={low} (accuracy {at_low}) and eps={high} "
            f"(accuracy {at_high}): {remedy}, or choose another target"
        )
    while high - low > tolerance:
        middle = (low + high) / 2
        if middle in (low, high):  # neighbouring floats
            break
        low, high = (middle, high) if accuracy_at(middle) > target else (low, middle)
    return high
