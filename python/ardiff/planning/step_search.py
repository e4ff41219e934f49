"""The search for the rung of each stage whose acceptance is nearest to a target, by few runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BAND = 0.15  # about the target, within which a stage's tau is left as it is
FARTHEST = 24.0  # rungs that a correction moves by at most: a factor of 8 in tau


def approach(
    curves: np.ndarray,
    idle: np.ndarray,
    target: float,
    start: int,
    measure: Callable[[np.ndarray, int], np.ndarray],
    corrections: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """The rung of each stage, of those measured, whose acceptance is nearest to `target`.

    Args:
        curves: predicted acceptance, float64 `[stages, rungs]`.
        idle: bool `[stages]`, those that stay on rung `start`.
        measure: the acceptance of each stage on given rungs, and the number of the run.

    Returns:
        Rungs and acceptances `[stages]`, and how often it measured.
    """
    stages, count = curves.shape
    falling = np.minimum.accumulate(curves, 1)
    rung = np.where(idle, start, np.abs(falling - target).argmin(1))
    known = np.full((stages, count), np.nan)
    for n in range(corrections + 1):
        rate = measure(rung, n)
        known[np.arange(stages), rung] = rate
        off = ~idle & (np.abs(rate - target) > BAND)
        moved = rung.copy()
        for i in np.flatnonzero(off):
            moved[i] = next_rung(falling[i], known[i], rung[i], target)
        if n == corrections or np.array_equal(moved, rung):
            break
        rung = moved
    # of equals the largest step, which moves most
    best = count - 1 - np.nanargmin(np.abs(known - target)[:, ::-1], 1)
    return best, known[np.arange(stages), best], n + 1


def next_rung(falling: np.ndarray, known: np.ndarray, rung: int, target: float) -> int:
    """As far along the predicted curve as the acceptance known at `rung` is from `target`, between
    the rungs that are known to accept more and less."""
    shown = np.clip(known[rung], 0.02, 0.98)
    here, there = np.interp([-shown, -target], -falling, np.arange(len(falling)))
    aim = rung + np.rint(np.clip(there - here, -FARTHEST, FARTHEST))
    more = np.flatnonzero(known >= target)  # NaN is neither
    less = np.flatnonzero(known < target)
    low = more.max() + 1 if len(more) else 0
    high = less.min() - 1 if len(less) else len(falling) - 1
    return int(np.clip(aim, low, high)) if low <= high else int(rung)
