"""Which solver to take for a number of model calls, by what has been measured.

The figures are in ``evidence.json``, which says how they were measured; `python -m
benchmarks.plan_evidence` measures them again. Four kinds of model are told apart, because the best
solver differs: an ``exact`` score; a ``learned`` one, whose error noise in later steps can correct;
a ``guided`` one, judged by the law of its own ODE; and an ``image`` model, learned too, of hundreds
of elements.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from ..solvers._default import CHANCE
from .checks import check_calls, check_counts, check_positive

SCORES = ("exact", "learned", "guided")
KINDS = (*SCORES, "image")
IMAGE_DIM = 256  # elements of a patch from which a learned model is taken for an image model
RIVALS = 5  # shown beside the choice
MEASURED_SCALE, LIKE = 1.0, 1.5  # of the data measured on; the factor up to which others are alike
LOOKAHEAD_CALLS, LOOKAHEAD_BATCH = 48, 4  # docs/parallel.md: from so many, up to so many at once


@dataclass(frozen=True)
class Recommendation:
    """A solver, its options, and what they were compared with.

    Attributes:
        solver, steps, options: as :func:`ardiff.solver` takes them.
        lookahead: as of :class:`ardiff.ARSampler`, or None.
        why: a sentence.
        rivals: (name, error, floor) of the best choices measured, best first, the one recommended
            among them. The error is sliced W2 for data of norm 1; of image models it is that of the
            shadows, in px. The floor is that of exact draws, and of real images.
    """

    solver: str
    steps: int
    options: dict[str, float | str] = field(default_factory=dict)
    lookahead: str | None = None
    why: str = ""
    rivals: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True)
class Choice:
    """A solver with options, and the error measured. An option that is ``{"scale": .02}`` is that
    much of the data's `scale`, one that is ``{"smallest": .1}`` of its smallest detail."""

    solver: str
    options: dict[str, Any]
    error: float

    def same(self, other: Choice) -> bool:
        """Whether it is the same solver with the same options."""
        return (self.solver, self.options) == (other.solver, other.options)

    def needs(self) -> set[str]:
        """The lengths that the options are given in."""
        given = (each for each in self.options.values() if isinstance(each, dict))
        return {name for each in given for name in each}

    def resolved(self, lengths: dict[str, float | None]) -> dict[str, float | str]:
        """The options for these lengths."""
        return {
            option: _length(value, lengths) if isinstance(value, dict) else value
            for option, value in self.options.items()
        }

    def __str__(self) -> str:
        shown = [f"{option} {_shown(value)}" for option, value in self.options.items()]
        return f"{self.solver} ({', '.join(shown)})" if shown else self.solver


def _length(value: dict[str, float], lengths: dict[str, float | None]) -> float:
    ((name, factor),) = value.items()
    return factor * lengths[name]


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:g}" if isinstance(value, float) else str(value)
    ((name, factor),) = value.items()
    return name if factor == 1 else f"{factor:g} {name}"


@functools.cache
def evidence() -> dict[str, dict[int, tuple[float, tuple[Choice, ...]]]]:
    """By kind and budget the floor and the choices measured, best first."""
    text = resources.files(__package__).joinpath("evidence.json").read_text()
    return {
        kind: {
            int(budget): (found["floor"], tuple(Choice(*each) for each in found["choices"]))
            for budget, found in budgets.items()
        }
        for kind, budgets in json.loads(text)["kinds"].items()
    }


def kind_of(score: str, dim: int | None) -> str:
    """The kind of model whose measurements apply."""
    return "image" if score == "learned" and dim is not None and dim >= IMAGE_DIM else score


