"""The curvature of a model's log-density at each level, by differences of its score.

At a level b let f_b = -log p_b. Its Hessian is applied to a direction u by two model calls,

    H u = -(score(x + h u) - score(x - h u)) / (2 h),   |u| = 1,

so that no gradient of the model is needed. Power iteration repeats this, u <- H u / |H u|. Its
iterates span a Krylov space, in which the largest and the smallest Rayleigh quotient (Lanczos
1950) are nearer to the ends of the spectrum than that of the last iterate, for the same calls. The
smallest is a hint alone. The states x have the law of the level: a pilot run passes through all.

h is sigma (e max(|x| / sigma, d^1/2))^1/3, e the rounding of the model's output, 1.2e-7 in
float32. The score changes over distances of sigma or more, so that the difference is off by about
(h / sigma)^2 of H, and rounding by e |x| / h; this h makes the two alike, 1e-4 to 2e-2 of H. What
rounding adds has no direction, so that a Rayleigh quotient has only d^-1/2 of it.

The exact score is a gradient and H symmetric, with eigenvalues of 1 / sigma^2 at most. A learned
or a guided score need not be a gradient. Power iteration then runs on a map that is not symmetric;
the Rayleigh quotients are those of its symmetric part, and `asymmetry` says how large the rest is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ardiff_kernels import ops

from ..guide import Guidance
from ..loop.checks import check_signature
from ..noise import Purpose, counter_word, make_key, make_stream
from ..tables.paths import Path, get_path, time_grid
from .checks import check_counts
from .model_score import Score, pilot_states

FIRST_ID = 2**43 - 2**14  # of the pilot's samples, far from the ids that samples begin with
Product = Callable[[Tensor], Tensor]  # float64 [B, d] -> [B, d], linear


class Krylov(NamedTuple):
    """What m products of a linear map H with directions of each sample tell of it.

    Attributes:
        basis: float64 `[B, m, d]`, orthonormal, the first along the start.
        image: float64 `[B, m, d]`, H times each.
    """

    basis: Tensor
    image: Tensor

    def matrix(self) -> Tensor:
        """H on the basis, float64 `[B, m, m]`."""
        return self.basis @ self.image.mT

    def ends(self) -> tuple[Tensor, Tensor]:
        """The largest and the smallest Rayleigh quotient in the span, float64 `[B]` each."""
        matrix = self.matrix()
        values = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)
        return values[:, -1], values[:, 0]

    def asymmetry(self) -> Tensor:
        """|A - A^T| / |A + A^T| of the matrix, float64 `[B]`: 0 for a gradient's."""
        matrix = self.matrix()
        norm = torch.linalg.matrix_norm
        return norm(matrix - matrix.mT) / norm(matrix + matrix.mT).clamp(min=1e-300)

    def powers(self, start: Tensor, count: int) -> list[Tensor]:
        """start, H start, .., H^count start, float64 `[B, d]` each, for the start it was made from.

        `count` is m at most: H^k start lies in the first k + 1 of the basis.
        """
        found = [start]
        for _ in range(count):
            weights = torch.einsum("bmd,bd->bm", self.basis, found[-1])
            found.append(torch.einsum("bmd,bm->bd", self.image, weights))
        return found


def krylov(product: Product, start: Tensor, count: int) -> Krylov:
    """Arnoldi's iteration from `start`, float64 `[B, d]`: min(count, d) products (Arnoldi 1951).

    It is Lanczos's where H is symmetric, each direction made orthogonal to all before it.
    """
    basis, image, new = [], [], start
    places = torch.arange(1, start.shape[1] + 1, dtype=start.dtype, device=start.device)
    for k in range(min(count, start.shape[1])):
        for _ in range(2):  # once leaves what cancellation has left
            for old in basis:
                new = new - (old * new).sum(1, keepdim=True) * old
            new = new / new.norm(dim=1, keepdim=True).clamp(min=1e-300)
        basis.append(new)
        image.append(product(new))
        # where H has no more directions to show, any will do
        any_other = torch.cos((k + 1) * places)
        new = image[-1] + 1e-9 * image[-1].norm(dim=1, keepdim=True) * any_other
    return Krylov(torch.stack(basis, 1), torch.stack(image, 1))


def hessian(score: Score, x: Tensor, level: float, sigma: float) -> Product:
    """H of f at the states x, float32 `[B, d]`: products by central differences, two calls each."""
    at = score.at(level)

    def product(u: Tensor) -> Tensor:
        h = step_length(score, x, sigma)
        ahead, behind = ((x.double() + sign * h * u).float() for sign in (1, -1))
        return -(at(ahead) - at(behind)) / (2 * h)

    return product


