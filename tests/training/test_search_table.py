"""`search_table`: finds noise and levels that a judge of samples prefers, and never worse than its
start on seeds that it has not used."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ardiff
from ardiff.data.mixture import GaussianMixture
from ardiff.tables.table import StepTable
from ardiff.training.search_table import FIRST_SEED, STARTS, Choice, choice_table, search_table

PLACE = {"path": "edm", "prediction": "sample"}


MIXTURE = GaussianMixture([[-1.0], [0.5]], 0.01, torch.tensor([0.4, 0.6]))
MODEL = MIXTURE.model(**PLACE)
QUANTILES = (
    MIXTURE.sample(200_000, torch.Generator().manual_seed(0))[:, 0].sort().values.view(2000, -1)
).mean(1)


def judge(table: StepTable, seed: int) -> float:
    """Distance W2 of 2,000 samples to the mixture."""
    x = ardiff.sample(MODEL, (2000, 1), table=table, seed=seed)[:, 0].double().sort().values
    return float((x - QUANTILES).square().mean().sqrt())


def search(judge=judge, **options):
    return search_table(judge, **{**PLACE, "steps": 6, "generations": 6, "held_out": 4, **options})


def test_a_searched_table_is_better_on_seeds_that_were_not_used():
    found = search()
    assert found.learned and found.tables == 12 + 6 * 10 + 2 * 4
    start = judged_start(found)
    seeds = range(100, 106)
    less = np.array([judge(start, seed) - judge(found.table, seed) for seed in seeds])
    assert less.mean() > 4 * less.std(ddof=1) / math.sqrt(len(less)) and less.min() > 0


def judged_start(found) -> StepTable:
    name, high, low, rho = found.start.replace(" to ", ", ").replace("rho ", "").split(", ")
    eta, p = STARTS[name]
    ends = [math.log(float(v)) for v in (high, low, rho)]
    return choice_table(Choice(*ends, eta, eta, p, p), **PLACE, steps=6)


@pytest.mark.parametrize("solver", STARTS)
def test_the_starts_are_the_solvers_of_their_names(solver):
    eta, p = STARTS[solver]
    choice = Choice(math.log(40.0), math.log(0.01), math.log(5.0), eta, eta, p, p)
    grid = {"grid": "karras", "ratio_max": 40.0, "ratio_min": 0.01, "rho": 5.0}
    table = ardiff.solver(solver, **PLACE, steps=7, **grid)
    found = choice_table(choice, **PLACE, steps=7)
    used = [table.column(name).any() for name in ("x_x", "x_0", "x_m", "x_n")]
    assert used == [True, True, bool(p), bool(eta)]
    for name in ("p_x", "p_o", "x_x", "x_0", "x_m", "x_n"):
        assert np.allclose(found.column(name), table.column(name), rtol=1e-12, atol=1e-15)


def test_a_judge_that_finds_no_difference_returns_the_start():
    found = search(lambda table, seed: float(seed % 7))
    assert not found.learned and found.start in found.others
    assert "no gain was found" in str(found)
    start = judged_start(found)
    assert np.allclose(found.table.coefficients, start.coefficients, rtol=1e-12, atol=1e-15)


def test_a_gain_of_chance_is_no_gain():
    """The control: a judge of noise alone, of which a search always finds something good."""
    rng = np.random.default_rng(0)
    assert not any(search(lambda *_: rng.normal(), seed=seed).learned for seed in range(3))


def test_equal_arguments_give_equal_tables_and_seeds_are_its_own():
    seen = set()

    def noted(table, seed):
        seen.add(seed)
        return judge(table, seed)

    again = [search(noted, generations=2, held_out=2) for _ in range(2)]
    assert np.array_equal(*(found.table.coefficients for found in again))
    assert min(seen) >= FIRST_SEED and len(seen) == 1 + 2 + 2


def test_the_budget_ends_the_search_and_progress_is_told(tmp_path):
    told = []
    found = search(seconds=1e-9, progress=lambda *args: told.append(args))
    assert not told and found.tables == 12 + 2 * 4 and not found.learned
    found = search(generations=3, held_out=2, progress=lambda *args: told.append(args))
    assert [(done, every) for done, every, _ in told] == [(1, 3), (2, 3), (3, 3)]
    found.save(tmp_path / "mine.table.json")
    loaded = StepTable.load(tmp_path / "mine.table.json")
    assert np.array_equal(loaded.coefficients, found.table.coefficients)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"judge": 3}, TypeError, "judge must be callable, judge(table, seed), got int"),
        ({"judge": lambda *_: "x"}, TypeError, "judge must return a number, got str"),
        ({"judge": lambda *_: math.nan}, ValueError, "the judge of every standard table is NaN"),
        ({"steps": 2}, ValueError, "steps must be an integer >= 3, got 2"),
        ({"generations": 0}, ValueError, "generations must be an integer >= 1, got 0"),
        ({"held_out": 1}, ValueError, "held_out must be an integer >= 2, got 1"),
        ({"seconds": 0}, ValueError, "seconds must be positive, got 0"),
        ({"prediction": "noise"}, ValueError, "noise"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(").replace(")", r"\)")):
        search(**options)
