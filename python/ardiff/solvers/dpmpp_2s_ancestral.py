"""DPM-Solver++(2S) (Lu et al. 2022, Algorithm 1, r = 1/2) with ancestral steps, as in k-diffusion.

A step without noise to a level below b, two calls, then noise up to b. In y = x / alpha,
s = sigma / alpha and with x0 the data prediction, half the step in log s first:

    y_m = x0 + s_m / s_a (y_a - x0),         s_m = sqrt(s_a s_down),   x0_m the prediction there
    y_b = x0_m + s_down / s_a (y_a - x0_m) + s_up xi,   s_down^2 + s_up^2 = s_b^2.

How far down, eta says by the law of the path, as in ``euler-ancestral``: k-diffusion's, or on
``flow`` that of ComfyUI's `sample_dpmpp_2s_ancestral_RF`. Where nothing is left (s_down = 0) the
step is x0 with noise, one call. Where the state has no data (alpha_a = 0) s_m is 9999, as there.

With cfg_pp (ComfyUI's `sample_dpmpp_2s_ancestral_cfg_pp`) both calls give the prediction without
the condition, x0u and x0u_m, and the guidance x0 - x0u of the first is added to y_b.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import transition
from ..tables.table import StepTable, TableBuilder
from ._ancestral import check_eta, split
from ._multistep import check_flag
from ._stages import below_noise


def table(
    path, prediction, levels, steps, *, eta=1.0, cfg_pp=False, denoise_last=True
) -> StepTable:
    """As many steps of two calls as fit, then the data prediction."""
    name = "dpmpp-2s-ancestral"
    eta = check_eta(name, eta)
    check_flag(name, "cfg_pp", cfg_pp)
    count = (steps - int(denoise_last)) // 2
    if count < 1:
        raise ValueError(
            f"{name} makes two model calls per step: it needs steps >= {2 + int(denoise_last)}, "
            f"got steps={steps}"
        )
    grid, builder = levels(count + 1), TableBuilder(path, prediction, name)
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        t = transition(path, a, b)
        down, up = split(path, t, eta)
        s_down, x_n = down * t.sigma_b / t.alpha_b, t.sigma_b * up
        p_x, p_o = builder.data_prediction(a)
        if s_down == 0:
            builder.add("diffusion", a, p_x=p_x, p_o=p_o, x_0=t.alpha_b, x_n=x_n)
            continue
        begin = below_noise(path, a)
        whole = begin != a
        m = begin if whole else float(path.level(np.sqrt(path.ratio(a) * s_down)))
        alpha_m, sigma_m = float(path.alpha(m)), float(path.sigma(m))
        x_x, back = sigma_m / t.sigma_a, t.alpha_b * s_down / sigma_m  # y_b has `back` x_m
        x_0 = alpha_m - x_x * t.alpha_a
        data = "x_u" if cfg_pp else "x_0"
        kept = (
            {"m_0": t.alpha_b, "m_u": -t.alpha_b - back * x_0} if cfg_pp else {"m_0": -back * x_0}
        )
        builder.add("diffusion", a, p_x=p_x, p_o=p_o, x_x=x_x, **{data: x_0}, **kept)
        p_x, p_o = builder.data_prediction(m)
        gain = t.alpha_b - back * x_x * t.alpha_a
        row = {"x_x": back, data: gain, "x_m": 1.0, "x_n": x_n}
        builder.add("diffusion", m, p_x=p_x, p_o=p_o, **row)
    return builder.finish(grid[-1] if denoise_last else None)
