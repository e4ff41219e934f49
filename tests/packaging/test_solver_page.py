"""docs/solvers.md has a line for every solver and every grid, and for no other."""

from __future__ import annotations

import re

from ardiff.solvers import SOLVERS
from ardiff.tables.paths import GRIDS
from tests import ROOT

PAGE = (ROOT / "docs/solvers.md").read_text()


def named(text: str) -> list[str]:
    """The names that lines of tables begin with."""
    return re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)


def test_every_solver_and_grid_has_one_line():
    _, _, lists = PAGE.partition("\n## One call per step\n")  # before it, figures of some
    solvers, _, grids = lists.partition("\n## Grids\n")
    assert sorted(named(solvers)) == sorted(SOLVERS)
    assert sorted(named(grids)) == sorted(GRIDS)


def test_a_missing_line_is_found():
    text = PAGE.replace("| `dpmpp-3m` |", "| dpmpp-3m |")
    assert "dpmpp-3m" not in named(text) and "dpmpp-3m-sde" in named(text)


def test_what_is_no_table_is_said():
    assert "adaptive step size" in PAGE and "implicit Runge-Kutta" in PAGE
