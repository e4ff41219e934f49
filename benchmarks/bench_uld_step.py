"""`uld_step`, noise included, against the expression that a researcher writes in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ardiff_kernels import testing
from ardiff_kernels.host import uld_coefficients
from ardiff_kernels.ops import uld_step, uld_step_
from ardiff_kernels.ops.uld_step import COLUMNS

from . import _harness, _ops
from ._harness import Row, Settings

SUITE = _ops.SUITE
CASES = (
    "uld_step/1024/float32",
    "uld_step/4194304/float32",
    "uld_step-d16/4194304/float32",
    "uld_step/16777216/float32",
)
NOISELESS, SCALAR = "ardiff-noiseless", "ardiff-scalar"
GAMMA, TAU, INVERSE_VARIANCE = 2.0, 0.1, 0.5


def row_values() -> dict[str, float]:
    """A row in the middle of a stage, for a score model and r^2/s_ab^2 = INVERSE_VARIANCE."""
    c = uld_coefficients(GAMMA, TAU)
    return {
        **{"z_z": 1.0, "z_d": c["z_from_grad"] * INVERSE_VARIANCE, "z_v": c["z_from_v"]},
        **{"z_o": -c["z_from_grad"], "z_1": c["z_1"], "z_2": c["z_2"]},
        **{"v_d": c["v_from_grad"] * INVERSE_VARIANCE, "v_v": c["v_from_v"]},
        **{"v_o": -c["v_from_grad"], "v_1": c["v_1"]},
    }


def eager_step(
    z: Tensor, v: Tensor, score: Tensor, anchor: Tensor, c: dict[str, float]
) -> tuple[Tensor, Tensor]:
    """One step of underdamped Langevin as written by hand: two normals, one gradient."""
    n1, n2 = torch.randn_like(z), torch.randn_like(z)
    grad = INVERSE_VARIANCE * (z - anchor) - score
    z_new = z + c["z_v"] * v - c["z_o"] * grad + c["z_1"] * n1 + c["z_2"] * n2
    v_new = c["v_v"] * v - c["v_o"] * grad + c["v_1"] * n1
    return z_new, v_new


def inputs(shape: _ops.Shape, settings: Settings) -> dict[str, Tensor]:
    """State, model output and addresses of a case, on the settings' device."""
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    size, device = (shape.batch, shape.width), settings.device
    z, v, score, anchor = (torch.randn(size, generator=generator, device=device) for _ in range(4))
    return {
        **{"z": z, "v": v, "model_out": score.to(shape.dtype), "anchor": anchor},
        **{"coef": _ops.coefficients(COLUMNS, row_values(), device)},
        **_ops.addresses(shape, settings),
    }


def correctness(shape: _ops.Shape, tensors: dict[str, Tensor], suite: str = SUITE) -> Iterator[Row]:
    """The op on the first samples of a case against the reference backend."""
    few = _ops.head(shape)
    cut = {
        name: t[:few] if name in ("z", "v", "model_out", "anchor", "stream") else t
        for name, t in tensors.items()
    }
    bound = _ops.tolerance(row_values()["v_1"])
    yield from _ops.against_reference(shape, lambda: uld_step(**cut), bound, suite)


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, then the in-place and the functional form against eager and compile, and against
    the same row without noise and, on a CPU with vectors, without these."""
    shape = _ops.parse(case)
    tensors = inputs(shape, settings)
    yield from correctness(shape, tensors)
    state = {name: tensors[name].clone() for name in ("z", "v", "anchor")}
    in_place, functional = tuple({**tensors, **state}.values()), tuple(tensors.values())
    values = row_values()
    quiet = {**values, "z_1": 0.0, "z_2": 0.0, "v_1": 0.0}
    coef = _ops.coefficients(COLUMNS, quiet, settings.device)
    noiseless = tuple({**tensors, **state, "coef": coef}.values())
    ours: dict[str, Callable[[], object]] = {
        _harness.OURS: lambda: uld_step_(*in_place),
        "ardiff-functional": lambda: uld_step(*functional),
        NOISELESS: lambda: uld_step_(*noiseless),
    }
    costs = [NOISELESS]
    if settings.device == "cpu" and len(testing.cpu_isas()) > 1:

        def scalar() -> None:
            with testing.cpu_isa("scalar"):
                uld_step_(*in_place)

        ours[SCALAR] = scalar
        costs.append(SCALAR)
    z, v, score, anchor = (tensors[n] for n in ("z", "v", "model_out", "anchor"))
    eager = lambda: eager_step(z, v, score, anchor, values)  # noqa: E731
    yield from _ops.compare(shape, ours, eager, settings, costs=tuple(costs))
