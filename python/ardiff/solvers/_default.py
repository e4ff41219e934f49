"""The solver that is used where none is named, chosen from measured quality.

How the figures were measured, and the command that measures them again, is in docs/quality.md.
"""

from __future__ import annotations

import numpy as np

BUDGETS = (8, 16, 32, 48, 64)
# Solver: sliced W2 to nine random mixtures with exact scores (benchmarks/bench_quality.py) with at
# most 8, 16, .. model calls, geometric mean over the seeds 0 to 3 of the noise. Exact draws have
# FLOOR. Printed by `python -m benchmarks.quality_table`.
FLOOR = 0.0105
EVIDENCE = {
    "ddim": (0.0735, 0.0362, 0.0198, 0.0152, 0.0134),
    "ddpm": (0.0994, 0.0554, 0.0308, 0.0230, 0.0180),
    "ddpm-ei": (0.1813, 0.0627, 0.0313, 0.0208, 0.0171),
    "dpmpp-2m": (0.0224, 0.0118, 0.0109, 0.0110, 0.0110),
    "dpmpp-2m-sde": (0.0370, 0.0177, 0.0121, 0.0114, 0.0102),
    "flow-euler": (0.0735, 0.0362, 0.0198, 0.0152, 0.0134),
    "flow-sde": (0.0646, 0.0243, 0.0148, 0.0118, 0.0108),
    "heun": (0.6815, 0.0698, 0.0171, 0.0125, 0.0116),
    "rtk-baoab": (0.1451, 0.1141, 0.0612, 0.0438, 0.0329),
    "rtk-harmonic": (0.0377, 0.0155, 0.0127, 0.0122, 0.0104),
    "rtk-harmonic-mala": (0.0810, 0.0330, 0.0153, 0.0130, 0.0119),
    "rtk-hmc": (0.1333, 0.0944, 0.0408, 0.0277, 0.0195),
    "rtk-hybrid": (0.0283, 0.0119, 0.0112, 0.0107, 0.0115),
    "rtk-mala": (0.1302, 0.0940, 0.0425, 0.0273, 0.0209),
    "rtk-mala-projected": (0.1302, 0.0940, 0.0425, 0.0273, 0.0210),
    "rtk-obabo": (0.1430, 0.1122, 0.0591, 0.0410, 0.0297),
    "rtk-ubu": (0.1454, 0.1146, 0.0618, 0.0451, 0.0345),
    "rtk-ula": (0.1253, 0.0918, 0.0397, 0.0231, 0.0146),
    "rtk-uld": (0.1453, 0.1142, 0.0606, 0.0435, 0.0320),
    "unipc-2": (0.0241, 0.0111, 0.0110, 0.0111, 0.0111),
}
# Solver: images of 2,000 (seeds 0 and 1, 16 calls per patch) of the shipped model, whose score is
# learned, in which sun, pole and shadow are not found: what `ardiff sample --measure` calls
# detection. Measured for the best of EVIDENCE, ddpm and rtk-uld. Printed by
# `python -m benchmarks.quality_table --broken`.
BROKEN = {
    "ddpm": 1,
    "dpmpp-2m": 16,
    "dpmpp-2m-sde": 0,
    "rtk-harmonic": 1,
    "rtk-hybrid": 16,
    "rtk-uld": 2,
    "unipc-2": 15,
}
MOST_BROKEN = 5  # 1 against 6 of 2,000 is within chance (p = .06), 1 against 15 is not (3e-4)


def default_solver(steps: int) -> str:
    """The solver measured best for a budget of model calls.

    Of the solvers that break no more images of a learned model than `ddpm`, to chance, it is the
    one of the smallest distance with exact scores, at the largest measured budget that is not above
    `steps` (at the smallest one, for fewer). The first condition rules out the deterministic
    solvers and those that are so in most steps: they have the smallest distances of all, but do not
    correct the errors of a learned score. The tables are in docs/quality.md.

    Args:
        steps: upper bound on the model calls of a sample, or of a patch.

    Returns:
        A name of :data:`ardiff.solvers.SOLVERS`, for its default options on the default grid.

    Raises:
        ValueError: steps that are no integer of 1 or more.

    Example:
        >>> import ardiff
        >>> ardiff.default_solver(16), ardiff.default_solver(48)
        ('rtk-harmonic', 'dpmpp-2m-sde')
    """
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"steps must be an integer of 1 or more, got {steps!r}")
    column = max(i for i, budget in enumerate(BUDGETS) if i == 0 or budget <= steps)
    sound = [name for name, broken in BROKEN.items() if broken <= MOST_BROKEN]
    return min(sound, key=lambda name: EVIDENCE[name][column])
