"""denoise_token through `head_loop`, as on a GPU: the bits of the loop over rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ardiff.heads import token
from ardiff.heads.hoisting import numbers
from ardiff.heads.token import denoise_token
from ardiff.loop.run import make_schedule
from ardiff.tables.columns import DIFFUSION_COLUMNS
from ardiff.tables.ragged import RaggedTable
from tests._support.head_cases import BARE, CONTEXT, KEY, guided, head_of, rows, streams, table_of

SOLVERS = {
    "ddpm": 9,
    "dpmpp-2m": 9,
    "heun": 9,
    "flow-sde": 6,
    "rtk-ula": 12,
    "rtk-uld": 24,
    "rtk-baoab": 24,
}


@pytest.fixture
def anywhere(monkeypatch):
    """`head_loop` wherever a table allows it; returns the reasons against it."""
    reasons = []

    def unsuitable(table, schedule, x, ways):
        reasons.append(token.unsuitable_table(table, schedule))
        return reasons[-1]

    monkeypatch.setattr(token, "unsuitable", unsuitable)
    return reasons


@pytest.mark.parametrize("ways", [1, 2, 3])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", BARE)
def test_the_bits_of_the_loop_over_rows(anywhere, kind, solver, ways, monkeypatch):
    """With all sets held at once, and few at a time."""
    head, table, c = head_of(kind), table_of(kind, solver, SOLVERS[solver]), rows(5, CONTEXT)
    options = guided(5, ways == 3) if ways > 1 else {}
    options |= {"temperature": 0.8}
    found = denoise_token(head, c, table, KEY, 2, streams(5), **options)
    few = denoise_token(head, c, table, KEY, 2, streams(5), budget=20000, **options)
    assert anywhere == ["", ""]
    monkeypatch.undo()
    expected = denoise_token(head, c, table, KEY, 2, streams(5), **options)
    assert torch.equal(found, expected) and torch.equal(few, expected)


def test_ops_of_a_token(anywhere):
    """One op for all steps where all sets are held."""

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.found += "head_loop" in function.name()
            return function(*args, **(kwargs or {}))

    head, table, c = head_of("mar"), table_of("mar", "ddpm", 9), rows(2, CONTEXT)
    for budget, ops in ((1 << 20, 1), (1, 9)):
        with Count() as count:
            denoise_token(head, c, table, KEY, 0, streams(2), budget=budget)
        assert count.found == ops


@pytest.mark.parametrize("solver", ["rtk-mala", "rtk-obabo", "rtk-ubu"])
def test_tables_that_it_cannot_run_are_run_row_by_row(anywhere, solver, monkeypatch):
    head, table, c = head_of("mar"), table_of("mar", solver, 24), rows(2, CONTEXT)
    found = denoise_token(head, c, table, KEY, 0, streams(2))
    reason = anywhere[0]
    monkeypatch.undo()
    assert torch.equal(found, denoise_token(head, c, table, KEY, 0, streams(2)))
    runs_all = all(table.calls_model) and set(table.op) <= {"diffusion", "uld"}
    assert (reason == "") == (runs_all and table.memories == 1)


def test_tables_of_its_own_for_each_token():
    table = RaggedTable([table_of("mar", "ddpm", n) for n in (3, 4)], [0, 1])
    schedule = make_schedule(table, rows(2, 6))
    assert token.unsuitable_table(table, schedule) == "samples have tables of their own"


@pytest.mark.parametrize("column", ["x_u", "m_u"])
def test_rows_that_read_the_unconditional_prediction_are_run_one_by_one(column):
    table = table_of("mar", "ddpm", 3)
    coefficients = table.coefficients.copy()
    coefficients[1, DIFFUSION_COLUMNS.index(column)] = 0.1
    schedule = make_schedule(table, rows(2, 6))
    assert token.unsuitable_table(table, schedule) == ""
    changed = replace(table, coefficients=coefficients)
    for kind in (changed, changed.to("cpu")):
        reason = token.unsuitable_table(kind, make_schedule(kind, rows(2, 6)))
        assert reason == "the table reads the unconditional prediction"


def test_a_cpu_keeps_the_loop_over_rows():
    table = table_of("mar", "ddpm", 3)
    x = rows(2, 6)
    reason = token.unsuitable(table, make_schedule(table, x), x, 1)
    assert reason == "head_loop gains nothing where steps are no launches"


def test_numbers_are_made_once():
    device = torch.device("cpu")
    assert numbers((3, 1), device) is numbers((3, 1), device)
    assert numbers((3, 1), device).tolist() == [3, 1]


@pytest.mark.parametrize("option", ["x0_clamp", "noise"])
def test_what_the_op_lacks_is_run_row_by_row(anywhere, option, monkeypatch):
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 9), rows(2, CONTEXT)
    bare = denoise_token(head, c, table, KEY, 0, streams(2))
    options = {option: 0.5 if option == "x0_clamp" else rows(9, 2, bare.shape[1])}
    found = denoise_token(head, c, table, KEY, 0, streams(2), **options)
    monkeypatch.undo()
    assert torch.equal(found, denoise_token(head, c, table, KEY, 0, streams(2), **options))
    assert not torch.equal(found, bare) and not (found.is_inference() or bare.is_inference())
