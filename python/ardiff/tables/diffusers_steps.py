"""Step tables of diffusers' Euler, DDIM and LCM schedulers, from its sigmas and timesteps.

Beside :mod:`ardiff.tables.diffusers_schedules`, in the same conventions: a schedule is the vector
of `alphas_cumprod` = alpha^2, and a list of sigmas holds sigma / alpha (of a flow, sigma).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .diffusers_schedules import DPM_PREDICTIONS, check_lengths, check_name
from .paths import data_coefficients
from .table import StepTable, TableBuilder

NOISES = ("none", "ancestral", "renewed")
SIGMA_DATA = 0.5  # of the boundary conditions of a consistency model


def euler_table(
    sigmas: np.ndarray,
    timesteps: Sequence[float],
    *,
    prediction: str,
    noise: str = "none",
    inverted: bool = False,
) -> StepTable:
    """Euler steps in sigma (Karras et al. 2022, Algorithm 1), and two that add noise.

    The state is x0 + sigma eps, or (1 - sigma) x0 + sigma eps of a flow. From sigma to s::

        none        x' = s / sigma x + (1 - s / sigma) x0
        ancestral   x' = d / sigma x + (1 - d / sigma) x0 + u n,
                    u^2 = s^2 (sigma^2 - s^2) / sigma^2, d^2 = s^2 - u^2
        renewed     x' = (1 - s) x0 + s n         (a flow: all noise is new)

    Args:
        sigmas: `[N + 1]`, at the calls and at the end.
        timesteps: `[N]`, what the model is given at the calls.
        prediction: epsilon, sample, v_prediction or flow.
        noise: one of the three above.
        inverted: the sigmas are 1 - sigma, which rise, and the model's velocity points to the data
            (Mochi).

    Raises:
        ValueError: an unknown name, lengths that do not fit, or inverted sigmas with noise.
    """
    check_name("prediction", prediction, DPM_PREDICTIONS)
    check_name("noise", noise, NOISES)
    if inverted and noise != "none":
        raise ValueError(f"inverted sigmas have no noise, got noise={noise!r}")
    sigma = check_lengths("euler_table", sigmas, timesteps)
    if inverted:
        sigma = [1 - s for s in sigma]
    builder = TableBuilder("discrete", prediction, "euler" if noise == "none" else f"euler-{noise}")
    for level, a, b in zip(timesteps, sigma[:-1], sigma[1:], strict=True):
        up = b * math.sqrt(max(a**2 - b**2, 0.0)) / a if noise == "ancestral" and a else 0.0
        keep = math.sqrt(max(b**2 - up**2, 0.0)) / a if a else 1.0
        p_x, p_o = {
            "sample": (0.0, 1.0),
            "v_prediction": (1 / (a**2 + 1), -a / math.sqrt(a**2 + 1)),
        }.get(prediction, (1.0, -a))
        columns = {"x_x": keep, "x_0": 1 - keep, "x_n": up}
        if noise == "renewed":
            columns = {"x_0": 1 - b, "x_n": b}
        builder.add("diffusion", float(level), p_x=p_x, p_o=-p_o if inverted else p_o, **columns)
    return builder.finish(init_scale=1.0)


def ddim_table(
    alphas_cumprod: np.ndarray,
    timesteps: Sequence[int],
    *,
    prediction: str,
    stride: int,
    final: float = 1.0,
    eta: float = 0.0,
    bounded: bool = False,
    x0_given: bool = False,
) -> StepTable:
    """DDIM (Song et al. 2021, eq. 12 and 16) with steps of one length, as diffusers takes them.

    From t to s = t - stride, with bar the alpha^2 and w = eta sqrt((1 - bar_s) / (1 - bar_t)
    (1 - bar_t / bar_s))::

        x_s = sqrt(bar_s) x0 + sqrt(1 - bar_s - w^2) eps + w n

    Args:
        alphas_cumprod: `[N]`, float64 or float32 (see :mod:`ardiff.tables.diffusers_schedules`).
        timesteps: integers in [0, N).
        stride: the length of every step, whatever the timesteps.
        final: alpha^2 below timestep 0.
        bounded: the data prediction is clipped, eps is not: it is made of the model's output, which
            then has to be the rows' memory.
        x0_given: the rows are given the data prediction in place of the output.

    Raises:
        ValueError: an unknown name, `eta` outside [0, 1], timesteps outside the schedule, or an
            epsilon model at alpha = 0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], from DDIM to DDPM, got {eta}")
    bars, builder = np.asarray(alphas_cumprod), TableBuilder("discrete", prediction, "ddim")
    one, end = bars.dtype.type(1), bars.dtype.type(final)
    for t in map(int, timesteps):
        if not 0 <= t < len(bars):
            raise ValueError(f"timesteps must lie in [0, {len(bars) - 1}], got {t}")
        bar, bar_next = bars[t], bars[t - stride] if t >= stride else end
        variance = (one - bar_next) / (one - bar) * (one - bar / bar_next)
        width = eta * math.sqrt(max(float(variance), 0.0))
        toward = math.sqrt(max(float(one - bar_next) - width**2, 0.0))
        alpha, sigma = math.sqrt(bar), math.sqrt(one - bar)
        p_x, p_o = data_coefficients("sample" if x0_given else prediction, alpha, sigma)
        if bounded:
            # eps = e_x x + e_o out
            e_x, e_o = {
                "epsilon": (0.0, 1.0),
                "sample": (1 / sigma, -alpha / sigma),
                "v_prediction": (sigma, alpha),
            }[prediction]
            columns = {"x_x": toward * e_x, "x_m": toward * e_o, "x_0": math.sqrt(bar_next)}
        else:
            ratio = toward / sigma
            columns = {"x_x": ratio, "x_0": math.sqrt(bar_next) - ratio * alpha}
        builder.add("diffusion", t, p_x=p_x, p_o=p_o, x_n=width, **columns)
    return builder.finish(init_scale=1.0)


