"""UniPC (Zhao et al. 2023, Algorithms 5 and 6, data prediction), of order 1 to 3, as in diffusers.

A step from level a to b predicts x_b, and when the model has been called there the step is made
once more with what it says: the corrector costs no call. With h the step in log(alpha / sigma), h'
the one before, x0 the data prediction at a, x0' the one before and x0_b that at the predicted x~_b,

    x~_b = sigma_b / sigma_a x_a + alpha_b ((1 - e^-h) x0 + sum_i w_i (x0_i - x0))       UniP-p
    x_b  = sigma_b / sigma_a x_a + alpha_b ((1 - e^-h) x0 + sum_i c_i (x0_i - x0))       UniC-p

where UniP-p sums over the p - 1 predictions before x0, UniC-p over x0_b as well, and the weights
integrate the polynomial through all of these predictions. That is the solution of the paper's
R rho = b, in which B(h) cancels; it is left in the two weights that are not solved for,

    w = -B(h) / 2  h / h'  of UniP-2,     c = B(h) / 2  of UniC-1,

B(h) = h (``bh1``) or 1 - e^-h (``bh2``). The first steps are of lower order, for want of
predictions. The last data prediction needs no corrector.

A row has the call at b: it corrects the step that came there and predicts the next, in one affine
map of x~_b, x0_b and the `order` predictions before.
"""

from __future__ import annotations

import functools

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._exponential import adams, nodes_behind, predict_and_correct, share
from ._multistep import check_flag, check_integer, prediction_table

VARIANTS = ("bh1", "bh2")


def order_of(past: list[Transition], left: int, order: int, lower_order_final: bool) -> int:
    """The order of a step: no more than there are predictions, and lower at the end."""
    return min(order, len(past), left if lower_order_final else order)


def half_b(t: Transition, variant: str) -> float:
    """alpha_b B(h) / 2."""
    return (t.alpha_b * t.h if variant == "bh1" else share(t)) / 2


def predict(past: list[Transition], left: int, order, variant, lower_order_final) -> np.ndarray:
    """Weights of x0 and of the predictions before it."""
    t, order = past[0], order_of(past, left, order, lower_order_final)
    if order != 2:
        return adams(t, nodes_behind(past, order))
    old = half_b(t, variant) * t.h / past[1].h
    return np.array([share(t) + old, -old])


def correct(past: list[Transition], left: int, order, variant, lower_order_final) -> np.ndarray:
    """Weights of x0_b, x0 and the predictions before it."""
    t, order = past[0], order_of(past, left, order, lower_order_final)
    if order == 1:
        # from alpha = 0, where h is infinite, B(h) = h has no limit
        new = half_b(t, variant if np.isfinite(t.h) else "bh2")
        return np.array([new, share(t) - new])
    return adams(t, np.array([t.h, *nodes_behind(past, order)]))


def table(
    path, prediction, levels, steps, *, order=2, variant="bh2", lower_order_final=None,
    denoise_last=True,
) -> StepTable:  # fmt: skip
    """`steps` calls, one per step.

    With `lower_order_final` a step is of no higher order than there are calls left, itself
    included: of order 3 the step before the last data prediction falls to 2. By default that is
    so where the run ends in a data prediction.
    """
    check_integer("unipc", "order", order, 1, 3)
    check_flag("unipc", "lower_order_final", lower_order_final)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r} of unipc; known: {', '.join(VARIANTS)}")
    lower = denoise_last if lower_order_final is None else lower_order_final
    options = {"order": order, "variant": variant, "lower_order_final": lower}
    rows = functools.partial(
        predict_and_correct,
        predict=functools.partial(predict, **options),
        correct=functools.partial(correct, **options),
    )
    return prediction_table("unipc", path, prediction, levels, steps, denoise_last, rows, order)
