"""Time grids: where on a path the n levels of a solver lie, noisiest first.

A grid is even in some function of the level, from the noisy end to the clean one::

    log-snr           log(sigma / alpha): DPM-Solver (Lu et al. 2022)
    exponential       the same, by k-diffusion's name
    uniform           the level itself; ComfyUI's `normal`
    karras            (sigma / alpha)^(1 / rho), rho = 7 (Karras et al. 2022, eq. 5)
    polyexponential   log(sigma / alpha), the places raised to rho, 1 by default (k-diffusion)
    kl-optimal        arctan(sigma / alpha) (Sabour et al. 2024, "Align Your Steps")
    beta              the level, at the quantiles of Beta(.6, .6) (Lee et al. 2024)

These have both ends. The next ones leave the clean end out, so that n steps of equal kind end there
with the last; it is the path's own end, and `ratio_min` has no say::

    sgm-uniform       the level (ComfyUI; timesteps in "trailing" spacing; of flow models 1 - i / n)
    linear-quadratic  the level, even down to 1 - .025 and quadratic from there (Mochi, ComfyUI)

And these are lists of their own, for which neither end has a say::

    simple            every T/n-th of T training timesteps from the last, rounded down (ComfyUI); on
                      `vp-*`, and on flow with T = 1000
    ays-sd15          sigma / alpha as optimised by Sabour et al. 2024 for Stable Diffusion 1.5 in
    ays-sdxl          ten steps, for SDXL, and for Stable Video Diffusion; interpolated evenly in
    ays-svd           its logarithm for another number of steps

The level is the training timestep on ``vp-*``, where `beta` and `sgm-uniform` are what ComfyUI does
(which rounds those of `beta`, and has n + 1 of them without the last); on ``edm`` it is sigma, on
``flow`` t, on which `beta` is what diffusers does with ``use_beta_sigmas``. On ``flow`` diffusers
and ComfyUI take sigma for t where `karras`, `exponential` and `kl-optimal` here have sigma / alpha
= t / (1 - t): a list of those levels can be had by :func:`spaced` and passed as the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

SPACINGS = (
    "log-snr", "uniform", "karras", "exponential", "polyexponential", "kl-optimal", "beta",
    "sgm-uniform", "linear-quadratic",
)  # fmt: skip
OPEN = ("sgm-uniform", "linear-quadratic")  # the clean end is left out
OF_LEVEL = ("uniform", "beta", *OPEN)  # even in the level, the others in sigma / alpha
BENT = 0.025  # where linear-quadratic goes over from one to the other
SHAPE = 0.6  # both parameters of the beta distribution

# The last number of each is the clean end, which is left out.
ALIGNED = {
    "ays-sd15": (
        14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
        0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582,
    ),
    "ays-sdxl": (
        14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
        0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582,
    ),
    "ays-svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}  # fmt: skip
GRIDS = (*SPACINGS, "simple", *ALIGNED)


def spaced(kind: str, n: int, high: float, low: float, rho: float | None = None) -> np.ndarray:
    """`n` numbers from `high` down to `low`, float64, spaced as a grid spaces what it is even in.

    Of sigma / alpha for ``log-snr``, ``exponential``, ``polyexponential``, ``karras`` and
    ``kl-optimal``, and of the level for the others; see the module.

    Args:
        kind: one of :data:`SPACINGS`.
        rho: exponent of ``karras`` (None: 7) and ``polyexponential`` (None: 1).

    Raises:
        ValueError: another kind, fewer than one, ends out of order, or rho that is not positive.

    Example:
        >>> from ardiff.tables.grids import spaced
        >>> spaced("linear-quadratic", 4, high=1.0, low=0.0).round(4).tolist()
        [1.0, 0.9875, 0.975, 0.725]
    """
    if kind not in SPACINGS:
        raise ValueError(f"unknown spacing {kind!r}; known: {', '.join(SPACINGS)}")
    if n < 1:
        raise ValueError(f"a time grid needs one level or more, got n = {n}")
    if not 0 <= low < high < math.inf or (low == 0 and kind not in OF_LEVEL):
        bound = "0 <=" if kind in OF_LEVEL else "0 <"
        raise ValueError(f"{kind} needs {bound} low < high, finite, got {low:g} and {high:g}")
    if rho is None:
        rho = 1.0 if kind == "polyexponential" else 7.0
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be positive and finite, got {rho:g}")
    u = np.arange(n) / n if kind in OPEN else np.linspace(0.0, 1.0, n)
    if kind == "beta":
        u = _beta_quantile(u)
    elif kind == "linear-quadratic":
        u = _linear_quadratic(n)
    elif kind == "polyexponential":
        u = 1 - (1 - u) ** rho
    if kind in OF_LEVEL:
        return high * (1 - u) + low * u
    there, back = _scale(kind, rho)
    first, last = there(high), there(low)
    return np.clip(back(first + u * (last - first)), low, high)


def _scale(kind: str, rho: float) -> tuple[Callable, Callable]:
    """The function of sigma / alpha in which a grid is even, and its inverse."""
    if kind == "karras":
        return lambda s: s ** (1 / rho), lambda y: y**rho
    return (np.arctan, np.tan) if kind == "kl-optimal" else (np.log, np.exp)


def _linear_quadratic(n: int) -> np.ndarray:
    """Even from 0 to BENT in the first half of the steps, then the quadratic that begins there with
    the same slope and reaches 1 after step n."""
    i, half = np.arange(n), n // 2
    if half == 0:
        return np.zeros(n)
    rest, slope = n - half, BENT / half
    j = np.maximum(i - half, 0)
    return slope * i + (1 - BENT - slope * rest) * (j / rest) ** 2


def _beta_quantile(q: np.ndarray) -> np.ndarray:
    """The quantiles of Beta(a, a), a = SHAPE, for q in [0, 1].

    Below 1/2 Newton's method for z = x^a in z S(x) = q a B(a, a), where S is the series of the
    incomplete beta integral (DLMF 8.17.7), whose terms fall like 2^-k; above by symmetry.
    """
    a, k = SHAPE, np.arange(64)
    area = a * math.gamma(a) ** 2 / math.gamma(2 * a)
    rising = np.concatenate([[1.0], np.cumprod((k[1:] - a) / k[1:])])  # (1 - a)_k / k!
    series = np.polynomial.Polynomial(a * rising / (a + k))
    aim = np.minimum(q, 1 - q) * area
    z = aim.copy()
    for _ in range(20):  # the first guess is 10% off at most, the slope within [1, 1.5]
        x = z ** (1 / a)
        z -= (z * series(x) - aim) * (1 - x) ** (1 - a)
    x = z ** (1 / a)
    return np.where(q <= 0.5, x, 1 - x)


def aligned(kind: str, n: int) -> np.ndarray:
    """sigma / alpha of `n` steps by one of the lists of Align Your Steps, float64 `[n]`."""
    places = np.linspace(0, 1, len(ALIGNED[kind]))
    return np.exp(np.interp(np.arange(n) / n, places, np.log(ALIGNED[kind])))


def dynamic_shift(
    tokens: int,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    kind: str = "exponential",
) -> float:
    """The option `shift` of a grid for images of `tokens` tokens, as flow models of diffusers have
    it with ``use_dynamic_shifting``: e^mu, or with ``linear`` mu itself, where mu is linear in the
    tokens, `base_shift` at `base_tokens` and `max_shift` at `max_tokens`.

    Args:
        tokens: of the image, as the transformer sees it: of Flux height / 16 times width / 16.
        kind: ``exponential`` (Flux, SD3) or ``linear``, diffusers' ``time_shift_type``.

    Raises:
        ValueError: no tokens, equal numbers of tokens at both ends, another kind, or a linear mu
            that is not positive.

    Example:
        >>> from ardiff.tables.grids import dynamic_shift
        >>> round(dynamic_shift((1024 // 16) * (1024 // 16)), 4)
        3.1582
    """
    if tokens < 1 or base_tokens == max_tokens:
        raise ValueError(
            "dynamic_shift needs tokens of 1 or more and base_tokens other than max_tokens, got "
            f"{tokens}, {base_tokens} and {max_tokens}"
        )
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    mu = base_shift + slope * (tokens - base_tokens)
    if kind == "exponential":
        return math.exp(mu)
    if kind != "linear":
        raise ValueError(f"unknown kind {kind!r}; known: exponential, linear")
    if mu <= 0:
        raise ValueError(f"the linear shift of {tokens} tokens is {mu:g}, which must be positive")
    return mu
