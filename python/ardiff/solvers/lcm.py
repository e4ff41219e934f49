"""The sampler of consistency models and LCM (Song et al. 2023, Algorithm 1; Luo et al. 2023).

Each call gives the data, to which fresh noise is added:

    x_b = alpha_b x0 + sigma_b xi,   x0 the data prediction at x_a.

diffusers' LCMScheduler, FlowMatchLCMScheduler and ComfyUI's `lcm` do this. The first multiplies x0
by the c_out of its boundary condition and adds c_skip x, which leave x0 as it is to 1e-5 from
timestep 16 up; a model that needs them has them in its prediction.
"""

from __future__ import annotations

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._one_call import one_call_table


def step(t: Transition, previous: Transition | None) -> dict[str, float]:
    return {"x_0": t.alpha_b, "x_n": t.sigma_b}


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    return one_call_table("lcm", path, prediction, levels, steps, denoise_last, step)