def recommend(
    calls: int,
    *,
    score: str = "learned",
    dim: int | None = None,
    scale: float | None = None,
    smallest: float | None = None,
    batch: int | None = None,
) -> Recommendation:
    """The solver and grid that measured best with at most `calls` model calls.

    The measurements are those of the largest budget that is not above `calls` (of the smallest one,
    for fewer). Where a choice is nearer by less than a tenth than the one for fewer calls, which is
    chance, the latter stays. A grid that is given in lengths of the data is taken where they are
    known.

    Args:
        calls: of a sample, or of a patch.
        score: ``exact``, ``learned`` or ``guided``.
        dim: elements of a sample, or of a patch; from 256 a learned model is an image model.
        scale: root mean square length of a sample, where it is known.
        smallest: standard deviation of the narrowest direction of the data, where it is known:
            1 / sqrt(L), L the largest curvature at the clean end.
        batch: samples drawn at once, where it is known: for few of many calls, a lookahead.

    Raises:
        ValueError: calls, dim or batch that are no integer of 1 or more, another score, a length
            that is not positive.

    Example:
        >>> from ardiff.planning.recommend import recommend
        >>> recommend(8, score="exact").solver
        'learned'
        >>> recommend(16, score="learned", scale=2.0).steps
        16
    """
    check_calls("calls", calls)
    check_counts(**{k: v for k, v in (("dim", dim), ("batch", batch)) if v is not None})
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    lengths = {"scale": scale, "smallest": smallest}
    check_positive(**{name: length for name, length in lengths.items() if length is not None})
    kind = kind_of(score, dim)
    budgets = evidence()[kind]
    budget = max(each for each in budgets if each <= max(calls, min(budgets)))
    floor, choices = budgets[budget]
    best = _held(budgets, budget, lengths)
    ahead = "auto" if _pays(best, calls, batch) else None
    why = (
        f"of {len(choices)} choices of solver and grid measured on models of kind {kind!r} with "
        f"{budget} calls it has the smallest error"
    )
    usable = _usable(choices, lengths)
    if usable[0] is not choices[0]:
        why += (
            f" of those whose lengths are known and that fit the data's scale ({choices[0]} has a "
            "smaller one)"
        )
    if best is not usable[0]:
        why += (
            f", to chance: {usable[0]} is nearer by less than a tenth, and this one was the best "
            "with fewer calls"
        )
    first = choices[:RIVALS]
    shown = first if best in first else (*first, best)
    return Recommendation(
        best.solver, int(calls), best.resolved(lengths), ahead, why,
        tuple((str(each), each.error, floor) for each in shown),
    )  # fmt: skip


def _held(budgets: dict, budget: int, lengths: dict[str, float | None]) -> Choice:
    """The choice for a budget: that of the budget before, as long as none of those that can be used
    has less than CHANCE times its error. The smallest of many errors is small by chance too."""
    held = None
    for each in sorted(each for each in budgets if each <= budget):
        usable = _usable(budgets[each][1], lengths)
        again = (c for c in usable if held is not None and c.same(held))
        held = next((c for c in again if usable[0].error >= CHANCE * c.error), usable[0])
    return held


def _usable(choices: Sequence[Choice], lengths: dict[str, float | None]) -> list[Choice]:
    """The choices whose lengths are known. On data that are not of the scale measured on they are
    those given in lengths, if there are any: what they measured holds for data of any scale."""
    known = {name for name, length in lengths.items() if length is not None}
    usable = [each for each in choices if each.needs() <= known]
    scale = lengths["scale"]
    if scale is not None and not 1 / LIKE <= scale / MEASURED_SCALE <= LIKE:
        usable = [each for each in usable if each.needs()] or usable
    return usable


def _pays(choice: Choice, calls: int, batch: int | None) -> bool:
    """Whether rows looked ahead gain time: many rows with noise of few samples."""
    few = batch is not None and batch <= LOOKAHEAD_BATCH
    return few and calls >= LOOKAHEAD_CALLS and choice.solver in LOOKS_AHEAD


# Solvers whose rows add noise that the model's output can be coupled by.
LOOKS_AHEAD = ("ddpm", "dpmpp-2m-sde", "flow-sde", "rtk-harmonic")
