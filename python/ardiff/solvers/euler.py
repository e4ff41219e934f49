"""Euler's method on the probability flow (Karras et al. 2022, eq. 5), as in k-diffusion.

In y = x / alpha and s = sigma / alpha the flow is dy/ds = (y - x0) / s = eps, and a step

    y_b = y_a + (s_b - s_a) eps = (s_b / s_a) y_a + (1 - s_b / s_a) x0

keeps the noise that the model sees: it is DDIM with eta = 0, and `flow-euler`, in other
coordinates. The last step, to s = 0, is the data prediction.
"""

from __future__ import annotations

from ..tables.table import StepTable
from . import ddim
from ._one_call import one_call_table


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    return one_call_table("euler", path, prediction, levels, steps, denoise_last, ddim.step)
