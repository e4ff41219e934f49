"""Step tables of discrete-time schedules, in the conventions of diffusers.

A schedule is the vector of `alphas_cumprod` = alpha^2 at the training timesteps 0, 1, ...; a model
is called at some of these. Coefficients with cancellation are computed in the dtype of the array
given: float64 is exact, float32 rounds as the published schedulers do and so reproduces them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .paths import VPPath, data_coefficients
from .table import StepTable, TableBuilder

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")
VARIANCES = (
    "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range",
)  # fmt: skip
ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++")
DPM_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow")
NO_VARIANCE = 1e-20  # what a variance of 0 counts as, since its logarithm is taken


def check_name(name: str, value: object, known: Sequence) -> None:
    """ValueError unless `value` is among the known ones, which it lists."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(map(str, known))}")


def beta_schedule(
    name: str, steps: int = 1000, start: float = 1e-4, end: float = 0.02
) -> np.ndarray:
    """Betas of a named schedule, float64 `[steps]`; `start` and `end` have no say in those given by
    alpha^2 (``squaredcos_cap_v2``, Nichol & Dhariwal 2021, and ``laplace``, Hang & Gu 2024)."""
    check_name("beta_schedule", name, BETA_SCHEDULES)
    if name == "linear":
        return np.linspace(start, end, steps)
    if name == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    if name == "sigmoid":
        return (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))) + start
    t = np.arange(steps + 1) / steps
    if name == "squaredcos_cap_v2":
        bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    else:
        log_snr = -0.5 * np.copysign(1, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6)
        bar = np.sqrt(1 / (1 + np.exp(-log_snr)))
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas rescaled so that alpha is 0 at the last timestep (Lin et al. 2024, Algorithm 1)."""
    alpha = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    bar = alpha**2
    return 1 - np.concatenate([bar[:1], bar[1:] / bar[:-1]])


class DiscretePath(VPPath):
    """The variance-preserving path through given `alphas_cumprod`; the level is the timestep.

    Raises:
        ValueError: unless they decrease strictly within (0, 1).
    """

    def __init__(self, alphas_cumprod: np.ndarray) -> None:
        bar = np.asarray(alphas_cumprod, np.float64)
        inside = bar.ndim == 1 and len(bar) > 1 and np.all((bar > 0) & (bar < 1))
        if not (inside and np.all(np.diff(bar) < 0)):
            raise ValueError("alphas_cumprod must be two or more numbers that fall within (0, 1)")
        self.name = "discrete"
        self._log_ratio = 0.5 * (np.log1p(-bar) - np.log(bar))
        self._step = np.arange(len(bar), dtype=np.float64)
        self.ratio_min, self.ratio_max = np.exp(self._log_ratio[[0, -1]]).tolist()

    def __len__(self) -> int:
        return len(self._step)


def check_timesteps(alphas_cumprod: np.ndarray, timesteps: Sequence[int]) -> list[int]:
    """The timesteps as integers; ValueError unless they fall strictly and lie in the schedule."""
    steps = np.asarray(timesteps)
    ok = steps.ndim == 1 and len(steps) > 0 and np.all(steps == np.round(steps))
    if not (
        ok and np.all(np.diff(steps) < 0) and 0 <= steps[-1] and steps[0] < len(alphas_cumprod)
    ):
        raise ValueError(
            f"timesteps must be integers in descending order within [0, {len(alphas_cumprod) - 1}],"
            f" got {np.array2string(steps, threshold=8)}"
        )
    return [int(t) for t in steps]


def ddpm_table(
    alphas_cumprod: np.ndarray,
    timesteps: Sequence[int],
    *,
    prediction: str,
    variance: str = "fixed_small",
) -> StepTable:
    """DDPM (Ho et al. 2020, Algorithm 2) on a subsequence of the timesteps.

    From t to the next timestep s (alpha = 1 after the last), with beta = 1 - bar_t / bar_s::

        x_s = sqrt(bar_s) beta / (1 - bar_t) x0 + sqrt(1 - beta) (1 - bar_s) / (1 - bar_t) x_t + w n

    No noise is added at t = 0. w^2 is ``fixed_small`` (1 - bar_s) / (1 - bar_t) beta or
    ``fixed_large`` beta (their ``_log`` forms are the same numbers), ``learned_range`` between both
    by the second half of a model output `[B, 2d]`, or ``learned``: 1, so that the noise given to
    `diffusion_step` must hold the deviation.

    Args:
        alphas_cumprod: `[N]`, float64 or float32 (see the module).
        timesteps: integers, falling strictly.
        prediction: one of :data:`ardiff.tables.paths.PREDICTIONS`.

    Raises:
        ValueError: an unknown name, timesteps that are not such, or an epsilon or score model at
            alpha = 0.
    """
    check_name("variance", variance, VARIANCES)
    bars = np.asarray(alphas_cumprod)
    builder = TableBuilder("discrete", prediction, "ddpm")
    steps, one = check_timesteps(bars, timesteps), bars.dtype.type(1)
    for t, following in zip(steps, [*steps[1:], None], strict=True):
        bar, bar_next = bars[t], one if following is None else bars[following]
        alpha = bar / bar_next
        beta, rest, rest_next = float(one - alpha), float(one - bar), float(one - bar_next)
        p_x, p_o = data_coefficients(prediction, math.sqrt(bar), math.sqrt(rest))
        small = max(rest_next / rest * beta, NO_VARIANCE)
        widths = {"learned": 1.0, "fixed_large": beta, "fixed_large_log": beta}
        builder.add(
            "diffusion",
            t,
            p_x=p_x,
            p_o=p_o,
            x_0=math.sqrt(bar_next) * beta / rest,
            x_x=math.sqrt(alpha) * rest_next / rest,
            x_n=math.sqrt(widths.get(variance, small)) if t > 0 else 0.0,
            lv_min=math.log(small),
            lv_max=math.log(max(beta, NO_VARIANCE)),
        )
    return builder.finish(init_scale=1.0)


def check_lengths(name: str, sigmas: np.ndarray, timesteps: Sequence[float]) -> list[float]:
    """The sigmas; ValueError unless there is one at each call and one at the end."""
    sigma = [float(s) for s in np.asarray(sigmas, np.float64)]
    if len(sigma) != len(timesteps) + 1 or len(sigma) < 2:
        raise ValueError(
            f"{name} needs one sigma more than timesteps, got {len(sigma)} and {len(timesteps)}"
        )
    return sigma


def alpha_and_sigma(sigma: float, flow: bool) -> tuple[float, float]:
    """The path's coefficients where sigma / alpha is `sigma`, or sigma itself of a flow."""
    alpha = 1 - sigma if flow else 1 / math.sqrt(1 + sigma**2)
    return alpha, sigma if flow else sigma * alpha


