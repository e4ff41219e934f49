r"""Solvers from a tableau: explicit exponential Runge-Kutta methods (Hochbruck & Ostermann 2010).

In y = x / alpha, with h the step in log(alpha / sigma) and D the data prediction, the ODE of the
path is dy/dh = D - y. A method with stages c_i and weights a_ij(z) and b_j(z), z = -h, is

    y_i = e^(-c_i h) y + h sum_(j<i) a_ij(-h) D_j,   D_i the prediction at y_i, c_i of the step on,
    y'  = e^(-h) y     + h sum_j b_j(-h) D_j.

It keeps to a prediction that does not change where sum_j a_ij = c_i phi_1(c_i z) and
sum_j b_j = phi_1(z), which is checked; phi_0(z) = e^z and phi_(k+1)(z) = (phi_k(z) - 1 / k!) / z.

With eta the diffusion's noise is added (SEEDS, Gonzalez et al. 2023): h becomes (1 + eta) h in the
formulas above, and the state at c_i has the noise of the Ornstein-Uhlenbeck process of the step up
to there, alpha_i s_i sqrt(1 - e^(-2 eta c_i h)), which the later stages carry on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..tables.paths import Path, check_prediction, get_path, transition
from ..tables.table import StepTable, TableBuilder
from ._levels import Levels, check_steps, grid_key, levels_of
from ._stages import MAX_STAGES, add_stages, below_noise

Entry = float | Callable[[float], float]


def phi(k: int, z: float) -> float:
    """phi_k(z), which is 1 / k! at 0.

    Example:
        >>> from ardiff.solvers import phi
        >>> phi(1, 0.0), round(phi(2, -1.0), 6)
        (1.0, 0.367879)
    """
    if abs(z) < 1:
        return sum(z**j / math.factorial(j + k) for j in range(20))
    found = math.exp(z)
    for j in range(k):
        found = (found - 1 / math.factorial(j)) / z
    return found


class Tableau:
    """A checked tableau; ``at(z)`` gives its numbers A `[s, s]`, b `[s]`."""

    def __init__(self, A: Sequence, b: Sequence, c: Sequence[float]) -> None:
        self._A, self._b, self.c = [list(row) for row in A], list(b), [float(x) for x in c]
        stages = len(self.c)
        if not 1 <= stages <= MAX_STAGES:
            raise ValueError(
                f"a tableau has 1 to {MAX_STAGES} stages, as many as the rows' three memories "
                f"serve, got {stages}"
            )
        if len(self._b) != stages or [len(row) for row in self._A] != [stages] * stages:
            raise ValueError(
                f"a tableau of {stages} stages needs A [{stages}, {stages}] and b [{stages}], got "
                f"rows of {[len(row) for row in self._A]} and {len(self._b)}"
            )
        if self.c[0] != 0 or not all(0 <= x <= 1 for x in self.c):
            raise ValueError(f"stages must begin with c = 0 and lie in [0, 1], got {self.c}")
        for z in (-1e-3, -0.7, -5.0):
            self._check(z)

    def _check(self, z: float) -> None:
        A, b = self.at(z)
        if np.triu(A).any():
            i, j = np.argwhere(np.triu(A))[0]
            raise ValueError(
                f"A must be strictly lower triangular, so that no stage needs a later one: "
                f"A[{i}][{j}] is {A[i, j]:g} at z = {z:g}"
            )
        sums = [(f"row {i} of A", A[i].sum(), x * phi(1, x * z)) for i, x in enumerate(self.c)]
        for what, found, wanted in [*sums, ("b", b.sum(), phi(1, z))]:
            if not abs(found - wanted) <= 1e-9:
                raise ValueError(
                    f"{what} must sum to c phi_1(c z), which is {wanted:.9g} at z = {z:g}, with "
                    f"c = 1 for b; got {found:.9g}. Tableaux of classical methods do not: see phi"
                )

    def at(self, z: float) -> tuple[np.ndarray, np.ndarray]:
        def number(entry: Entry) -> float:
            return float(entry(z) if callable(entry) else entry)

        return np.array([[number(e) for e in row] for row in self._A]), np.array(
            [number(e) for e in self._b]
        )


def tableau_table(
    name: str,
    tableau: Tableau,
    path: Path,
    prediction: str,
    levels: Levels,
    steps: int,
    denoise_last: bool,
    eta: float = 0.0,
) -> StepTable:
    """As many steps, of a call per stage, as fit, then the data prediction."""
    stages = len(tableau.c)
    count = (steps - int(denoise_last)) // stages
    if count < 1:
        raise ValueError(
            f"{name} makes {stages} model calls per step: it needs steps >= "
            f"{stages + int(denoise_last)}, got steps={steps}"
        )
    grid, builder = levels(count + 1), TableBuilder(path, prediction, name)
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        add_step(builder, tableau, a, b, eta)
    return builder.finish(grid[-1] if denoise_last else None)


def add_step(builder: TableBuilder, tableau: Tableau, a: float, b: float, eta: float) -> None:
    """The rows of the step from level `a` to `b`."""
    path, c = builder.path, [*tableau.c, 1.0]
    begin = below_noise(path, a)
    h = transition(path, begin, b).h
    whole = (1 + eta) * h
    ratio = float(path.ratio(begin))
    at = {0.0: begin, 1.0: b}
    levels = [at[x] if x in at else float(path.level(ratio * math.exp(-x * h))) for x in c]
    A, weights = tableau.at(-whole)
    rows = zip(c[1:], [*A[1:], weights], strict=True)
    states = [np.array([math.exp(-x * whole), *(whole * row)]) for x, row in rows]
    fresh = -np.expm1(-2 * eta * h * np.diff(c)) if eta else np.zeros(len(tableau.c))
    sigma = [float(path.sigma(level)) for level in levels[1:]]
    scales = [float(path.alpha(level)) for level in levels]
    add_stages(builder, [a, *levels[1:-1]], scales, states, sigma * np.sqrt(fresh))


def from_tableau(
    A: Sequence[Sequence[Entry]], b: Sequence[Entry], c: Sequence[float]
) -> Callable[..., StepTable]:
    """A solver from a tableau of an explicit exponential Runge-Kutta method.

    Args:
        A: s rows of s entries, strictly lower triangular. An entry is a number, or a function of
            z = -h, such as ``lambda z: 0.5 * phi(1, 0.5 * z)`` (:func:`ardiff.solvers.phi`).
        b: s entries, the weights of the predictions in the step.
        c: s numbers in [0, 1], 0 first: where in the step each stage lies, in log(alpha / sigma).

    Returns:
        A function ``(path=, prediction=, steps=, grid=, ratio_max=, ratio_min=, rho=, shift=,
        denoise_last=)`` that makes the StepTable, its arguments as :func:`ardiff.solver` takes
        them. A step makes s model calls and adds no noise.

    Raises:
        ValueError: other than 1 to 4 stages, shapes that do not fit, a stage that needs a later
            one, or sums that are not c_i phi_1(c_i z) and phi_1(z).

    Example:
        Exponential midpoint, of second order:

        >>> from ardiff.solvers import from_tableau, phi
        >>> midpoint = from_tableau(
        ...     [[0, 0], [lambda z: phi(1, z / 2) / 2, 0]], [0, lambda z: phi(1, z)], [0, 0.5]
        ... )
        >>> table = midpoint(path="flow", prediction="flow", steps=9)
        >>> table.calls, table.memories
        (9, 1)
    """
    tableau = Tableau(A, b, c)

    def make(
        *, path: str | Path, prediction: str, steps: int, denoise_last: bool = True, **grid
    ) -> StepTable:
        path = get_path(path)
        steps = check_steps(steps)
        levels = levels_of("tableau", path, steps, grid_key(**grid))
        prediction = check_prediction(prediction)
        return tableau_table("tableau", tableau, path, prediction, levels, steps, denoise_last)

    return make