def lcm_table(
    alphas_cumprod: np.ndarray,
    timesteps: Sequence[int],
    *,
    prediction: str,
    scaling: float = 10.0,
) -> StepTable:
    """Multistep sampling of a latent consistency model (Luo et al. 2023, Algorithm 3).

    At t, with u = scaling t and the boundary conditions c_skip = .25 / (u^2 + .25) and c_out =
    u / sqrt(u^2 + .25), the model says y = c_skip x + c_out x0, which the rows keep as memory. It
    is noised to the next timestep s, and is itself the end::

        x_s = sqrt(bar_s) y + sqrt(1 - bar_s) n

    Args:
        alphas_cumprod: `[N]`, alpha^2.
        timesteps: integers in [0, N).
        scaling: `timestep_scaling` of diffusers.

    Raises:
        ValueError: timesteps outside the schedule, or an epsilon model at alpha = 0.
    """
    bars, builder = np.asarray(alphas_cumprod), TableBuilder("discrete", prediction, "lcm")
    one, steps = bars.dtype.type(1), [int(t) for t in timesteps]
    if not all(0 <= t < len(bars) for t in steps):
        raise ValueError(f"timesteps must lie in [0, {len(bars) - 1}], got {steps}")
    for t, following in zip(steps, [*steps[1:], None], strict=True):
        p_x, p_o = data_coefficients(prediction, math.sqrt(bars[t]), math.sqrt(one - bars[t]))
        u, norm = scaling * t, (scaling * t) ** 2 + SIGMA_DATA**2
        skip, out = SIGMA_DATA**2 / norm, u / math.sqrt(norm)
        bar = one if following is None else bars[following]
        alpha = math.sqrt(bar)
        builder.add(
            "diffusion",
            t,
            p_x=p_x,
            p_o=p_o,
            x_x=alpha * skip,
            x_0=alpha * out,
            x_n=math.sqrt(one - bar),
            m_x=skip,
            m_0=out,
        )
    return builder.finish(init_scale=1.0)
