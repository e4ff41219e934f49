"""RTK with underdamped Langevin: an exponential integrator with the force frozen over a step.

Cheng et al. 2018. With x = gamma tau, A = 1 - e^-x, B = x - A and G = grad g(z),

    z' = z + (A / gamma) v - (B / gamma^2) G + xi_z
    v' = e^-x v - (A / gamma) G + xi_v

and (xi_z, xi_v) of the exact joint covariance, made velocity first from two normals. gamma and tau
are given in units of the stage's envelope of width w: friction gamma / w, step tau w.
"""

from __future__ import annotations

from ardiff_kernels import host

from ..tables.table import StepTable, TableBuilder
from ._rtk import stages as rtk


def move(gamma: float, tau: float) -> dict[str, float]:
    """One step with friction `gamma` and step `tau` in data units (see rtk.kinetic_columns)."""
    c = host.uld_coefficients(gamma, tau)
    return {
        "z_v": c["z_from_v"],
        "z_g": -c["z_from_grad"],
        "z_1": c["z_1"],
        "z_2": c["z_2"],
        "v_v": c["v_from_v"],
        "v_g": -c["v_from_grad"],
        "v_1": c["v_1"],
    }


def rows(builder, grid, inner, gamma, tau, warm_start="ancestral") -> None:
    """Adds the stages of a grid, `inner[stage]` steps each; gamma and tau in envelope units."""
    rtk.kinetic_rows(
        builder, grid, inner, warm_start, lambda t, i: move(gamma / t.width, tau * t.width)
    )


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=None, gamma=2.0, tau=0.4, warm_start="ancestral", denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage a warm start and `inner` underdamped Langevin steps."""
    name = "rtk-uld"
    rtk.check_positive(name, gamma=gamma, tau=tau)
    plan = rtk.plan(name, steps, stages, inner, warm_start, denoise_last)
    grid, builder = levels(plan.stages + 1), TableBuilder(path, prediction, name)
    rows(builder, grid, [plan.inner] * plan.stages, gamma, tau, warm_start)
    return builder.finish(grid[-1] if denoise_last else None, op="uld")
