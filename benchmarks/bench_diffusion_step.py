"""`diffusion_step`, noise included, against the DDPM step that a researcher writes in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ardiff_kernels.ops import diffusion_step, diffusion_step_
from ardiff_kernels.ops.diffusion_step import COLUMNS

from . import _harness, _ops
from ._harness import Row, Settings

SUITE = _ops.SUITE
CASES = ("diffusion_step/1024/float32", "diffusion_step/4194304/float32")
ALPHA, SIGMA, ALPHA_NEXT, SIGMA_NEXT = 0.6, 0.8, 0.8, 0.6


def row_values() -> dict[str, float]:
    """The ancestral step between two levels of a variance-preserving path, for an epsilon model."""
    ratio = ALPHA / ALPHA_NEXT
    variance = SIGMA**2 - (ratio * SIGMA_NEXT) ** 2
    return {
        **{"p_x": 1 / ALPHA, "p_o": -SIGMA / ALPHA},
        "x_x": ratio * SIGMA_NEXT**2 / SIGMA**2,
        "x_0": ALPHA_NEXT * variance / SIGMA**2,
        "x_n": (SIGMA_NEXT**2 * variance / SIGMA**2) ** 0.5,
    }


def eager_step(x: Tensor, out: Tensor, c: dict[str, float]) -> Tensor:
    """One DDPM step as written by hand."""
    x0 = c["p_x"] * x + c["p_o"] * out
    return c["x_x"] * x + c["x_0"] * x0 + c["x_n"] * torch.randn_like(x)


def inputs(shape: _ops.Shape, settings: Settings) -> dict[str, Tensor]:
    """State, model output and addresses of a case, on the settings' device."""
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    size, device = (shape.batch, shape.width), settings.device
    x, out, memory = (torch.randn(size, generator=generator, device=device) for _ in range(3))
    return {
        **{"x": x, "model_out": out.to(shape.dtype), "memory": memory},
        **{"coef": _ops.coefficients(COLUMNS, row_values(), device)},
        **_ops.addresses(shape, settings),
    }


def correctness(shape: _ops.Shape, tensors: dict[str, Tensor], suite: str = SUITE) -> Iterator[Row]:
    """The op on the first samples of a case against the reference backend."""
    few = _ops.head(shape)
    cut = {
        name: t[:few] if name in ("x", "model_out", "memory", "stream") else t
        for name, t in tensors.items()
    }
    bound = _ops.tolerance(row_values()["x_n"])
    yield from _ops.against_reference(shape, lambda: diffusion_step(**cut), bound, suite)


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, then the in-place and the functional form against eager and compile."""
    shape = _ops.parse(case)
    tensors = inputs(shape, settings)
    yield from correctness(shape, tensors)
    state = {name: tensors[name].clone() for name in ("x", "memory")}
    in_place, functional = tuple({**tensors, **state}.values()), tuple(tensors.values())
    ours: dict[str, Callable[[], object]] = {
        _harness.OURS: lambda: diffusion_step_(*in_place),
        "ardiff-functional": lambda: diffusion_step(*functional),
    }
    values = row_values()
    x, out = tensors["x"], tensors["model_out"]
    yield from _ops.compare(shape, ours, lambda: eager_step(x, out, values), settings)