def log_snr_at(sigma: float, flow: bool) -> float:
    """log(alpha / sigma) there."""
    alpha, noise = alpha_and_sigma(sigma, flow)
    if noise == 0 or alpha == 0:
        return math.inf if noise == 0 else -math.inf
    return math.log(alpha) - math.log(noise)


def columns_of_data(prediction: str, sigma: float, flow: bool) -> tuple[float, float]:
    """(p_x, p_o) as diffusers has them: it reads ``flow`` as x - sigma out on any schedule."""
    alpha, noise = alpha_and_sigma(sigma, flow)
    if prediction == "flow":
        return 1.0, -sigma
    if prediction == "v_prediction":
        return alpha, -noise
    return data_coefficients(prediction, alpha, noise)


def _ratio(h: float, other: float) -> float:
    """h / other, 0 where the other step has no length or no end."""
    return h / other if other and math.isfinite(other) and math.isfinite(h) else 0.0


def _weights(gains: tuple[float, float, float], order: int, h: float, h0: float, h1: float):
    """Weights of the last three data predictions in gains . (D0, D1, D2)."""
    first, second, third = gains
    if order == 1:
        return first, 0.0, 0.0
    a = _ratio(h, h0)
    if order == 2:
        return first + second * a, -second * a, 0.0
    b, share = _ratio(h, h1), h0 / (h0 + h1)
    # D1 = (1 + share) D10 - share D11, D2 = h / (h0 + h1) (D10 - D11)
    on_new = second * (1 + share) + third * h / (h0 + h1)
    on_old = -second * share - third * h / (h0 + h1)
    return first + on_new * a, -on_new * a + on_old * b, -on_old * b


