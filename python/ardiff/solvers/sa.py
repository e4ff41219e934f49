"""SA-Solver, stochastic Adams (Xue et al. 2023, Algorithm 1, data prediction), as in diffusers.

A step from level a to b predicts x_b, and when the model has been called there the step is made
once more with what it says and with the same noise: the corrector costs no call. With h the step in
log(alpha / sigma) and x0_j the data predictions,

    x_b = sigma_b / sigma_a e^(-tau^2 h) x_a + alpha_b sum_j b_j x0_j
          + sigma_b sqrt(1 - e^(-2 tau^2 h)) xi,

b_j the integrals of (1 + tau^2) e^(-(1 + tau^2) (lambda_b - lambda)) L_j(lambda) over the step, L_j
the Lagrange polynomials of lambda = log(alpha / sigma) at the predictions. The predictor of order p
has x0 and the p - 1 before it, the corrector of order p that at x~_b and the p - 1 before it. Of
order 2 both take simpler weights (Appendix D), which differ by O(h^3): the predictor
-(1 + tau^2) h^2 / (2 h') for x0', the corrector (1 + tau^2) h / 2 for the prediction at x~_b.

tau = 0 is the ODE, tau = 1 the SDE of the diffusion. The last data prediction needs no corrector.
"""

from __future__ import annotations

import functools

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._exponential import adams, nodes_behind, predict_and_correct, share
from ._multistep import check_flag, check_integer, prediction_table


def predict(past: list[Transition], left: int, order, rate, simple, lower) -> np.ndarray:
    """Weights of x0 and of the predictions before it."""
    t, order = past[0], min(order, len(past), left if lower else order)
    if order != 2 or not simple:
        return adams(t, nodes_behind(past, order), rate(t))
    old = t.alpha_b * rate(t) * t.h**2 / (2 * past[1].h)
    return np.array([share(t, rate(t)) + old, -old])


def correct(past: list[Transition], left: int, order, rate, simple, lower) -> np.ndarray:
    """Weights of the prediction at x~_b, of x0 and of those before it; none of order 0."""
    t, order = past[0], min(order, len(past) + 1, left + 1 if lower else order)
    if order == 0:
        return np.array([])
    # from alpha = 0, where h is infinite, the simple weight has no limit
    if order != 2 or not simple or not np.isfinite(t.h):
        return adams(t, np.array([t.h, *nodes_behind(past, order - 1)])[:order], rate(t))
    new = t.alpha_b * rate(t) * t.h / 2
    return np.array([new, share(t, rate(t)) - new])


def table(
    path, prediction, levels, steps, *, predictor_order=2, corrector_order=2, tau=1.0,
    tau_start=25.0, tau_end=0.7, simple_order_2=True, lower_order_final=None, denoise_last=True,
) -> StepTable:  # fmt: skip
    """`steps` calls, one per step.

    Orders: the predictor's 1 to 3, the corrector's 1 to 4, or 0 for none. `tau` is the noise of the
    steps that begin at sigma / alpha from `tau_end` to `tau_start`, the others have none; the
    window is about that of diffusers, whose steps have noise at the timesteps 800 to 200 of 1,000
    (linear beta). tau_start=inf, tau_end=0 is noise in all. `simple_order_2`: the weights of
    Appendix D (ComfyUI has them off). With `lower_order_final` a step's predictor is of no higher
    order than there are calls left, itself included, and its corrector of no more than one above
    that; by default that is so where the run ends in a data prediction.
    """
    check_integer("sa", "predictor_order", predictor_order, 1, 3)
    check_integer("sa", "corrector_order", corrector_order, 0, 4)
    check_flag("sa", "simple_order_2", simple_order_2)
    check_flag("sa", "lower_order_final", lower_order_final)
    if isinstance(tau, (str, bool)) or not 0 <= tau < np.inf:
        raise ValueError(f"sa: tau must be finite and not negative, got {tau!r}")
    if isinstance(tau_start, str) or isinstance(tau_end, str) or not 0 <= tau_end <= tau_start:
        raise ValueError(
            f"sa: tau_start and tau_end must be sigma / alpha with 0 <= tau_end <= tau_start, got "
            f"tau_start={tau_start!r} and tau_end={tau_end!r}"
        )

    def tau_of(t: Transition) -> float:
        # compared as products: alpha_a may be 0
        inside = tau_end * t.alpha_a <= t.sigma_a and (
            np.isinf(tau_start) or t.sigma_a <= tau_start * t.alpha_a
        )
        return float(tau) if inside else 0.0

    lower = denoise_last if lower_order_final is None else lower_order_final
    options = {"rate": lambda t: 1 + tau_of(t) ** 2, "simple": simple_order_2, "lower": lower}
    rows = functools.partial(
        predict_and_correct,
        predict=functools.partial(predict, order=predictor_order, **options),
        correct=functools.partial(correct, order=corrector_order, **options),
        tau=tau_of,
    )
    memories = max(predictor_order - 1, corrector_order - 1)
    if corrector_order:  # what it takes back of the predictor is a call older
        memories = max(memories, predictor_order)
    return prediction_table("sa", path, prediction, levels, steps, denoise_last, rows, memories)
