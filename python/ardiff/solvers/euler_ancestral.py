"""Ancestral Euler steps of k-diffusion, and of ComfyUI and diffusers on rectified flows.

An Euler step without noise to a level below b, then noise up to b. In y = x / alpha and
s = sigma / alpha, with x0 the data prediction,

    y_b = x0 + s_down / s_a (y_a - x0) + s_up xi,   s_down^2 + s_up^2 = s_b^2.

How far down, eta says by the law of the path (`solvers/_ancestral.py`): on ``flow`` that of
ComfyUI's `sample_euler_ancestral_RF`, sigma_down = sigma_b (1 + (sigma_b / sigma_a - 1) eta); on
all others k-diffusion's, by which the step is that of ``ddim`` with the same eta.

With cfg_pp (CFG++, Chung et al. 2024; ComfyUI's `sample_euler_ancestral_cfg_pp`, and with eta = 0
its `sample_euler_cfg_pp`) the noise is read off the prediction x0u without the condition,

    y_b = x0 + s_down / s_a (y_a - x0u) + s_up xi,

by k-diffusion's law on every path, as there.
"""

from __future__ import annotations

import functools

import numpy as np

from ..tables.paths import Path, Transition
from ..tables.table import StepTable
from ._ancestral import check_eta, split, split_by_sigma
from ._multistep import check_flag
from ._one_call import one_call_table


def step(
    t: Transition, previous: Transition | None, path: Path, eta: float, cfg_pp: bool
) -> dict[str, float]:
    down, up = split_by_sigma(t.h, eta) if cfg_pp else split(path, t, eta)
    kept = t.alpha_b * down * np.exp(-t.h)  # of the data that the state holds
    data = {"x_0": t.alpha_b, "x_u": -kept} if cfg_pp else {"x_0": t.alpha_b - kept}
    return {"x_x": t.sigma_b / t.sigma_a * down, **data, "x_n": t.sigma_b * up}


def table(
    path, prediction, levels, steps, *, eta=1.0, cfg_pp=False, denoise_last=True
) -> StepTable:
    """`steps` calls, one per step."""
    name = "euler-ancestral"
    check_flag(name, "cfg_pp", cfg_pp)
    rows = functools.partial(step, path=path, eta=check_eta(name, eta), cfg_pp=bool(cfg_pp))
    return one_call_table(name, path, prediction, levels, steps, denoise_last, rows)
