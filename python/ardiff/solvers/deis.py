"""DEIS (Zhang & Chen 2023), the exponential integrator for the noise, of order 1 to 3.

In y = x / alpha and s = sigma / alpha the probability flow is dy/ds = eps, the noise that the model
sees, and

    y_b = y_a + sum_j eps_j integral over [s_a, s_b] of L_j(u(s)) ds,

eps_0 at level a and those before, L_j the Lagrange polynomials of their u. The first steps have
fewer of them; the last is the data prediction.

u is log s (``log``, which diffusers has), or the time of a variance-preserving SDE of linear beta
(``vp-time``: tAB-DEIS, which ComfyUI has), of which s = .002 at t = .001 and s = 80 at t = 1. On a
rectified flow ``vp-time`` is taken in ComfyUI's coordinates there, (x, sigma) for (y, s).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..tables.table import StepTable
from ._multistep import (
    check_flag,
    check_integer,
    lagrange,
    quadrature,
    ratio_coordinates,
    sigma_coordinates,
    slope_table,
)

FEW = 15  # calls: with fewer diffusers lowers the order at the end


def vp_time(s: np.ndarray) -> np.ndarray:
    """t with log(1 + s^2) = beta_d t^2 / 2 + beta_min t."""
    first, last = np.log1p(0.002**2) / 0.001, np.log1p(80.0**2)
    beta_d = 2 * (last - first) / (1 - 0.001)
    beta_min = last - beta_d / 2
    # free of the difference of near numbers that the quadratic formula has at small s
    whole = np.log1p(np.square(s))
    return 2 * whole / (beta_min + np.sqrt(beta_min**2 + 2 * beta_d * whole))


INTERPOLATIONS = {"log": (np.log, ratio_coordinates), "vp-time": (vp_time, sigma_coordinates)}


def table(
    path, prediction, levels, steps, *, order=3, interpolation="log", lower_order_final=None,
    denoise_last=True,
) -> StepTable:  # fmt: skip
    """`steps` calls, one per step.

    With `lower_order_final` a step is of no higher order than there are calls left, itself
    included. By default that is so, as in diffusers, with ``log``, a data prediction at the end
    and fewer than 15 calls.
    """
    check_integer("deis", "order", order, 1, 3)
    check_flag("deis", "lower_order_final", lower_order_final)
    if interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise ValueError(f"unknown interpolation {interpolation!r} of deis; known: {known}")
    lower = lower_order_final
    if lower is None:
        lower = denoise_last and steps < FEW and interpolation == "log"
    u, coordinates = INTERPOLATIONS[interpolation]

    def older(nodes: np.ndarray, s_b: float, left: int) -> Sequence[float]:
        if s_b == 0:
            return ()
        nodes = nodes[:left] if lower else nodes
        log_s, weights = quadrature(np.log(nodes[0]), np.log(s_b))
        s = np.exp(log_s)
        with np.errstate(over="ignore", divide="ignore"):
            return (lagrange(u(nodes), u(s)) @ (s * weights))[1:]

    return slope_table(
        "deis", path, prediction, levels, steps, denoise_last, older, order=order,
        coordinates=coordinates,
    )  # fmt: skip
