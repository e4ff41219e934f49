"""What the theory says of a sampler: stages, steps and expected calls.

Huang et al. 2024 ("Reverse Transition Kernel") for RTK-ULD and RTK-MALA, with the rates of DDPM
(Chen et al. 2022) and DPUM (Chen et al. 2024) that it compares with; Huang et al. 2025 ("Capturing
Conditional Dependence via Auto-regressive Diffusion Models") for K patches. All of it is on the
Ornstein-Uhlenbeck path, x_t = e^-t x0 + sqrt(1 - e^-2t) eps, for data of d elements whose scores
are L-Lipschitz at every t, and for an error eps in total variation.

Some figures are exact: the stage eta = log(1 + 1 / (2 L)) / 2, at which the kernel's quadratic part
has curvature e^-2eta / (1 - e^-2eta) = 2 L, so that a kernel's curvature is in [L, 3 L]; the number
of stages, a formula of the theorem; gamma = 2 sqrt(L), which damps critically the lowest curvature
(the theorem leaves gamma open). The others are rates, O(.) with a constant that no source gives.
They are evaluated with that constant as 1: what they say is how a figure grows with d, L and eps,
not what it is.

Another path is the same process in another clock and scale: sigma / alpha = sqrt(e^2t - 1) gives a
level its t, and x / sqrt(alpha^2 + sigma^2) is the state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..tables.paths import OUPath, Path, get_path
from .checks import LIMIT, check_counts, check_positive, is_number

CONDITION = 3.0  # of every reverse kernel of the theory: curvature in [L, 3 L]
EXACT = ("eta", "stages of the RTK solvers", "curvature", "condition number", "gamma")
RATES = ("tau", "inner", "calls", "eta and stages of ddpm", "all terms of the KL bound")


@dataclass(frozen=True)
class Setting:
    """What the theory's figures depend on.

    Attributes:
        dim: d, elements of a whole sample, over all its patches.
        lipschitz: L, the Lipschitz constant of the score on the OU path, for data of unit scale.
        accuracy: eps, the error in total variation that is wanted, in (0, 1).
        patches: K; the theory needs no more than that their dimensions add up to d.
        second_moment: m0 = E |x0|^2; None is d, that of data of unit variance.
        score_error: eps_score, the root mean square error of the score.
        gradient: |grad f(0)|^2 of the data, 0 where they are centred.

    Raises:
        ValueError: a number out of range, which is named.
    """

    dim: int
    lipschitz: float
    accuracy: float
    patches: int = 1
    second_moment: float | None = None
    score_error: float = 0.0
    gradient: float = 0.0

    def __post_init__(self) -> None:
        check_counts(dim=self.dim, patches=self.patches)
        if self.patches > self.dim:
            raise ValueError(
                f"patches must be at most dim, an element each: got {self.patches} of {self.dim}"
            )
        check_positive(dim=self.dim, lipschitz=self.lipschitz)
        if not is_number(self.accuracy) or not 0 < self.accuracy < 1:
            raise ValueError(
                "accuracy is an error in total variation and must be above 0 and below 1, got "
                f"{self.accuracy!r}"
            )
        check_positive(accuracy=self.accuracy)
        if self.second_moment is None:
            object.__setattr__(self, "second_moment", float(self.dim))
        for name in ("second_moment", "score_error", "gradient"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= LIMIT:
                raise ValueError(
                    f"{name} must be 0 or more and finite, {LIMIT:g} at most, got {value!r}"
                )


@dataclass(frozen=True)
class Method:
    """The theory's figures for one solver; None is what its source does not give.

    Attributes:
        name: `ddpm`, `dpum`, `rtk-uld` or `rtk-mala`; DPUM is no solver of this package.
        rate: of `calls`, as the source writes it.
        eta, stages: of the outer loop, in OU time.
        tau, inner, gamma: of the inner steps of a stage, in the units of the state.
        calls: the rate with constant 1.
        patch_calls: the same for K patches one after another, K times as many.
        patches_from_source: whether the source states that rate, or it is only K times the other.
    """

    name: str
    rate: str
    eta: float | None
    stages: int | None
    tau: float | None
    inner: float | None
    gamma: float | None
    calls: float
    patch_calls: float
    patches_from_source: bool


def ou_time(path: str | Path, level: float) -> float:
    """The OU time t of a level: sigma / alpha = sqrt(e^2t - 1).

    Raises:
        ValueError: a level that the path does not have, or one at alpha = 0, where t is infinite.

    Example:
        >>> from ardiff.planning.theory import ou_time
        >>> round(ou_time("flow", 0.5), 6), round(ou_time("ou", 1.25), 6)
        (0.346574, 1.25)
    """
    path = get_path(path)
    ratio = float(path.ratio(level))
    if not math.isfinite(ratio):
        raise ValueError(
            f"path {path.name}: level {level:g} has alpha = 0, an infinite OU time; take one below"
        )
    return float(OUPath().level(ratio))


def stage_size(lipschitz: float) -> float:
    """eta = log(1 + 1 / (2 L)) / 2, the theory's stage in OU time.

    Raises:
        ValueError: L that is not positive and finite.

    Example:
        >>> from ardiff.planning.theory import stage_size
        >>> round(stage_size(1.0), 6)
        0.202733
    """
    check_positive(lipschitz=lipschitz)
    return 0.5 * math.log1p(1 / (2 * lipschitz))


def kernel_curvature(lipschitz: float, eta: float) -> tuple[float, float]:
    """(low, high) of a reverse kernel over eta: e^-2eta / (1 - e^-2eta) less and plus L.

    `low` is negative where eta is too long for the kernel to be log-concave.
    """
    quadratic = 1 / math.expm1(2 * eta)
    return quadratic - lipschitz, quadratic + lipschitz


def theory_levels(
    path: str | Path, lipschitz: float, *, ratio_max: float = 40.0, ratio_min: float = 0.002
) -> np.ndarray:
    """The levels of the theory's stages on a path, float64, noisiest first: every eta of OU time.

    They can be the `grid` of an `rtk-*` solver; the last stage is the shorter, and ends at
    `ratio_min`.

    Args:
        path: a name or a path, see :func:`ardiff.get_path`.
        lipschitz: L.
        ratio_max, ratio_min: sigma / alpha at the ends, clipped to the range of the path.

    Raises:
        ValueError: L that is not positive, or ends out of order.

    Example:
        >>> from ardiff.planning.theory import theory_levels
        >>> theory_levels("ou", 1.0, ratio_max=1.0, ratio_min=0.5).round(4).tolist()
        [0.3466, 0.1438, 0.1116]
    """
    path, eta = get_path(path), stage_size(lipschitz)
    high, low = min(ratio_max, path.ratio_max), max(ratio_min, path.ratio_min)
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"the theory's levels need 0 < ratio_min < ratio_max, finite, on path {path.name}, got "
            f"{low:g} and {high:g}"
        )
    ou = OUPath()
    first, last = float(ou.level(high)), float(ou.level(low))
    count = math.ceil((first - last) / eta - 1e-9)
    times = np.append(first - eta * np.arange(count), last)
    return path.level(np.clip(ou.ratio(times), path.ratio_min, path.ratio_max))


def methods(setting: Setting, horizon: float) -> list[Method]:
    """The figures of DDPM, DPUM, RTK-ULD and RTK-MALA.

    The log of tau and S of RTK-ULD is that of its theorem, with |x|^2 = d at the noisiest level,
    and 1 where it would be less. RTK-MALA's S is what is left of its calls for each stage; its
    source's rates hide more (rho, Z), taken as 1 here, and give no tau.

    Args:
        horizon: T, the OU time of the noisiest level, over which DDPM makes its steps.

    Raises:
        ValueError: a horizon that is not positive and finite.

    Example:
        >>> from ardiff.planning.theory import Setting, methods
        >>> for m in methods(Setting(dim=100, lipschitz=1.0, accuracy=0.1), horizon=3.7):
        ...     print(m.name, m.stages, round(m.calls))
        ddpm 10000 10000
        dpum None 100
        rtk-uld 61 100
        rtk-mala 40 69078
    """
    check_horizon(horizon)
    d, L, eps, K = setting.dim, setting.lipschitz, setting.accuracy, setting.patches
    eta, gamma = stage_size(L), 2 * math.sqrt(L)
    first = (1 + L**2) * d + setting.gradient
    of_mala = _count(4 * L * math.log(first / eps**2))
    of_uld = _count(4 * L * math.log(first**2 / eps**2))
    log = max(1.0, math.log(L * (2 * d + setting.second_moment) / eps**2))
    ddpm, uld = L**2 * d / eps**2, L**2 * math.sqrt(d) / eps
    mala = L**4 * d**2 * math.log(d / eps)

    def method(name, rate, calls, *, source, **figures) -> Method:
        given = dict.fromkeys(("eta", "stages", "tau", "inner", "gamma")) | figures
        return Method(name, rate, **given, calls=calls, patch_calls=K * calls,
                      patches_from_source=source)  # fmt: skip

    return [
        method(
            "ddpm", "L^2 d / eps^2", ddpm, source=True, eta=horizon / _count(ddpm),
            stages=_count(ddpm),
        ),
        method("dpum", "L^2 d^1/2 / eps", uld, source=False),
        method(
            "rtk-uld", "L^2 d^1/2 / eps", uld, source=True, eta=eta, stages=of_uld, gamma=gamma,
            tau=eps / math.sqrt(d * L * log), inner=math.sqrt(d * log) / eps,
        ),
        method(
            "rtk-mala", "L^4 d^2 log(d / eps)", mala, source=False, eta=eta, stages=of_mala,
            inner=mala / of_mala,
        ),
    ]  # fmt: skip


def _count(stages: float) -> int:
    return max(1, math.ceil(stages * (1 - 1e-12)))  # 1e4 that is rounded up stays 1e4


def check_horizon(horizon: float) -> None:
    """ValueError unless an OU time is positive and finite."""
    if not 0 < horizon < math.inf:
        raise ValueError(f"horizon, an OU time, must be positive and finite, got {horizon}")
