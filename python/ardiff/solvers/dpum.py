"""DPUM (Chen, Chewi, Lee, Li, Lu, Salim 2023): a predictor, and an underdamped corrector.

A stage goes from level a to the cleaner level b. The predictor takes `predictor` steps of the
probability-flow ODE by an exponential integrator, the score frozen over a step. With y = x / c the
Ornstein-Uhlenbeck process of ``ddpm-ei``, a step of length h is

    y_b = e^h y_a + (e^h - 1) score(y_a).

The corrector is `corrector` steps of underdamped Langevin, begun with a fresh velocity, by the
integrator of ``rtk-uld``. Its target is the law of level b itself, G = -score_b, while that of a
reverse transition kernel has the pull of the noisier state besides. It is too short to reach that
law from afar, and need not: it makes of the predictor's error, a small distance between states, a
small distance between laws, which the next predictor does not enlarge.

The paper runs it for a time of about L^-1/2, L the Lipschitz constant of the score. That of level b
is at most about 1 / sigma_b^2, so tau and gamma are in units of sigma_b: tau sigma_b and
gamma / sigma_b.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ..tables.paths import Transition, score_coefficients, transition
from ..tables.table import StepTable, TableBuilder
from . import rtk_uld
from ._rtk import stages as rtk
from .ddpm_ei import ou_coordinates


def predict(prediction: str, t: Transition) -> dict[str, float]:
    """`uld_step` columns of a step of the ODE; the score of y = x / c is c times that of x."""
    h, scale_a, scale_b = ou_coordinates("dpum", t)
    s_z, s_o = score_coefficients(prediction, t.alpha_a, t.sigma_a)
    on_score = scale_b * np.expm1(h) * scale_a
    return {"z_z": scale_b / scale_a * np.exp(h) + on_score * s_z, "z_o": on_score * s_o}


def position(columns: dict[str, float]) -> dict[str, float]:
    """The columns that move z: after the last step of a stage no row reads the velocity."""
    return {name: value for name, value in columns.items() if name.startswith("z_")}


def intervals(steps: int, predictor: int, corrector: int) -> int:
    """The most ODE steps, with a corrector after each `predictor` of them and after the last, in
    `steps` calls; 0 where not one fits."""
    stages, rest = divmod(max(steps, 0), predictor + corrector)
    return stages * predictor + max(rest - corrector, 0)


def table(
    path, prediction, levels, steps, *,
    stages=None, predictor=1, corrector=1, gamma=2.0, tau=0.8, denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage `predictor` steps of the ODE, the last one perhaps fewer, then `corrector` steps
    of Langevin; a call each."""
    rtk.check_positive("dpum", gamma=gamma, tau=tau)
    rtk.check_count(stages=stages, predictor=predictor, corrector=corrector)
    last = int(denoise_last)
    room = intervals(steps - last, predictor, corrector)
    count = room if stages is None else stages * predictor
    if not 1 <= count <= room:
        least = (1 + corrector if stages is None else stages * (predictor + corrector)) + last
        raise ValueError(
            f"dpum with predictor={predictor} and corrector={corrector} needs steps >= {least}, "
            f"got steps={steps}"
        )
    grid, builder = levels(count + 1), TableBuilder(path, prediction, "dpum")
    for i, (a, b) in enumerate(pairwise(grid), 1):
        t = transition(path, a, b)
        ends = i % predictor == 0 or i == count
        builder.add("uld", a, **predict(prediction, t), v_1=float(ends))
        move = rtk_uld.move(gamma / t.sigma_b, tau * t.sigma_b)
        columns = rtk.marginal_columns(prediction, t.alpha_b, t.sigma_b, move)
        for left in range(ends * corrector, 0, -1):
            builder.add("uld", b, **(columns if left > 1 else position(columns)))
    return builder.finish(grid[-1] if denoise_last else None, op="uld")
