"""Exponential Adams steps in log(alpha / sigma): predictor, corrector, and both in one row.

In lambda = log(alpha / sigma), with an amount tau of noise, the reverse SDE of a path is solved by

    x_b = sigma_b / sigma_a e^(-tau^2 h) x_a
          + alpha_b integral (1 + tau^2) e^(-(1 + tau^2) (lambda_b - lambda)) x0 dlambda
          + sigma_b sqrt(1 - e^(-2 tau^2 h)) n

over h = lambda_b - lambda_a (tau = 0 is the ODE). A predictor puts the polynomial through known
predictions in the place of x0; a corrector one that goes through the prediction at x~_b, the
predictor's result, too. Both have the same first and last term, so that what the corrector changes
is a combination of predictions alone: the noise stays as it was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..tables.paths import Transition
from ._multistep import Step, lagrange, quadrature

Weights = Callable[[list[Transition], int], Sequence[float]]


def share(t: Transition, rate: float = 1.0) -> float:
    """The weight of all predictions together, alpha_b (1 - e^(-rate h)); rate = 1 + tau^2."""
    return -t.alpha_b * np.expm1(-rate * t.h)


def nodes_behind(past: list[Transition], count: int) -> np.ndarray:
    """lambda - lambda_a at the levels of the last `count` predictions, newest (0) first."""
    return -np.cumsum([0.0, *(t.h for t in past[1:count])])


def adams(t: Transition, nodes: np.ndarray, rate: float = 1.0) -> np.ndarray:
    """Weights of the predictions at `nodes`, which are lambda - lambda_a, over the step `t`.

    They sum to :func:`share`, to the last digit.
    """
    weights = np.zeros(len(nodes))
    finite = np.isfinite(nodes)
    if finite.sum() > 1 and np.isfinite(t.h):
        at, dt = quadrature(0.0, t.h)
        kernel = t.alpha_b * rate * np.exp(-rate * (t.h - at))
        weights = lagrange(nodes, at) @ (kernel * dt)
    first = int(np.argmax(finite))
    weights[first] = 0.0
    weights[first] = share(t, rate) - weights.sum()
    return weights


def predict_and_correct(
    past: list[Transition],
    left: int,
    predict: Weights,
    correct: Weights,
    tau: Callable[[Transition], float] = lambda t: 0.0,
) -> Step:
    """The step `past[0]`, from the state that the step `past[1]` led to and that is corrected.

    ``predict(past, left)`` gives the weights of the predictions at the start of step `past[0]` and
    before; ``correct(past, left)`` has that at its end in front.
    """
    t = past[0]
    churn = tau(t) ** 2 * t.h if tau(t) else 0.0
    fall = t.sigma_b / t.sigma_a * np.exp(-churn)
    weights = np.zeros(4)
    made = predict(past, left)
    weights[: len(made)] = made
    if len(past) > 1:
        last = correct(past[1:], left + 1)
        weights[: len(last)] += fall * np.array(last)
        if len(last):
            foreseen = predict(past[1:], left + 1)
            weights[1 : 1 + len(foreseen)] -= fall * np.array(foreseen)
    return Step(fall, weights, t.sigma_b * np.sqrt(-np.expm1(-2 * churn)))
