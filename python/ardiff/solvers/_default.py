"""The solver that is used where none is named, chosen from measured quality.

:data:`EVIDENCE` is printed by `python -m benchmarks.quality_table` from the root of the repository.
"""

from __future__ import annotations

import math

import numpy as np

BUDGETS = (4, 8, 16, 32, 48, 64)
# Solver: sliced W2 to nine random mixtures with exact scores (benchmarks/bench_quality.py) with at
# most 4, 8, .. model calls, geometric mean over the seeds 0 to 3 of the noise. Infinite where a
# solver does not run with so few calls. Exact draws have FLOOR.
FLOOR = 0.0105
EVIDENCE = {
    "ddpm": (math.inf, 0.0994, 0.0554, 0.03, 0.0230, 0.02),
    "dpmpp-2m": (0.1, 0.0224, 0.0118, 0.0115, 0.0110, 0.011),
    "rtk-hybrid": (0.2, 0.0283, 0.0119, 0.011, 0.0107, 0.0106),
    "unipc-2": (0.11, 0.0241, 0.0111, 0.0112, 0.0111, 0.0111),
}


def default_solver(steps: int) -> str:
    """The solver measured best for a budget of model calls.

    It is the one of the smallest distance in :data:`EVIDENCE` at the largest measured budget that
    is not above `steps` (at the smallest one, for fewer). The figures are those of exact scores;
    their table with how they were measured is docs/quality.md.

    Args:
        steps: upper bound on the model calls of a sample, or of a patch.

    Returns:
        A name of :data:`ardiff.solvers.SOLVERS`, to be used with its default options on the
        default grid.

    Raises:
        ValueError: steps that are no integer of 1 or more.

    Example:
        >>> import ardiff
        >>> ardiff.default_solver(8), ardiff.default_solver(48)
        ('dpmpp-2m', 'rtk-hybrid')
    """
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"steps must be an integer of 1 or more, got {steps!r}")
    column = max(i for i, budget in enumerate(BUDGETS) if i == 0 or budget <= steps)
    return min(EVIDENCE, key=lambda name: EVIDENCE[name][column])
