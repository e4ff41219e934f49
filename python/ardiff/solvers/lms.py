"""Linear multistep (Adams-Bashforth for any steps), of order 1 to 4, as in k-diffusion, diffusers.

With d = (y - x0) / t the slope of the probability flow dy/dt = d at level a and d_1, d_2, d_3 those
before,

    y_b = y_a + sum_j d_j integral over [t_a, t_b] of L_j(t) dt,

L_j the Lagrange polynomials of the t of these slopes; the first steps have fewer. The last step, to
t = 0, is one of these too, not a data prediction. (y, t) is (x / alpha, sigma / alpha), but
(x, sigma) on a rectified flow.
"""

from __future__ import annotations

import numpy as np

from ..tables.table import StepTable
from ._multistep import check_integer, lagrange, quadrature, slope_table


def older(nodes: np.ndarray, t_b: float, left: int) -> np.ndarray:
    at, dt = quadrature(nodes[0], t_b)  # exact for polynomials
    return (lagrange(nodes, at) @ dt)[1:]


def table(path, prediction, levels, steps, *, order=4, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    check_integer("lms", "order", order, 1, 4)
    return slope_table(
        "lms", path, prediction, levels, steps, denoise_last, older, order=order, to_data=True
    )
