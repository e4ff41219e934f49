"""What the module of `StepTable` says of a table, and how a table prints."""

from __future__ import annotations

import ardiff
from ardiff.tables import table as module
from ardiff.tables.table import COLUMNS, WIDTH


def test_the_drawings_have_the_columns_of_the_ops():
    lines = [line.strip() for line in module.__doc__.splitlines() if " | " in line]
    drawn = [
        line.replace("|", " ").split() for line in lines if line[:3] in ("p_x", "x_3", "z_z", "g_z")
    ]
    drawn[0] += drawn.pop(1)  # a diffusion row is drawn in two lines
    assert len(drawn) == len(COLUMNS)
    for columns, names in zip(COLUMNS.values(), drawn, strict=True):
        assert tuple(names[: len(columns)]) == columns
        unused = WIDTH - len(columns)
        assert names[len(columns) :] == ([str(unused), "unused"] if unused else [])


def test_a_table_prints_as_the_module_shows():
    table = ardiff.solver("ddpm", path="ou", prediction="sample", steps=3)
    shown = module.__doc__.split("``print(table)``")[1].split("::\n\n")[1]
    assert str(table).splitlines() == [line.strip() for line in shown.strip().splitlines()]


def test_rows_print_their_marks():
    table = ardiff.solver(
        "rtk-mala-projected", path="ou", prediction="score", steps=8, inner=1, accept="simpson",
        dim=2,
    )  # fmt: skip
    first, moved, halfway, accepted = str(table).splitlines()[1:5]
    assert first.startswith("0 diffusion 3.6892 call, ball_margin: p_x")
    assert moved.startswith("1 diffusion 0.038481 call, saves_origin: p_x")
    assert halfway == "2 accept 0.038481 call, midpoint:"
    assert accepted.startswith("3 accept 0.038481 call: g_d") and "r2" in accepted