def step_length(score: Score, x: Tensor, sigma: float) -> Tensor:
    """h of the differences at the states x, float64 `[B, 1]`."""
    size = (x.double().norm(dim=1, keepdim=True) / sigma).clamp(min=math.sqrt(x.shape[1]))
    return sigma * (score.eps * size) ** (1 / 3)


def check_model(model_fn: Any, dim: int | Sequence[int], samples: int) -> tuple[int, ...]:
    """(samples, ...), the shape in which the model takes its states.

    Raises:
        TypeError: a model that cannot be called as ``model_fn(x, level, condition)``.
        ValueError: sizes or a number of samples that are not integers of 1 or more.
    """
    if not callable(model_fn) and not hasattr(model_fn, "hoist"):
        raise TypeError(f"model_fn must be callable or have hoist, got {type(model_fn).__name__}")
    if not hasattr(model_fn, "hoist"):
        check_signature("model_fn", model_fn, "model_fn(x, level, condition)")
    sizes = tuple(dim) if isinstance(dim, Sequence) and not isinstance(dim, str) else (dim,)
    if not sizes:
        raise ValueError(f"dim must be an integer, or one or more of them, got {dim!r}")
    check_counts(samples=samples)
    for size in sizes:
        check_counts(dim=size)
    return (samples, *sizes)


