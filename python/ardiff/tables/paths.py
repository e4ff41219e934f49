"""Gaussian paths x_t = alpha x0 + sigma eps and time grids, in float64; prediction types beside.

A *level* is the path's own time (the number a model is given): t for ``ou``, sigma for ``edm``,
t in [0, 1] for ``flow``, the possibly fractional training timestep for ``vp-*``. The *ratio*
sigma / alpha grows with the level, and every path is exactly invertible between the two.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import numpy as np

from .grids import ALIGNED, GRIDS, OF_LEVEL, OPEN, aligned, spaced
from .predictions import (
    PREDICTIONS,
    check_prediction,
    data_coefficients,
    output_from_data,
    score_coefficients,
)

__all__ = [
    "GRIDS", "PATHS", "PREDICTIONS", "EDMPath", "FlowPath", "OUPath", "Path", "Transition",
    "VPPath", "check_prediction", "data_coefficients", "get_path", "output_from_data",
    "rising", "score_coefficients", "time_grid", "transition",
]  # fmt: skip


class Path:
    """A Gaussian path given by ``ratio(level)`` and its inverse ``level(ratio)``.

    Every method takes a number or an array and returns float64 of the same shape. The base class is
    variance preserving (alpha^2 + sigma^2 = 1); other paths override ``alpha`` and ``sigma``.

    Attributes:
        name: the name that :func:`get_path` knows.
        ratio_min, ratio_max: the range of sigma / alpha that the path covers.
        rises: whether steps may go towards noise, as an inversion's do; see :func:`rising`.
    """

    name = ""
    ratio_min = 0.0
    ratio_max = np.inf
    rises = False

    def ratio(self, level):
        """sigma / alpha at `level`."""
        raise NotImplementedError

    def level(self, ratio):
        """The level at which sigma / alpha is `ratio`: the inverse of :meth:`ratio`."""
        raise NotImplementedError

    def alpha(self, level):
        """The coefficient of the data at `level`."""
        return 1 / np.sqrt(1 + self.ratio(level) ** 2)

    def sigma(self, level):
        """The standard deviation of the noise at `level`."""
        ratio = self.ratio(level)
        return ratio / np.sqrt(1 + ratio**2)

    def init_scale(self, level: float) -> float:
        """Standard deviation of x for data of unit variance; 1 on ``ou`` and ``vp-*``."""
        return float(np.hypot(self.alpha(level), self.sigma(level)))

    def training_levels(self) -> np.ndarray | None:
        """The levels of the training timesteps, ascending; None for a path without such."""
        return None

    def _checked(self, values, low: float, high: float, what: str) -> np.ndarray:
        values = np.asarray(values, dtype=np.float64)
        # negated, so that NaN is refused too
        if not np.all((values >= low) & (values <= high)):
            bad = values[~((values >= low) & (values <= high))].flat[0]
            raise ValueError(
                f"path {self.name}: {what} must be in [{low:g}, {high:g}], got {bad:g}"
            )
        return values

    def __repr__(self) -> str:
        return f"<ardiff path {self.name}>"


class OUPath(Path):
    """Ornstein-Uhlenbeck, dx = -x dt + sqrt(2) dB: alpha = e^-t, sigma^2 = 1 - e^-2t, level t."""

    name = "ou"

    def ratio(self, level):
        return np.sqrt(np.expm1(2 * self._checked(level, 0.0, 300.0, "level (t)")))

    def level(self, ratio):
        return 0.5 * np.log1p(self._checked(ratio, 0.0, 1e100, "ratio") ** 2)

    def alpha(self, level):
        return np.exp(-self._checked(level, 0.0, 300.0, "level (t)"))

    def sigma(self, level):
        return np.sqrt(-np.expm1(-2 * self._checked(level, 0.0, 300.0, "level (t)")))


class VPPath(Path):
    """Discrete-time variance-preserving path of a beta schedule (DDPM), at fractional timesteps.

    At integer t in [0, len(betas) - 1], alpha^2 is the cumulative product of 1 - beta; between
    integers log(sigma / alpha) is linear in t.
    """

    def __init__(self, name: str, betas: np.ndarray) -> None:
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or len(betas) < 2 or not np.all((betas > 0) & (betas < 1)):
            raise ValueError("betas must be a vector of two or more numbers strictly in (0, 1)")
        self.name = name
        log_alpha_sq = np.cumsum(np.log1p(-betas))
        self._log_ratio = 0.5 * (np.log(-np.expm1(log_alpha_sq)) - log_alpha_sq)
        self._step = np.arange(len(betas), dtype=np.float64)
        self.ratio_min = float(np.exp(self._log_ratio[0]))
        self.ratio_max = float(np.exp(self._log_ratio[-1]))

    def ratio(self, level):
        level = self._checked(level, 0.0, self._step[-1], "level (timestep)")
        return np.exp(np.interp(level, self._step, self._log_ratio))

    def level(self, ratio):
        ratio = self._checked(
            ratio, self.ratio_min * (1 - 1e-12), self.ratio_max * (1 + 1e-12), "ratio"
        )
        return np.interp(np.log(ratio), self._log_ratio, self._step)

    def training_levels(self):
        return self._step


class EDMPath(Path):
    """Variance exploding in the form of Karras et al. 2022: alpha = 1, level sigma."""

    name = "edm"

    def ratio(self, level):
        return self._checked(level, 0.0, np.finfo(np.float64).max, "level (sigma)") + 0.0

    def level(self, ratio):
        return self._checked(ratio, 0.0, np.finfo(np.float64).max, "ratio") + 0.0

    def alpha(self, level):
        return np.ones_like(self.ratio(level))

    def sigma(self, level):
        return self.ratio(level)

    def init_scale(self, level: float) -> float:
        """sigma: EDM starts from N(0, sigma^2 I)."""
        return float(self.sigma(level))


class FlowPath(Path):
    """Rectified flow: alpha = 1 - t, sigma = t, level t in [0, 1]."""

    name = "flow"

    def ratio(self, level):
        level = self._checked(level, 0.0, 1.0, "level (t)")
        with np.errstate(divide="ignore"):
            return level / (1 - level)

    def level(self, ratio):
        ratio = self._checked(ratio, 0.0, np.inf, "ratio")
        with np.errstate(divide="ignore"):
            return 1 / (1 + 1 / ratio)

    def alpha(self, level):
        return 1 - self._checked(level, 0.0, 1.0, "level (t)")

    def sigma(self, level):
        return self._checked(level, 0.0, 1.0, "level (t)") + 0.0

    def training_levels(self):
        """1000 of them, as SD3 and Flux have; the first is not 0."""
        return np.arange(1, 1001) / 1000


def _linear_betas() -> np.ndarray:
    return np.linspace(1e-4, 0.02, 1000)


def _cosine_betas() -> np.ndarray:
    """Nichol & Dhariwal's schedule, diffusers' ``squaredcos_cap_v2``, 1000 betas up to .999."""
    bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


_MAKERS = {
    "ou": OUPath,
    "vp-linear": lambda: VPPath("vp-linear", _linear_betas()),
    "vp-cosine": lambda: VPPath("vp-cosine", _cosine_betas()),
    "edm": EDMPath,
    "flow": FlowPath,
}
PATHS = tuple(_MAKERS)


@functools.cache
def _named_path(name: str) -> Path:
    return _MAKERS[name]()


def get_path(path: str | Path) -> Path:
    """The path of that name, or `path` itself when it is a :class:`Path` already.

    Raises:
        ValueError: for an unknown name, listing the known ones.
        TypeError: for anything else.

    Example:
        >>> import ardiff
        >>> path = ardiff.get_path("flow")
        >>> float(path.alpha(0.25)), float(path.sigma(0.25))
        (0.75, 0.25)
    """
    if isinstance(path, Path):
        return path
    if not isinstance(path, str):
        raise TypeError(
            f"path must be a name or an ardiff.tables.paths.Path, got {type(path).__name__}"
        )
    if path not in _MAKERS:
        raise ValueError(f"unknown path {path!r}; known paths: {', '.join(PATHS)}")
    return _named_path(path)


def rising(path: Path) -> Path:
    """The path for an inversion, whose steps go from cleaner to noisier levels.

    The ODE of the path is followed as well in that direction. A reverse kernel has none: the
    transitions have no `s2` and no `width`, and a table that adds noise by them none to run.
    """
    other = copy.copy(path)
    other.rises = True
    return other


@dataclass(frozen=True)
class Transition:
    """Between a noisier level a and a cleaner level b: x_a = r x_b + s eps, and its envelope.

    Attributes:
        h: log(ratio_a / ratio_b), infinite where alpha_a or sigma_b is zero. Below 0 on a
            :func:`rising` path, where `s2` and `width` are NaN.
        r, s2: alpha_a / alpha_b and s^2 = sigma_a^2 - r^2 sigma_b^2.
        width: w = sigma_b s / sigma_a, the standard deviation of x_b given x_a and the data, whose
            mean is r sigma_b^2 / sigma_a^2 x_a + alpha_b s^2 / sigma_a^2 x0.
    """

    alpha_a: float
    sigma_a: float
    alpha_b: float
    sigma_b: float
    h: float
    r: float
    s2: float
    width: float


def transition(path: str | Path, a: float, b: float) -> Transition:
    """The :class:`Transition` of `path` from level `a` down to level `b`.

    Raises:
        ValueError: where b is not the cleaner level.
    """
    path = get_path(path)
    alpha_a, sigma_a, ratio_a = (float(f(a)) for f in (path.alpha, path.sigma, path.ratio))
    alpha_b, sigma_b, ratio_b = (float(f(b)) for f in (path.alpha, path.sigma, path.ratio))
    if ratio_b == ratio_a or (ratio_b < ratio_a) == path.rises:
        aim = "noisier" if path.rises else "cleaner"
        raise ValueError(f"a step must go to a {aim} level, got from level {a:g} to {b:g}")
    h = float(np.log(ratio_a) - np.log(ratio_b)) if ratio_b > 0 else np.inf
    r = alpha_a / alpha_b
    if path.rises:
        return Transition(alpha_a, sigma_a, alpha_b, sigma_b, h, r, np.nan, np.nan)
    s2 = -(sigma_a**2) * np.expm1(-2 * h)
    width = sigma_b * np.sqrt(-np.expm1(-2 * h))
    return Transition(alpha_a, sigma_a, alpha_b, sigma_b, h, r, float(s2), float(width))


def time_grid(
    path: str | Path,
    n: int,
    kind: str = "log-snr",
    *,
    ratio_max: float = 40.0,
    ratio_min: float = 0.002,
    rho: float | None = None,
    shift: float = 1.0,
) -> np.ndarray:
    """`n` levels of `path`, float64, noisiest first.

    Args:
        kind: one of :data:`GRIDS`; :mod:`ardiff.tables.grids` says what each is, and on which paths
            it is what other systems have.
        ratio_max, ratio_min: sigma / alpha at the two ends, for data of unit scale; clipped to the
            range that the path covers. With n = 1 only the noisy end is there. With ``inf`` grids
            that are even in the level begin at t = 1 on ``flow``.
        rho: exponent of ``karras`` (None: 7) and of ``polyexponential`` (None: 1).
        shift: factor on sigma / alpha of all levels: of flow t -> s t / (1 + (s - 1) t), as SD3 and
            Flux shift their times; :func:`ardiff.tables.grids.dynamic_shift` has it by resolution.

    Raises:
        ValueError: for an unknown kind, n < 1, ends that are not 0 < ratio_min < ratio_max, a rho
            or shift that is not positive, a shift past the end of the path, ``simple`` on a path
            without timesteps, or levels that coincide.

    Example:
        >>> from ardiff.paths import time_grid
        >>> time_grid("edm", 4, ratio_max=8.0, ratio_min=1.0).round(6).tolist()
        [8.0, 4.0, 2.0, 1.0]
        >>> time_grid("flow", 4, "simple", shift=3.0).round(4).tolist()
        [1.0, 0.9, 0.75, 0.5]
    """
    path = get_path(path)
    if kind not in GRIDS:
        raise ValueError(f"unknown time grid {kind!r}; known grids: {', '.join(GRIDS)}")
    if n < 1:
        raise ValueError(f"a time grid needs one level or more, got n = {n}")
    if not (np.isfinite(shift) and shift > 0):
        raise ValueError(f"shift must be positive and finite, got {shift:g}")
    if kind == "simple":
        levels = _simple(path, n)
    elif kind in ALIGNED:
        levels = path.level(np.clip(aligned(kind, n), path.ratio_min, path.ratio_max))
    else:
        levels = _spaced_levels(path, n, kind, ratio_max, ratio_min, rho)
    if shift != 1:
        ratios = shift * path.ratio(levels)
        if ratios[0] > path.ratio_max or ratios[-1] < path.ratio_min:
            raise ValueError(
                f"shift={shift:g} takes sigma / alpha to [{ratios[-1]:g}, {ratios[0]:g}], but path "
                f"{path.name} covers [{path.ratio_min:g}, {path.ratio_max:g}]: narrow the grid by "
                "ratio_max and ratio_min"
            )
        levels = path.level(ratios)
    if np.any(np.diff(levels) >= 0):
        raise ValueError(
            f"a {kind} time grid of {n} levels on path {path.name} has some twice: the path covers "
            f"sigma / alpha in [{path.ratio_min:g}, {path.ratio_max:g}]; ask for fewer levels or "
            "another grid"
        )
    return levels


def _simple(path: Path, n: int) -> np.ndarray:
    trained = path.training_levels()
    if trained is None:
        raise ValueError(
            f"a simple time grid takes every T/n-th training timestep, of which path {path.name} "
            "has none; use sgm-uniform"
        )
    count = len(trained)
    return trained[count - 1 - np.floor(np.arange(n) * (count / n)).astype(int)]


def _spaced_levels(path, n, kind, ratio_max, ratio_min, rho) -> np.ndarray:
    low = path.ratio_min if kind in OPEN else max(ratio_min, path.ratio_min)
    high = min(ratio_max, path.ratio_max)
    if not low < high or (low <= 0 and kind not in OPEN):
        raise ValueError(
            "a time grid needs 0 < ratio_min < ratio_max within the path's range "
            f"[{path.ratio_min:g}, {path.ratio_max:g}], got {ratio_min:g} and {ratio_max:g}"
        )
    if kind in OF_LEVEL:
        first, last = float(path.level(high)), float(path.level(low))
        if not np.isfinite(first):
            raise ValueError(f"path {path.name} needs a finite ratio_max, got {ratio_max}")
        return spaced(kind, n, first, last, rho)
    if not np.isfinite(high):
        raise ValueError(f"a {kind} time grid needs a finite ratio_max, got {ratio_max}")
    return path.level(spaced(kind, n, high, low, rho))
