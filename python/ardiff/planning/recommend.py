"""Which solver to take for a number of model calls, by what has been measured.

The figures are those of :mod:`ardiff.solvers._default`: the distances with exact scores, and for
learned scores the images that a solver breaks. docs/quality.md says how they were measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..solvers import default_solver
from ..solvers._default import BROKEN, BUDGETS, EVIDENCE, FLOOR, MOST_BROKEN

SCORES = ("exact", "learned", "guided")
RIVALS = 5  # shown beside the choice


@dataclass(frozen=True)
class Recommendation:
    """A solver, its options, and what they were compared with.

    Attributes:
        solver, steps, options: as :func:`ardiff.solver` takes them.
        lookahead: as of :class:`ardiff.ARSampler`, or None.
        why: a sentence.
        rivals: (name, error, floor) of the best solvers measured and of the one that is
            recommended, best first; the error is a sliced W2 distance for data of unit scale, the
            floor that of exact draws.
    """

    solver: str
    steps: int
    options: dict[str, float | str] = field(default_factory=dict)
    lookahead: str | None = None
    why: str = ""
    rivals: tuple[tuple[str, float, float], ...] = ()


def recommend(calls: int, *, score: str = "learned") -> Recommendation:
    """The solver that measured best with at most `calls` model calls.

    Args:
        calls: of a sample, or of a patch.
        score: ``exact``, ``learned`` or ``guided``. Guided scores have not been measured apart:
            they are taken for learned ones.

    Raises:
        ValueError: calls that are no integer of 1 or more, or another score.

    Example:
        >>> from ardiff.planning.recommend import recommend
        >>> recommend(8, score="exact").solver, recommend(16, score="learned").solver
        ('learned', 'rtk-harmonic')
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    name = default_solver(calls)  # refuses bad calls
    column = max(i for i, budget in enumerate(BUDGETS) if i == 0 or budget <= calls)
    error = {solver: errors[column] for solver, errors in EVIDENCE.items()}
    best = sorted(error, key=error.get)
    if score == "exact":
        name, why = best[0], "the smallest distance measured with exact scores"
    else:
        best = [solver for solver in best if BROKEN.get(solver, MOST_BROKEN + 1) <= MOST_BROKEN]
        why = (
            "of the solvers that break no more images of a learned model than ddpm, to chance, the "
            "one of the smallest distance with exact scores, or within a tenth of it"
        )
        if score == "guided":
            why += "; guided scores have not been measured apart"
    shown = sorted({*best[:RIVALS], name}, key=error.get)
    return Recommendation(
        name, calls, why=why, rivals=tuple((solver, error[solver], FLOOR) for solver in shown)
    )
