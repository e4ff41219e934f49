"""The law of a table on Gaussian data, exactly: moments carried from row to row in float64.

With data N(mean, diag(variances)) a perfect model is affine in the state, and so is every row but
an accept row: all that a run carries is Gaussian. Along one axis of the data that is the vector

    s = (1, x, v, memory, memory2, memory3, out),

and a row makes of it s' = M s + B n, n standard normals, where the model's call is a part of M. So
E[s s^T] goes to M E[s s^T] M^T + B B^T: a sampler's error is known without a sample. The rows are
read as :mod:`ardiff.tables.table` defines them; no solver has a formula of its own here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..tables.columns import COLUMNS
from ..tables.predictions import output_from_data
from ..tables.table import StepTable

ONE, X, V, MEMORY, MEMORY2, MEMORY3, OUT = range(7)
SIZE = 7


class Law(NamedTuple):
    """A Gaussian with independent coordinates.

    Attributes:
        mean, variance: float64 `[D]`.
    """

    mean: np.ndarray
    variance: np.ndarray

    def kl(self, other: Law) -> np.ndarray:
        """KL(self || other) along each coordinate, float64 `[D]`, nats; the whole is their sum."""
        ratio = self.variance / other.variance
        shift = (self.mean - other.mean) ** 2 / other.variance
        return 0.5 * (ratio - 1 - np.log(ratio) + shift)

    def w2(self, other: Law) -> np.ndarray:
        """Squared Wasserstein-2 distance along each coordinate; the whole is their sum."""
        spread = np.sqrt(self.variance) - np.sqrt(other.variance)
        return spread**2 + (self.mean - other.mean) ** 2


def noised(alpha: float, sigma: float, variances: np.ndarray, mean: np.ndarray | float = 0) -> Law:
    """The law of alpha x0 + sigma eps for data N(mean, diag(variances))."""
    variances = np.asarray(variances, np.float64)
    return Law(np.broadcast_to(alpha * np.asarray(mean), variances.shape) + 0.0,
               alpha**2 * variances + sigma**2)  # fmt: skip


def law_of(table: StepTable, variances: np.ndarray, mean: np.ndarray | float = 0.0) -> Law:
    """The exact law of the samples that `table` makes with the exact model of Gaussian data.

    Args:
        table: of rows without accept, on a Path of this package.
        variances: `[D]` of the data along each axis, not negative.
        mean: `[D]`, or a number for all.

    Raises:
        ValueError: accept rows, whose law is not Gaussian; a table that no Path knows; variances
            that are negative, or not a vector.

    Example:
        >>> import ardiff, numpy as np
        >>> from ardiff.study.gaussian_law import law_of
        >>> table = ardiff.solver("ddpm", path="ou", prediction="score", steps=64)
        >>> law_of(table, np.array([1.0, 0.25])).variance.round(3).tolist()
        [0.858, 0.215]
    """
    variances = np.asarray(variances, np.float64)
    if variances.ndim != 1 or not np.all(variances >= 0):
        raise ValueError(f"variances must be a vector of numbers of 0 or more, got {variances}")
    if "accept" in table.op:
        raise ValueError(
            f"{table.solver} accepts or rejects, so that its law is not Gaussian: measure samples"
        )
    if table.alpha is None:
        raise ValueError(f"the path {table.path} is none of this package's: the model is not known")
    moves, noise = _moves(table)
    calls = _calls(table, variances, np.broadcast_to(mean, variances.shape))
    moments = np.zeros((len(variances), SIZE, SIZE))
    moments[:, ONE, ONE] = 1
    moments[:, X, X] = table.init_scale**2
    for move, spread, call in zip(moves, noise, calls, strict=True):
        whole = move if call is None else move @ call
        moments = whole @ moments @ whole.swapaxes(-1, -2) + spread
    mean = moments[:, ONE, X]
    return Law(mean, moments[:, X, X] - mean**2)


def _calls(table: StepTable, variances: np.ndarray, mean: np.ndarray) -> list[np.ndarray | None]:
    """For each row with a call the map `[D, 7, 7]` that makes the output of the state."""
    found: list[np.ndarray | None] = []
    for called, alpha, sigma in zip(table.calls_model, table.alpha, table.sigma, strict=True):
        if not called:
            found.append(None)
            continue
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        call = np.tile(np.eye(SIZE), (len(variances), 1, 1))
        call[:, OUT, OUT] = 0
        call[:, OUT, X] = output_from_data(table.prediction, alpha, sigma, 1.0, gain)
        x0 = mean - gain * alpha * mean
        call[:, OUT, ONE] = output_from_data(table.prediction, alpha, sigma, 0.0, x0)
        found.append(call)
    return found


def _moves(table: StepTable) -> tuple[np.ndarray, np.ndarray]:
    """The rows' maps of s `[T, 7, 7]`, and the covariances of the noise that they add."""
    moves, noise = np.zeros((2, len(table), SIZE, SIZE))
    moves[:] = np.eye(SIZE)
    for op, fill in (("diffusion", _diffusion), ("uld", _uld)):
        rows = np.array([name == op for name in table.op])
        columns = dict(zip(COLUMNS[op], table.coefficients[rows].T, strict=False))
        for name in [name for name in columns if name.endswith("_lo")]:
            columns[name.removesuffix("_lo")] = columns[name.removesuffix("_lo")] + columns[name]
        moves[rows], noise[rows] = fill(columns, moves[rows], noise[rows], table.memories)
    return moves, noise


