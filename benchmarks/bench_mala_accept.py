"""`mala_accept` (score-only projected MALA) against the same function in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ardiff_kernels.ops import mala_accept, mala_accept_
from ardiff_kernels.ops.mala_accept import COLUMNS

from . import _harness, _ops
from ._harness import Row, Settings

SUITE = _ops.SUITE
CASES = (
    "mala_accept-d256/1048576/float32",
    "mala_accept-d16/4194304/float32",
    "mala_accept-d65536/4194304/float32",
)
INVERSE_VARIANCE = 0.5


def step_size(width: int) -> float:
    """Accepts about 0.6 of the proposals on a Gaussian."""
    return 1.2 * width ** (-1 / 3)


def radii(width: int) -> tuple[float, float]:
    """Radii about the origin of the step and about zero, which few proposals leave."""
    return 3 * (2 * step_size(width) * width) ** 0.5, 6 * width**0.5


def row_values(width: int) -> dict[str, float]:
    """A MALA row for a score model and r^2/s_ab^2 = INVERSE_VARIANCE."""
    step, ball = radii(width)
    row = {"g_d": INVERSE_VARIANCE, "g_o": -1.0, "s_o": 1.0, "c_g": step_size(width) / 4}
    return {**row, "r2": step**2, "R2": ball**2}


def eager_accept(
    x: Tensor, y: Tensor, score_x: Tensor, score_y: Tensor, anchor: Tensor
) -> tuple[Tensor, ...]:
    """The Metropolis test by hand: energy by the trapezoid, proposal ratio, projection, rejection
    of NaN and inf, uniform, select."""
    tau, (step, ball) = step_size(x.shape[1]), radii(x.shape[1])
    grad_x = INVERSE_VARIANCE * (x - anchor) - score_x
    grad_y = INVERSE_VARIANCE * (y - anchor) - score_y
    delta = y - x
    energy = -0.5 * (delta * (grad_x + grad_y)).sum(1)
    forward = (delta + tau * grad_x).square().sum(1)
    backward = (delta - tau * grad_y).square().sum(1)
    log_alpha = energy + (forward - backward) / (4 * tau)
    inside = (delta.square().sum(1) <= step**2) & (y.square().sum(1) <= ball**2)
    finite = log_alpha.isfinite() & score_y.isfinite().all(1)
    accepted = (torch.rand(len(x), device=x.device).log() < log_alpha) & inside & finite
    log_alpha = torch.where(finite, log_alpha, -torch.inf)
    keep = accepted[:, None]
    return torch.where(keep, y, x), torch.where(keep, score_y, score_x), accepted, log_alpha


def inputs(shape: _ops.Shape, settings: Settings) -> dict[str, Tensor]:
    """A proposal from a standard Gaussian and its scores: the target has curvature 1."""
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    size, device, tau = (shape.batch, shape.width), settings.device, step_size(shape.width)
    x, noise = (torch.randn(size, generator=generator, device=device) for _ in range(2))
    y = x - tau * x + (2 * tau) ** 0.5 * noise
    out_x, out_y = (((INVERSE_VARIANCE - 1) * z).to(shape.dtype) for z in (x, y))
    return {
        **{"x": x, "y": y, "out_x": out_x, "out_y": out_y, "anchor": torch.zeros_like(x)},
        **{"coef": _ops.coefficients(COLUMNS, row_values(shape.width), device)},
        **_ops.addresses(shape, settings),
    }


def correctness(shape: _ops.Shape, tensors: dict[str, Tensor], suite: str = SUITE) -> Iterator[Row]:
    """log_alpha of the first samples of a case against the reference backend."""
    few = _ops.head(shape)
    shared = ("coef", "row", "draw", "key")
    cut = {name: t if name in shared else t[:few] for name, t in tensors.items()}
    bound = 1e-5 * max(1.0, step_size(shape.width) * shape.width / 2)
    yield from _ops.against_reference(shape, lambda: mala_accept(**cut)[5:], bound, suite)


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, then the in-place and the functional form against eager and compile.

    The in-place form overwrites its proposals, which the next call then accepts. So that every call
    writes as many rows as a sampler's, two of five samples get a ball that they lie outside of.
    """
    shape = _ops.parse(case)
    tensors = inputs(shape, settings)
    yield from correctness(shape, tensors)
    outside = torch.arange(shape.batch, device=settings.device) % 5 < 2
    marks = {"ball_radius": torch.where(outside, 1e-6, radii(shape.width)[1])}
    state = {name: tensors[name].clone() for name in ("y", "out_y")}
    marks["accepted"] = torch.empty_like(outside)
    marks["log_alpha"] = torch.empty_like(marks["ball_radius"])
    in_place, functional = tuple({**tensors, **state}.values()), tuple(tensors.values())
    ours: dict[str, Callable[[], object]] = {
        _harness.OURS: lambda: mala_accept_(*in_place, **marks),
        "ardiff-functional": lambda: mala_accept(*functional),
    }
    names = ("x", "y", "out_x", "out_y", "anchor")
    state_tensors = tuple(tensors[name] for name in names)
    yield from _ops.compare(shape, ours, lambda: eager_accept(*state_tensors), settings)
