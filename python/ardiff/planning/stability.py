"""Whether an inner step of an `rtk-*` solver is stable: the spectral radius of its matrix.

On a Gaussian kernel of curvature l the force is G = l z, and a step is linear: its mean moves by

    z' = (1 - z_g l) z + z_v v,    v' = v_v v - v_g l z,

with the very coefficients that the solver's rows have. The law settles where the spectral radius
is below 1, and grows without bound where it is above. The leapfrog keeps volume: it is stable where
its radius is 1, and it settles by the fresh velocities.

Trace and determinant of the matrix are linear in l, and radius <= s where s |trace| <= s^2 + det
and |det| <= s^2 (Jury's conditions). So the curvatures at which the radius is at most s are an
interval, and the largest radius over a range is that at one of its ends.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..solvers import rtk_baoab, rtk_obabo, rtk_ubu, rtk_uld
from ..solvers._rtk.adjusted import leapfrog_move
from .checks import is_number

_MOVES: dict[str, Callable[[float, float], dict[str, float]]] = {
    "rtk-uld": rtk_uld.move,
    "rtk-baoab": lambda gamma, tau: rtk_baoab.move(gamma, tau, first=False),
    "rtk-obabo": lambda gamma, tau: rtk_obabo.move(gamma, tau, first=False),
    "rtk-ubu": lambda gamma, tau: rtk_ubu.move(gamma, tau, last=False),
    "rtk-hmc": lambda _, tau: leapfrog_move(tau, tau),
}
_OVERDAMPED = ("rtk-ula", "rtk-mala")
CHECKED = (*_OVERDAMPED, *_MOVES)
# unadjusted, with a friction gamma
KINETIC = ("rtk-uld", "rtk-baoab", "rtk-obabo", "rtk-ubu")
_ROUNDING = 1e-7  # of a radius of 1, the square root of that of a double eigenvalue's matrix


@dataclass(frozen=True)
class StepCheck:
    """What the matrix of a step says on a range of curvatures.

    Attributes:
        solver: one of :data:`CHECKED`.
        low, high: the curvatures, in the units in which tau and gamma are: those of the state, or
            of a stage's envelope.
        tau, gamma: the step and the friction; gamma is None for a solver without one.
        radius: the largest spectral radius on the range.
        stable: whether the step settles on the whole range.
        largest_tau: the step up to which it does, with this gamma; 0 where `low` is not positive.
    """

    solver: str
    low: float
    high: float
    tau: float
    gamma: float | None
    radius: float
    stable: bool
    largest_tau: float


def step_matrix(
    solver: str, curvature: float, tau: float, gamma: float | None = None
) -> np.ndarray:
    """The matrix of one inner step on a Gaussian kernel, float64 `[2, 2]` on (z, v), of
    ``rtk-ula`` and of the proposal of ``rtk-mala`` `[1, 1]`.

    Between two steps of a stage: merged where neighbours are. tau, gamma and `curvature` (1 over
    the square of a length) are in one system of units, time being a length, of ``rtk-ula`` and
    ``rtk-mala`` its square.

    Raises:
        ValueError: another solver, tau or gamma that is not positive, or no gamma where one is
            needed.

    Example:
        >>> from ardiff.planning.stability import step_matrix
        >>> step_matrix("rtk-ula", curvature=2.0, tau=0.25).tolist()
        [[0.5]]
        >>> step_matrix("rtk-uld", 2.0, tau=0.3, gamma=5.0).round(4).tolist()
        [[0.9421, 0.1554], [-0.3107, 0.2231]]
    """
    _check(solver, tau, gamma)
    if solver in _OVERDAMPED:
        return np.array([[1 - tau * curvature]])
    m = _MOVES[solver](gamma, tau)
    return np.array([[1 - m["z_g"] * curvature, m["z_v"]], [-m["v_g"] * curvature, m["v_v"]]])


def spectral_radius(matrices: np.ndarray) -> float:
    """The largest over n curvatures of that of a step; `matrices`, float64 `[rows, n, k, k]`, are
    of rows one after another, whose product has it to the power `rows`."""
    whole = functools.reduce(lambda before, row: row @ before, matrices)
    return float(np.abs(np.linalg.eigvals(whole)).max() ** (1 / len(matrices)))


def check_step(
    solver: str, low: float, high: float, *, tau: float, gamma: float | None = None
) -> StepCheck:
    """The spectral radius of a step on curvatures from `low` to `high`, and the largest stable tau.

    Raises:
        ValueError: as :func:`step_matrix`, or not -inf < low <= high < inf, high > 0.

    Example:
        >>> from ardiff.planning.stability import check_step
        >>> found = check_step("rtk-ula", 1.0, 4.0, tau=0.25)
        >>> round(found.radius, 12), found.stable, round(found.largest_tau, 9)
        (0.75, True, 0.5)
    """
    _check(solver, tau, gamma)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high and high > 0):
        raise ValueError(
            f"expected finite curvatures low <= high with high above 0, got {low} and {high}"
        )
    friction = gamma if solver in KINETIC else None
    return StepCheck(
        solver, float(low), float(high), float(tau), friction,
        radius=_radius(solver, low, high, tau, gamma),
        stable=_stable(solver, low, high, tau, gamma),
        largest_tau=_largest_tau(solver, low, high, gamma),
    )  # fmt: skip


def _check(solver: str, tau: float, gamma: float | None) -> None:
    if solver not in CHECKED:
        raise ValueError(f"no step matrix of {solver!r}; known: {', '.join(CHECKED)}")
    needed = {"tau": tau} | ({"gamma": gamma} if solver in KINETIC else {})
    for name, value in needed.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"{solver}: {name} must be positive and finite, got {value}")


def _radius(solver: str, low: float, high: float, tau: float, gamma: float | None) -> float:
    ends = [step_matrix(solver, curvature, tau, gamma) for curvature in (low, high)]
    return spectral_radius(np.stack(ends)[None])


def _stable(solver: str, low: float, high: float, tau: float, gamma: float | None) -> bool:
    """At curvature 0 or below nothing pulls the state back, and no step settles."""
    if low <= 0:
        return False
    if solver in _OVERDAMPED:
        return tau * high < 2  # as radius < 1, without the rounding of a small step
    radius = _radius(solver, low, high, tau, gamma)
    return radius <= 1 + _ROUNDING if solver == "rtk-hmc" else radius < 1


def _largest_tau(solver: str, low: float, high: float, gamma: float | None) -> float:
    """By bisection between a step that is stable and one of twice its length that is not."""
    if low <= 0:
        return 0.0
    tau = 1 / high if solver in _OVERDAMPED else high**-0.5
    while not _stable(solver, low, high, tau, gamma):
        tau /= 2
    while _stable(solver, low, high, 2 * tau, gamma):
        tau *= 2
    good, bad = tau, 2 * tau
    while bad - good > 1e-12 * good:
        middle = (good + bad) / 2
        good, bad = (middle, bad) if _stable(solver, low, high, middle, gamma) else (good, middle)
    return good
