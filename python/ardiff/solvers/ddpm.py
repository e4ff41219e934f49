"""DDPM: the ancestral step, on any Gaussian path.

Ho, Jain, Abbeel 2020, Algorithm 2 with the smaller variance: x_b is drawn from the law that it has
given x_a and the data, the data replaced by their prediction x0,

    x_b = (r sigma_b^2 x_a + alpha_b s^2 x0) / sigma_a^2 + w xi,   w = sigma_b s / sigma_a,

with r = alpha_a / alpha_b and s^2 = sigma_a^2 - r^2 sigma_b^2.
"""

from __future__ import annotations

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._one_call import one_call_table


def step(t: Transition, previous: Transition | None) -> dict[str, float]:
    return {
        "x_x": t.r * (t.sigma_b / t.sigma_a) ** 2,
        "x_0": t.alpha_b * t.s2 / t.sigma_a**2,
        "x_n": t.width,
    }


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    return one_call_table("ddpm", path, prediction, levels, steps, denoise_last, step)
