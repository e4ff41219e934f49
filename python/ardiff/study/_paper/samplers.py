"""The authors' samplers, each fault of theirs a switch.

DDPM, ULA and ULD are step tables, whatever their faults: a kernel that is too narrow is only other
coefficients. MALA is a loop, since no accept row holds a squared proposal term.

All but DDPM have five stages, even in time. A stage starts with an ancestral step and makes inner
steps on g(z) = -log p_b(z) + |x_a - e^-h z|^2 / (2 (1 - e^-2h)). The last stage ends at level 0.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...sampling import sample
from ...solvers._rtk import stages as rtk
from ...solvers.rtk_uld import move as exponential
from ...tables.paths import Transition, data_coefficients, get_path, transition
from ...tables.table import StepTable, TableBuilder
from .published import (
    DDPM_ALPHA2_PER_T,
    GAMMA,
    KERNEL_H,
    OU_PER_T,
    SETTINGS,
    STAGES,
    TIME,
    ULD_GAMMA,
)
from .score import RoundMixture

PATH, PREDICTION = "ou", "score"
TAYLOR_STEP = 0.005  # of the differences in MALA_ES, in units of the segment
NARROW_WEIGHT = -2 * math.expm1(-2 * KERNEL_H)  # their 2 (1 - e^-2h), which scales their steps


@dataclass(frozen=True)
class Faults:
    """Which of the faults a sampler has; the default is the published code.

    Attributes:
        narrow_kernel: h = .2 where a stage spans an OU time of 1.
        faded_score: the score divides by the density plus a constant, and so fades to 0 far from
            the modes.
        two_schedules: the ancestral step has alpha^2 = .99^t, the score e^-.01t.
        euler_uld: ULD is one semi-implicit Euler step with one normal; else the exponential
            integrator.
        squared_reverse: MALA squares the squared distance of the reverse proposal once more.
        gradient_sign: MALA's two proposal densities have the drift with the wrong sign.
        taylor_energy: MALA_ES has the energy difference from a Taylor series of two terms; else by
            Simpson's rule.
    """

    narrow_kernel: bool = True
    faded_score: bool = True
    two_schedules: bool = True
    euler_uld: bool = True
    squared_reverse: bool = True
    gradient_sign: bool = True
    taylor_energy: bool = True

    def without(self, *names: str) -> Faults:
        """These faults but those named."""
        return dataclasses.replace(self, **dict.fromkeys(names, False))


NAMES = tuple(field.name for field in dataclasses.fields(Faults))
PUBLISHED, MENDED = Faults(), Faults().without(*NAMES)
RATIO = ("squared_reverse", "gradient_sign")
CONCERNS = {  # the faults that a sampler can have
    "DDPM": ("faded_score", "two_schedules"),
    "ULA": ("narrow_kernel", "faded_score", "two_schedules"),
    "ULD": ("narrow_kernel", "faded_score", "two_schedules", "euler_uld"),
    "MALA": ("narrow_kernel", "faded_score", "two_schedules", *RATIO),
    "MALA_ES": ("narrow_kernel", "faded_score", "two_schedules", *RATIO, "taylor_energy"),
}


@dataclass(frozen=True)
class Stage:
    """From level a to b: `start` the ancestral step, (r, s2) of `kernel` the Gaussian factor."""

    a: float
    b: float
    start: Transition
    kernel: Transition

    @property
    def pull(self) -> float:
        """Curvature of the Gaussian factor; its centre is x_a / kernel.r."""
        return self.kernel.r**2 / self.kernel.s2


def stages(count: int, faults: Faults) -> list[Stage]:
    """`count` stages, even in time, from OU time 5 to 0."""
    ou, found = get_path(PATH), []
    ddpm = -math.log(DDPM_ALPHA2_PER_T) / 2 if faults.two_schedules else OU_PER_T
    for k in range(count, 0, -1):
        t_a, t_b = TIME * k / count, TIME * (k - 1) / count
        kernel = transition(ou, OU_PER_T * t_a, OU_PER_T * t_b)
        if faults.narrow_kernel:
            r, s2 = math.exp(-KERNEL_H), -math.expm1(-2 * KERNEL_H)
            kernel = dataclasses.replace(kernel, r=r, s2=s2)
        start = transition(ou, ddpm * t_a, ddpm * t_b)
        found.append(Stage(OU_PER_T * t_a, OU_PER_T * t_b, start, kernel))
    return found


def table(target: str, method: str, calls: int, faults: Faults = PUBLISHED) -> StepTable:
    """DDPM, ULA or ULD of the authors as a table for the score on the path ``ou``.

    Args:
        target: of :data:`~ardiff.study._paper.published.SETTINGS`, which has the step.
        calls: as many of DDPM; else a multiple of 5, calls / 5 - 1 inner steps a stage.
    """
    builder = TableBuilder(PATH, PREDICTION, f"paper-{method.lower()}")
    scale = SETTINGS[target][method].scale
    if method == "DDPM":
        for stage in stages(calls, faults):
            builder.add("diffusion", stage.a, **_ancestral(stage.start))
    elif method == "ULA":
        tau = NARROW_WEIGHT / 100 * scale
        for stage in stages(STAGES, faults):
            anchor = {"m_x": 1 / stage.kernel.r}
            builder.add("diffusion", stage.a, **_ancestral(stage.start), **anchor)
            step = {"p_o": 1.0, "x_x": 1.0, "x_0": tau, "x_d": -tau * stage.pull}
            for _ in range(inner_steps(calls)):
                builder.add("diffusion", stage.b, **step, x_n=math.sqrt(2 * tau))
    else:
        step = (euler if faults.euler_uld else exponential)(GAMMA.get(target, ULD_GAMMA), scale)
        for stage in stages(STAGES, faults):
            start = rtk.kinetic_start(PREDICTION, stage.start, "ancestral")
            builder.add("uld", stage.a, **{**start, "a_z": 1 / stage.kernel.r})
            for _ in range(inner_steps(calls)):
                builder.add("uld", stage.b, **rtk.kinetic_columns(PREDICTION, stage.kernel, step))
    return builder.finish(init_scale=1.0)


def inner_steps(calls: int) -> int:
    """Of a stage; ValueError unless each of the five stages has a start and an inner step."""
    if calls % STAGES or calls < 2 * STAGES:
        raise ValueError(
            f"calls must be a multiple of {STAGES} from {2 * STAGES} on, one start and as many "
            f"inner steps for each of {STAGES} stages, got {calls}"
        )
    return calls // STAGES - 1


def _ancestral(t: Transition) -> dict[str, float]:
    p_x, p_o = data_coefficients(PREDICTION, t.alpha_a, t.sigma_a)
    on_x, on_x0 = rtk.ancestral(t)
    return {"p_x": p_x, "p_o": p_o, "x_x": on_x, "x_0": on_x0, "x_n": t.width}


def euler(gamma: float, tau: float) -> dict[str, float]:
    """v' = v - tau (gamma v + G) + sqrt(2 gamma tau) n, then z' = z + tau v': the authors' ULD."""
    v = {"v_v": 1 - gamma * tau, "v_g": tau, "v_1": math.sqrt(2 * gamma * tau)}
    return {**v, "z_v": tau * v["v_v"], "z_g": tau * tau, "z_1": tau * v["v_1"]}


class Drawn(NamedTuple):
    """Samples float32 `[n, d]`; the score calls that they took, extra ones of MALA_ES counted; the
    share of proposals accepted in the last stage, None without an accept step."""

    x: Tensor
    made: float
    acceptance: float | None = None


def draw(
    target: str, mixture: RoundMixture, method: str, calls: int, n: int, seed: int, faults: Faults
) -> Drawn:
    """`n` samples; `mixture` must have the floor that `faults` say."""
    if method.startswith("MALA"):
        return metropolis(target, mixture, method, calls, n, seed, faults)
    plan = table(target, method, calls, faults)
    shape = (n, mixture.means.shape[1])
    return Drawn(sample(mixture.score, shape, table=plan, seed=seed), float(plan.calls))


def metropolis(
    target: str, mixture: RoundMixture, method: str, calls: int, n: int, seed: int, faults: Faults
) -> Drawn:
    """MALA, with energies, or MALA_ES, without; see :func:`draw`."""
    setting, generator = SETTINGS[target][method], torch.Generator().manual_seed(seed)
    tau = NARROW_WEIGHT / 10 * (KERNEL_H / 0.5) * (STAGES / 25) * setting.scale
    d, made = mixture.means.shape[1], 0

    def normal() -> Tensor:
        return torch.randn(n, d, generator=generator)

    x = normal()
    for stage in stages(STAGES, faults):
        c, anchor = _ancestral(stage.start), x / stage.kernel.r
        data = c["p_x"] * x + c["p_o"] * mixture.at(x, stage.a)[1]
        x = c["x_x"] * x + c["x_0"] * data + c["x_n"] * normal()
        density, score = mixture.at(x, stage.b)
        made, taken = made + 2, []
        for _ in range(inner_steps(calls)):
            force = stage.pull * (x - anchor) - score
            y = x - tau * force + math.sqrt(2 * tau) * normal()
            density_y, score_y = mixture.at(y, stage.b)
            force_y = stage.pull * (y - anchor) - score_y
            made += 1
            gain = density_y - density
            if method == "MALA_ES":
                gain, more = _without_energy(
                    mixture, x, y, score, score_y, stage.b, setting, faults
                )
                made += more
            gain = gain + 0.5 * stage.pull * ((x - anchor) ** 2 - (y - anchor) ** 2).sum(1)
            log_alpha = gain + proposal_ratio(x, y, force, force_y, tau, faults)
            accepted = torch.rand(n, generator=generator).log() < log_alpha
            taken.append(accepted.float().mean())
            x = torch.where(accepted[:, None], y, x)
            score = torch.where(accepted[:, None], score_y, score)
            density = torch.where(accepted, density_y, density)
    return Drawn(x, float(made), float(torch.stack(taken).mean()))


def proposal_ratio(
    x: Tensor, y: Tensor, force: Tensor, force_y: Tensor, tau: float, faults: Faults
) -> Tensor:
    """log of q(x | y) / q(y | x) `[B]` for y = x - tau force + sqrt(2 tau) n, as they have it."""
    drift = -tau if faults.gradient_sign else tau
    there = ((y - x + drift * force) ** 2).sum(1)
    back = ((x - y + drift * force_y) ** 2).sum(1)
    return (there - (back**2 if faults.squared_reverse else back)) / (4 * tau)


def _without_energy(mixture, x, y, score, score_y, level, setting, faults) -> tuple[Tensor, int]:
    """log p(y) - log p(x) `[B]` from scores, and the score calls made for it."""
    way = y - x

    def along(u: float) -> Tensor:
        return (mixture.at(x + u * way, level)[1] * way).sum(1)

    if not faults.taylor_energy:
        return (along(0.5) * 4 + ((score + score_y) * way).sum(1)) / 6, 1
    u, step = setting.middle, TAYLOR_STEP
    return along(u) + (along(u + step) - along(u - step)) / (4 * step), 3