def _gains(alpha: float, h: float, sde: bool, solver: str, order: int):
    """What D0, D1 and D2 are multiplied with over a step h in log(alpha / sigma)."""
    k = 2 * h if sde else h
    full = -math.expm1(-k)
    if order == 1 or not math.isfinite(k):
        return alpha * full, 0.0, 0.0
    if order == 2 and solver == "midpoint":
        return alpha * full, 0.5 * alpha * full, 0.0
    flat = 1 - full / k if k else 0.0
    bent = 0.5 - (k - full) / k**2 if k else 0.0
    return alpha * full, alpha * flat, alpha * bent


def dpmpp_table(
    sigmas: np.ndarray,
    timesteps: Sequence[float],
    *,
    prediction: str,
    algorithm: str = "dpmsolver++",
    order: int = 2,
    solver: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    final_sigmas_type: str = "zero",
    flow: bool = False,
    first: int = 0,
) -> StepTable:
    """Multistep DPM-Solver++ and SDE-DPM-Solver++ (Lu et al. 2022) with diffusers' options.

    The memory of the rows is the last data prediction; at order 3 it is `[B, 2d]`, the last two.

    Args:
        sigmas: `[N + 1]`, sigma / alpha at the calls and at the end (0 for the data themselves), as
            `DPMSolverMultistepScheduler.sigmas`; with `flow` sigma = 1 - alpha.
        timesteps: `[N]`, what the model is given at the calls.
        prediction: epsilon, sample, v_prediction or flow.
        algorithm: ``dpmsolver++`` or ``sde-dpmsolver++``.
        order, solver: 1, 2 (``midpoint`` or ``heun``) or, of the deterministic algorithm, 3.
        lower_order_final: with fewer than 15 calls the last is of order 1, the one before of 2 at
            most.
        euler_at_final: the last is of order 1; so it is where `final_sigmas_type` is ``zero``.
        first: the row a run begins at; the rows from there on have as many predictions to use.

    Raises:
        ValueError: an unknown name, lengths that do not fit, or an epsilon model at alpha = 0.
    """
    for name, value, known in (
        ("prediction", prediction, DPM_PREDICTIONS),
        ("algorithm", algorithm, ALGORITHMS),
        ("order", order, (1, 2, 3)),
        ("solver", solver, ("midpoint", "heun")),
        ("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min")),
    ):
        check_name(name, value, known)
    sde = algorithm == "sde-dpmsolver++"
    if sde and order == 3:
        raise ValueError(f"{algorithm} has order 1 or 2 here, got order=3")
    sigma = check_lengths("dpmpp_table", sigmas, timesteps)
    count, builder = len(timesteps), TableBuilder("discrete", prediction, algorithm)
    log_snr = [log_snr_at(s, flow) for s in sigma]
    few = lower_order_final and count < 15
    for i in range(count):
        limit = order
        if i == count - 1 and (few or euler_at_final or final_sigmas_type == "zero"):
            limit = 1
        elif i == count - 2 and few:
            limit = min(order, 2)
        own = max(1, min(limit, i + 1 - first))
        alpha, noise = alpha_and_sigma(sigma[i + 1], flow)
        h, h0, h1 = (log_snr[j + 1] - log_snr[j] if j >= 0 else math.inf for j in (i, i - 1, i - 2))
        gains = _gains(alpha, h, sde, solver, own)
        w0, w1, w2 = _weights(gains, own, h, h0, h1)
        p_x, p_o = columns_of_data(prediction, sigma[i], flow)
        keep = noise / alpha_and_sigma(sigma[i], flow)[1] * (math.exp(-h) if sde else 1.0)
        builder.add(
            "diffusion",
            float(timesteps[i]),
            p_x=p_x,
            p_o=p_o,
            x_0=w0,
            x_m=w1,
            # x_d (x - memory2) reaches the second memory
            x_x=keep + w2,
            x_d=-w2,
            x_n=noise * math.sqrt(-math.expm1(-2 * h)) if sde else 0.0,
            m_0=1.0,
            s_m=float(order == 3),
        )
    return builder.finish(init_scale=1.0)
