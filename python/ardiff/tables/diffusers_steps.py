"""Step tables of diffusers' Euler, DDIM, LCM and UniPC schedulers, from its sigmas and timesteps.

Beside :mod:`ardiff.tables.diffusers_schedules`, in the same conventions: a schedule is the vector
of `alphas_cumprod` = alpha^2, and a list of sigmas holds sigma / alpha (of a flow, sigma).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .diffusers_schedules import DPM_PREDICTIONS, _alpha_sigma, _data_columns, _known, _log_snr
from .paths import data_coefficients
from .table import StepTable, TableBuilder

NOISES = ("none", "ancestral", "renewed")
SIGMA_DATA = 0.5  # of the boundary conditions of a consistency model


def _check_lengths(name: str, sigmas: np.ndarray, timesteps: Sequence[float]) -> list[float]:
    sigma = [float(s) for s in np.asarray(sigmas, np.float64)]
    if len(sigma) != len(timesteps) + 1 or len(sigma) < 2:
        raise ValueError(
            f"{name} needs one sigma more than timesteps, got {len(sigma)} and {len(timesteps)}"
        )
    return sigma


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
    _known("prediction", prediction, DPM_PREDICTIONS)
    _known("noise", noise, NOISES)
    if inverted and noise != "none":
        raise ValueError(f"inverted sigmas have no noise, got noise={noise!r}")
    sigma = _check_lengths("euler_table", sigmas, timesteps)
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


def _unipc_weights(log_snr: list[float], i: int, order: int, kind: str) -> tuple:
    """UniP's and UniC's weights over step i, in units of alpha at its end.

    Returns:
        (weights of D_0, ..., D_order-1 as the predictor has them, what the corrector adds to the
        weights of the prediction at the end and of the same), D_k the data prediction k calls back.
    """
    h = log_snr[i + 1] - log_snr[i]
    fall = math.expm1(-h)
    predict, correct = [-fall], [0.0] * (order + 1)
    if order == 1:
        # of a step without an end there is nothing to correct: rho_c = 1 / 2
        scale = fall if kind == "bh2" or not math.isfinite(h) else -h
        return predict, [-scale / 2, scale / 2]
    if not (math.isfinite(h) and h > 0):
        raise ValueError(
            f"a step of order {order} needs an end between the sigmas, got one of length {h:g} in "
            "log(alpha / sigma): use lower_order_final=True"
        )
    scale = fall if kind == "bh2" else -h
    r = np.array([(log_snr[i - k] - log_snr[i]) / h for k in range(1, order)] + [1.0])
    # b_k = k! phi_(k+1)(-h) h / B(h) with the exponential integrator's phi functions
    phi, b = fall / -h - 1, []
    for k in range(1, order + 1):
        b.append(phi * math.factorial(k) / scale)
        phi = phi / -h - 1 / math.factorial(k + 1)
    rows = r[None] ** np.arange(order)[:, None]
    corrector = np.linalg.solve(rows, np.array(b))
    # Zhao et al. take 1 / 2 at order 2
    predictor = [0.5] if order == 2 else np.linalg.solve(rows[:-1, :-1], np.array(b[:-1]))
    for k, (rho_p, rho_c) in enumerate(zip(predictor, corrector[:-1], strict=True), 1):
        gain = -scale / r[k - 1]
        predict.append(gain * rho_p)
        predict[0] -= gain * rho_p
        correct[k + 1] = gain * (rho_c - rho_p)
        correct[1] -= gain * (rho_c - rho_p)
    correct[0] = -scale * corrector[-1]
    correct[1] -= correct[0]
    return predict, correct


def unipc_table(
    sigmas: np.ndarray,
    timesteps: Sequence[float],
    *,
    prediction: str,
    order: int = 2,
    solver: str = "bh2",
    lower_order_final: bool = True,
    flow: bool = False,
    uncorrected: Sequence[int] = (),
    first: int = 0,
) -> StepTable:
    """UniPC of order 1 to 3 on the data prediction (Zhao et al. 2023, Algorithms 5 and 6).

    A row has the call at the end of a predicted step: it corrects that step and predicts the next.
    Both begin at the same state, so that the corrected one is the predicted one and a combination
    of the data predictions, of which the rows' memory is `[B, order d]`.

    Args:
        sigmas: `[N + 1]`, sigma / alpha at the calls and at the end; with `flow` sigma = 1 - alpha.
        timesteps: `[N]`, what the model is given at the calls.
        prediction: epsilon, sample, v_prediction or flow.
        solver: B(h), ``bh1`` -h or ``bh2`` e^-h - 1.
        lower_order_final: the last steps have as many predictions as steps are left.
        uncorrected: the steps after which no corrector is applied.
        first: the row a run begins at; the rows from there on have as many predictions to use.

    Raises:
        ValueError: an unknown name, lengths that do not fit, an epsilon model at alpha = 0, or a
            step of order 2 or 3 that ends at sigma = 0 or has no length.
    """
    for name, value, known in (
        ("prediction", prediction, DPM_PREDICTIONS),
        ("order", order, (1, 2, 3)),
        ("solver", solver, ("bh1", "bh2")),
    ):
        _known(name, value, known)
    sigma = _check_lengths("unipc_table", sigmas, timesteps)
    count, builder = len(timesteps), TableBuilder("discrete", prediction, f"unipc-{order}")
    log_snr = [_log_snr(s, flow) for s in sigma]
    correct: list[float] = []
    for i in range(count):
        limit = min(order, count - i) if lower_order_final else order
        predict, fix = _unipc_weights(log_snr, i, max(1, min(limit, i + 1 - first)), solver)
        (_, noise), (alpha_end, noise_end) = (_alpha_sigma(s, flow) for s in sigma[i : i + 2])
        fall = noise_end / noise
        weights = [0.0] * 4
        for k, weight in enumerate(predict):
            weights[k] += alpha_end * weight
        if i > first and i - 1 not in uncorrected:
            for k, weight in enumerate(correct):
                weights[k] += fall * weight
        p_x, p_o = _data_columns(prediction, sigma[i], flow)
        builder.add(
            "diffusion",
            float(timesteps[i]),
            p_x=p_x,
            p_o=p_o,
            x_0=weights[0],
            x_m=weights[1],
            # x_d (x - memory2) reaches the second memory
            x_x=fall + weights[2],
            x_d=-weights[2],
            x_3=weights[3],
            m_0=1.0,
            s_m=float(order > 1),
            t_2=float(order > 2),
        )
        correct = [alpha_end * weight for weight in fix]
    return builder.finish(init_scale=1.0)