def check_device(device: torch.device | str) -> None:
    """ValueError for a device that torch does not know or that holds no numbers here."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        said = str(error).splitlines()[0][:80]
        raise ValueError(
            f"device must be one that torch has here, got {device!r}: {said}"
        ) from None


def normals(key: Tensor, stream: Tensor, dim: int, draw: int) -> Tensor:
    """Addressed directions, float64 `[B, d]`."""
    counter = counter_word(draw, Purpose.INITIAL_STATE)
    return ops.philox_normal(key, counter, stream, dim).double()


@dataclass(frozen=True)
class Curvature:
    """The ends of the Hessian's spectrum at each level, over the samples of a pilot.

    Attributes:
        levels: float64 `[T]`, noisiest first; alpha, sigma: of the path there.
        highest: float64 `[T, B]`, the largest Rayleigh quotient of each sample, in 1 / x^2: a lower
            bound of the largest eigenvalue that the iterations approach.
        lowest: float64 `[T, B]`, the smallest; below 0 where log p is not concave.
        asymmetry: float64 `[T, B]`, 0 for a gradient, 1 where nothing of H is symmetric.
        resolution: float64 `[T]`, what rounding and the length of the differences may make of an
            eigenvalue that is 0, (h / sigma)^2 / sigma^2: at small sigma more than the curvature of
            smooth data, most of all for `sample` models.
        calls: model calls, those of the pilot among them.
        states: at which the model was evaluated, over all calls.

    Example:
        See :func:`curvature`.
    """

    levels: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray
    asymmetry: np.ndarray
    resolution: np.ndarray
    calls: int
    states: int

    @property
    def largest(self) -> np.ndarray:
        """L of each level, float64 `[T]`: the largest over the samples."""
        return self.highest.max(1)

    @property
    def lipschitz(self) -> float:
        """L of the OU form of each level, y = x / (alpha^2 + sigma^2)^1/2, the largest over all
        levels: the constant of the theory, which has data of unit scale."""
        return float((self.largest * (self.alpha**2 + self.sigma**2)).max())

    def __str__(self) -> str:
        """A line for each level."""
        head = f"{'level':>10}{'sigma':>10}{'L':>11}{'median':>11}{'lowest':>11}{'asym.':>7}"
        columns = (
            self.levels, self.sigma, self.largest, np.median(self.highest, 1), self.lowest.min(1),
            np.median(self.asymmetry, 1),
        )  # fmt: skip
        lines = [
            f"{level:10.4g}{sigma:10.4g}{top:11.4g}{median:11.4g}{low:11.4g}{asymmetry:7.3f}"
            for level, sigma, top, median, low, asymmetry in zip(*columns, strict=True)
        ]
        return "\n".join([head, *lines, f"{self.calls} model calls at {self.states} states in all"])

    def as_dict(self) -> dict[str, Any]:
        """What `str` shows, for JSON."""
        return {
            "levels": self.levels.tolist(),
            "sigma": self.sigma.tolist(),
            "largest": self.largest.tolist(),
            "median": np.median(self.highest, 1).tolist(),
            "lowest": self.lowest.min(1).tolist(),
            "resolution": self.resolution.tolist(),
            "asymmetry": np.median(self.asymmetry, 1).tolist(),
            "lipschitz": self.lipschitz,
            "calls": self.calls,
            "states": self.states,
        }


def curvature(
    model_fn: Any,
    dim: int | Sequence[int],
    *,
    path: str | Path,
    prediction: str,
    levels: Sequence[float] | int = 12,
    samples: int = 16,
    iterations: int = 8,
    condition: Any = None,
    uncond: Any = None,
    guidance: float | None = None,
    uncond2: Any = None,
    guidance2: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Curvature:
    """The largest eigenvalue of the Hessian of -log p at each level, by power iteration.

    See :mod:`ardiff.planning.curvature` for the method. It takes one model call a level for states
    and two for each iteration. With an exact score of a Gaussian of unlike scales 8 iterations find
    the largest eigenvalue to some percent, from below.

    Args:
        model_fn: ``model_fn(x, level, condition)`` or an object with ``hoist``, as of
            :func:`ardiff.sample`; x is `[samples, dim]`, or `[samples, *dim]`.
        dim: elements of a sample, or its sizes.
        path, prediction: as in :func:`ardiff.solver`.
        levels: at which to look, decreasing; or how many, spread by log-SNR.
        samples: states at each level.
        iterations: products of the Hessian from a random start; no more than `dim` are made.
        condition, uncond, guidance, uncond2, guidance2: as in :func:`ardiff.sample`; a condition
            with a row per sample has `samples` rows. With guidance it is the guided score.
        seed: of the states and of the directions.

    Raises:
        ValueError, TypeError: a bad argument, before the model is called.
        FloatingPointError: a score that is not finite.

    Example:
        Data N(0, diag(1, 1/100)): at sigma = 0.1 the curvature is 1 / (1/100 + 1/100) = 50.

        >>> import torch
        >>> from ardiff.data.mixture import GaussianMixture
        >>> from ardiff.planning.curvature import curvature
        >>> data = GaussianMixture([[0.0, 0.0]], torch.tensor([[1.0, 0.01]]))
        >>> model = data.model("edm", "sample")
        >>> found = curvature(model, 2, path="edm", prediction="sample", levels=[10.0, 1.0, 0.1])
        >>> [round(float(value), 2) for value in found.largest]
        [0.01, 0.99, 50.0]
    """
    path, shape = get_path(path), check_model(model_fn, dim, samples)
    check_counts(iterations=iterations)
    check_device(device)
    grid = _grid(path, levels)
    if grid.ndim != 1 or len(grid) < 2 or np.any(np.diff(grid) >= 0):
        raise ValueError(f"levels must be two or more, decreasing, got {levels!r}")
    if path.sigma(grid[-1]) <= 0:
        raise ValueError(f"levels must end above the data, where sigma is 0, got {levels!r}")
    guided = Guidance.of(uncond, guidance, uncond2, guidance2).per_sample(1, device)
    score = Score(model_fn, shape, path, prediction, condition, guided, device)
    elements = math.prod(shape[1:])
    key = make_key(seed, device)
    stream = make_stream(range(FIRST_ID, FIRST_ID + samples), samples, 0, device)
    states, _ = pilot_states(score, path, grid, key, stream, elements)
    ends, resolution = [], []
    for draw, (level, x) in enumerate(zip(grid, states, strict=True), 1):
        sigma = float(path.sigma(level))
        product = hessian(score, x, level, sigma)
        space = krylov(product, normals(key, stream, elements, draw), iterations)
        check_finite(space.image, level)
        ends.append([*space.ends(), space.asymmetry()])
        resolution.append(float(step_length(score, x, sigma).max()) ** 2 / sigma**4)
    highest, lowest, asymmetry = (
        np.stack([e.cpu() for e in each]) for each in zip(*ends, strict=True)
    )
    return Curvature(
        grid, path.alpha(grid), path.sigma(grid), highest, lowest, asymmetry, np.array(resolution),
        score.calls, score.calls * samples,
    )  # fmt: skip


def _grid(path: Path, levels: Sequence[float] | int) -> np.ndarray:
    if isinstance(levels, (int, np.integer)) and not isinstance(levels, bool):
        check_counts(2, levels=levels)
        return time_grid(path, int(levels))
    try:
        return np.array(levels, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"levels must be numbers, or how many, got {levels!r}") from None


def check_finite(values: Tensor, level: float) -> None:
    """FloatingPointError where the score or its differences at `level` are not finite."""
    if not bool(values.isfinite().all()):
        raise FloatingPointError(
            f"the model's score at level {level:g} is NaN or infinite: see at which of its levels "
            "the model is defined, and narrow the grid by ratio_max and ratio_min"
        )
