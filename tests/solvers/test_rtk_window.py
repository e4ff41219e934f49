"""A stage of rtk-hybrid and rtk-harmonic ends in their window on every grid, or they warn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import ardiff
from ardiff.tables.paths import GRIDS, get_path, time_grid
from ardiff.tables.table import COLUMNS

WINDOWS = {"rtk-hybrid": (0.1, 0.25), "rtk-harmonic": (0.1, 0.7)}
PLACES = (("edm", "sample"), ("flow", "flow"), ("vp-linear", "epsilon"))
SHIFT = COLUMNS["diffusion"].index("s_m")


def made(solver, steps=9, path="edm", prediction="sample", **options):
    return ardiff.solver(solver, path=path, prediction=prediction, steps=steps, **options)


def inner_rows(table) -> int:
    """Rows that call the model and shift the memories: the inner steps."""
    return int((table.calls_model & (table.coefficients[:, SHIFT] == 1)).sum())


def ends(path, table) -> np.ndarray:
    """sigma / alpha where the stages of a table end."""
    return get_path(path).ratio(np.unique(table.level)[::-1][1:])


@pytest.mark.parametrize("solver", WINDOWS)
@pytest.mark.parametrize("path,prediction", PLACES)
@pytest.mark.parametrize("grid", ["log-snr", "uniform", "karras"])
def test_a_stage_ends_in_the_window(solver, path, prediction, grid):
    """And where one did, no level is moved; where none did, one is, to the window's edge."""
    low, high = WINDOWS[solver]
    moved = 0
    for steps in range(3, 41):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            table = made(solver, steps, path, prediction, grid=grid)
        found = ends(path, table)
        held = (low <= found) & (found <= high)
        assert inner_rows(table) == held.sum() > 0 and table.calls <= steps
        named = get_path(path).ratio(time_grid(path, len(found) + 1, grid))[1:]
        if ((low <= named) & (named <= high)).any():
            np.testing.assert_array_equal(found, named)
            continue
        moved += 1
        (changed,) = np.flatnonzero(found != named)
        edge = high if named[changed] > high else low
        assert found[changed] == pytest.approx(edge, rel=1e-8)
        distance = np.abs(np.log(named[:-1] / np.clip(named[:-1], low, high)))
        assert changed == distance.argmin()
    assert moved or (solver, path, grid) == ("rtk-harmonic", "vp-linear", "log-snr")


@pytest.mark.parametrize("solver", WINDOWS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_has_a_stage_in_the_window_or_warns(solver, grid):
    """Some grids end above the window where they have few levels."""
    for steps in range(3, 13):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            table = made(solver, steps, "vp-linear", "epsilon", grid=grid, ratio_max=50.0)
        assert (inner_rows(table) > 0) == (not found), steps
        assert all("no stage ends" in str(w.message) for w in found)


EMPTY = {  # a solver with options: no stage ends in its window
    "given levels": ("rtk-hybrid", {"grid": [4.0, 1.0, 0.01], "steps": 3}, "are 1 and 0.01. So"),
    "two levels": ("rtk-hybrid", {"steps": 2}, "are 0.002. So"),
    "ends above": ("rtk-harmonic", {"ratio_min": 1.5}, "are 1.5. So"),
    "ends below": ("rtk-harmonic", {"ratio_max": 0.09}, "0.0559. So"),
    "no room": ("rtk-harmonic-mala", {"steps": 6}, "are 1.47 and 0.0543. So"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_window_is_told_once(name):
    solver, options, nearest = EMPTY[name]
    with pytest.warns(UserWarning, match="no stage ends at a sigma / alpha in the window") as found:
        table = made(solver, **options)
        made(solver, **options)  # the same table
    (message,) = found
    assert nearest in str(message.message) and message.filename == __file__
    assert inner_rows(table) == 0


def test_without_inner_step_rtk_hybrid_is_dpmpp_2m():
    grid = [4.0, 1.2, 0.3, 0.01]
    with pytest.warns(UserWarning, match="and is dpmpp-2m: take more steps"):
        table = made("rtk-hybrid", 4, grid=grid)
    other = made("dpmpp-2m", 4, grid=grid)
    np.testing.assert_allclose(table.coefficients, other.coefficients, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("solver", WINDOWS)
def test_given_levels_in_the_window_do_not_warn(solver):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inner_rows(made(solver, 4, grid=[4.0, 0.9, 0.2, 0.01])) == 1
