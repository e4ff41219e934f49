"""DPM-Solver++ (stochastic) of k-diffusion: two calls a step, ancestral steps to both.

With h the step in log(alpha / sigma) from a to b, m the level r h of the way, and an ancestral step
in y = x / alpha, s = sigma / alpha, k-diffusion's `get_ancestral_step` in both,

    y_m = x0 + down_m / s_a (y_a - x0) + up_m xi,     x0_m the prediction at y_m
    D   = x0 + (x0_m - x0) / (2 r),
    y_b = D + down_b / s_a (y_a - D) + up_b xi',

xi' independent of xi: the second row starts from x_a again, which the memory holds in its
combination with x0. k-diffusion's own noise sampler, a Brownian tree, correlates the two.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import transition
from ..tables.table import StepTable, TableBuilder
from ._ancestral import check_eta, split_by_sigma
from ._stages import below_noise


def table(path, prediction, levels, steps, *, eta=1.0, r=0.5, denoise_last=True) -> StepTable:
    """As many steps of two calls as fit, then the data prediction."""
    name, eta = "dpmpp-sde", check_eta("dpmpp-sde", eta)
    if isinstance(r, (str, bool)) or not 0 < r < 1:
        raise ValueError(f"{name}: r must be between 0 and 1, got {r!r}")
    count = (steps - int(denoise_last)) // 2
    if count < 1:
        raise ValueError(
            f"{name} makes two model calls per step: it needs steps >= {2 + int(denoise_last)}, "
            f"got steps={steps}"
        )
    grid, builder, weight = levels(count + 1), TableBuilder(path, prediction, name), 1 / (2 * r)
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        begin = below_noise(path, a)
        whole = transition(path, begin, b)
        m = float(path.level(path.ratio(begin) * np.exp(-r * whole.h)))
        part = transition(path, begin, m)
        down, up = split_by_sigma(part.h, eta)
        x_x = part.sigma_b / part.sigma_a * down
        p_x, p_o = builder.data_prediction(a)
        first = {"x_x": x_x, "x_0": part.alpha_b - x_x * part.alpha_a, "x_n": part.sigma_b * up}
        down, up = split_by_sigma(whole.h, eta)
        x_x = whole.sigma_b / whole.sigma_a * down
        gain = whole.alpha_b - x_x * whole.alpha_a
        kept = {"m_x": x_x, "m_0": gain * (1 - weight)}
        builder.add("diffusion", a, p_x=p_x, p_o=p_o, **first, **kept)
        p_x, p_o = builder.data_prediction(m)
        second = {"x_m": float(any(kept.values())), "x_0": gain * weight, "x_n": whole.sigma_b * up}
        builder.add("diffusion", m, p_x=p_x, p_o=p_o, **second)
    return builder.finish(grid[-1] if denoise_last else None)
