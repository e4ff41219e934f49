"""DPM-Solver++(3M) (Lu et al. 2022), the ODE solver of third order, as in diffusers.

The steps are those of `dpmpp-3m-sde` with eta = 0, but where only two predictions are used: such a
step is that of `dpmpp-2m-sde` with eta = 0, of `solver_type` ``midpoint`` or ``heun``.
"""

from __future__ import annotations

from ..tables.paths import Transition
from ..tables.table import StepTable
from . import dpmpp_2m_sde, dpmpp_3m_sde
from ._multistep import Step, check_flag, prediction_table
from .dpmpp_2m_sde import SOLVER_TYPES

FEW = 15  # calls: with fewer diffusers lowers the order at the end


def table(
    path, prediction, levels, steps, *, solver_type="midpoint", lower_order_final=None,
    denoise_last=True,
) -> StepTable:  # fmt: skip
    """`steps` calls, one per step.

    With `lower_order_final` a step is of no higher order than there are calls left, itself
    included: the step before the last data prediction falls to 2. By default that is so, as in
    diffusers, with a data prediction at the end and fewer than 15 calls.
    """
    check_flag("dpmpp-3m", "lower_order_final", lower_order_final)
    if solver_type not in SOLVER_TYPES:
        known = ", ".join(SOLVER_TYPES)
        raise ValueError(f"unknown solver_type {solver_type!r}; known: {known}")
    lower = denoise_last and steps < FEW if lower_order_final is None else lower_order_final

    def step(past: list[Transition], left: int) -> Step:
        order = min(len(past), left if lower else 3)
        if order != 2:
            return dpmpp_3m_sde.step(past[:order], left, eta=0.0)
        made = dpmpp_2m_sde.step(past[0], past[1], 0.0, solver_type)
        return Step(made["x_x"], [made["x_0"], made["x_m"]])

    return prediction_table(
        "dpmpp-3m", path, prediction, levels, steps, denoise_last, step, memories=2
    )
