"""Euler-Maruyama on a rectified flow, the sampler of NextStep-1, on any path.

In the coordinates c = alpha + sigma, y = x / c, t = sigma / c of ``flow-euler`` the time t is 1 at
the noise and 0 at the data (NextStep-1 counts the other way), y = (1 - t) x0 + t eps, the velocity
is u = eps - x0 and the score -eps / t. The reverse-time equation with diffusion sqrt(2 t), stepped
by dt = t_a - t_b, is

    y_b = y_a + dt (-u + t_a score) + sqrt(2 t_a dt) xi,    u + eps = (2 y - (2 - t) x0) / t.

The last step, to t = 0, is deterministic: the data prediction.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._one_call import one_call_table
from .flow_euler import coordinates


def step(t: Transition, previous: Transition | None) -> dict[str, float]:
    c_a, t_a, c_b, t_b = coordinates(t)
    dt = t_a - t_b
    return {
        "x_x": c_b / c_a * (1 - 2 * dt / t_a),
        "x_0": c_b * dt * (2 - t_a) / t_a,
        "x_n": c_b * np.sqrt(2 * t_a * dt),
    }


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    return one_call_table("flow-sde", path, prediction, levels, steps, denoise_last, step)