def _diffusion(c: dict, moves: np.ndarray, noise: np.ndarray, memories: int) -> tuple:
    origin = MEMORY2 if memories > 1 else MEMORY
    on_x0, kept_x0 = c["x_0"] + c["x_u"], c["m_0"] + c["m_u"]
    moves[:, X, X] = c["x_x"] + on_x0 * c["p_x"] + c["x_d"]
    moves[:, X, OUT] = on_x0 * c["p_o"]
    moves[:, X, MEMORY] = c["x_m"]
    moves[:, X, origin] -= c["x_d"]
    moves[:, X, MEMORY3] = c["x_3"]
    noise[:, X, X] = c["x_n"] ** 2
    changes = (c["m_x"] != 0) | (kept_x0 != 0)
    moves[changes, MEMORY, MEMORY] = 0
    moves[:, MEMORY, X] = c["m_x"] + kept_x0 * c["p_x"]
    moves[:, MEMORY, OUT] = kept_x0 * c["p_o"]
    changes = (c["s_x"] != 0) | (c["s_m"] != 0) | (c["s_2"] != 0)
    moves[changes, MEMORY2, MEMORY2] = c["s_2"][changes]
    moves[:, MEMORY2, X], moves[:, MEMORY2, MEMORY] = c["s_x"], c["s_m"]
    moves[c["t_2"] != 0, MEMORY3, MEMORY3] = 0
    moves[:, MEMORY3, MEMORY2] = c["t_2"]
    return moves, noise


def _uld(c: dict, moves: np.ndarray, noise: np.ndarray, memories: int) -> tuple:
    begins = c["a_z"] != 0  # such a row has no distance from the anchor
    z_d, v_d = np.where(begins, 0, c["z_d"]), np.where(begins, 0, c["v_d"])
    moves[:, X, X], moves[:, X, MEMORY] = c["z_z"] + z_d, -z_d
    moves[:, V, X], moves[:, V, MEMORY] = c["v_z"] + v_d, -v_d
    moves[:, X, V], moves[:, V, V] = c["z_v"], c["v_v"]
    moves[:, X, OUT], moves[:, V, OUT] = c["z_o"], c["v_o"]
    moves[begins, MEMORY, MEMORY] = 0
    moves[:, MEMORY, X] = c["a_z"]
    noise[:, X, X] = c["z_1"] ** 2 + c["z_2"] ** 2
    noise[:, V, V] = c["v_1"] ** 2
    noise[:, X, V] = noise[:, V, X] = c["z_1"] * c["v_1"]
    return moves, noise
