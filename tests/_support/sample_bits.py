"""Bits of samples, recorded in `tests/golden/sample_bits.json`.

From the root of the repository, `python -m tests._support.sample_bits --write` records them, and
without `--write` says what differs. Only a change that is meant to change samples may write anew.

The noise agrees within 2e-6 between backends, not to the bit, so each backend has cases of its own.
The instruction sets of the C++ backend agree to the bit, where bfloat16 and int8 weights are
multiplied in the common way (``ARDIFF_CPU_EXACT=1``): one entry is for all of them. Models and
tables are made so that the bits are the same on every machine (:mod:`tests._support.exact`). Where
that cannot be (a head's conditions are matrix products of torch's), there is an entry for each kind
of machine that was met, told by a fingerprint of what the bits depend on. So it is with the bits of
the tables themselves, in float64. A machine of another kind compares the rest; `--write` there adds
its own entries. The entries of a CPU with AVX2 were made by one with AVX-512, in the environment

    NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" ATEN_CPU_CAPABILITY=avx2
    MKL_ENABLE_INSTRUCTIONS=AVX2
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import sys

import numpy as np

import ardiff
import ardiff_kernels
from ardiff.solvers import SOLVERS, solver_options
from ardiff.tables.paths import PATHS, PREDICTIONS
from ardiff.tables.table import StepTable
from ardiff_kernels import testing
from tests import ROOT
from tests._support.exact import (
    digest,
    numpy_print,
    one_thread,
    rounded_tables,
    torch_print,
    used_columns,
)  # fmt: skip
from tests._support.integration_cases import integration_cases
from tests._support.model_cases import model_cases
from tests._support.sample_cases import DIM, Case, sample_cases

SHOWN = 20
FILE = ROOT / "tests/golden" / "sample_bits.json"
CASES = sample_cases() | integration_cases() | model_cases()
PRINTS = {"numpy": functools.cache(numpy_print), "torch": functools.cache(torch_print)}


def missing(case: Case) -> str:
    """Why this machine cannot draw a case; empty if it can."""
    if case.needs and importlib.util.find_spec(case.needs) is None:
        return f"{case.needs} is not installed"
    if case.backend not in testing.usable_backends("uld_step"):
        return f"the backend {case.backend} cannot serve here"
    return ""


def bits(case: Case) -> dict[str, str]:
    """The digest of a case, for each instruction set on the backend cpu; tables are rounded."""
    sets = testing.cpu_isas() if case.backend == "cpu" else [""]
    found = {}
    for name in sets:
        with contextlib.ExitStack() as stack:
            stack.enter_context(rounded_tables())
            stack.enter_context(one_thread())
            if ardiff_kernels.chosen_backend("uld_step", "cpu") != case.backend:
                stack.enter_context(ardiff_kernels.backend(case.backend))
            if name:
                stack.enter_context(testing.cpu_dots("common"))
                stack.enter_context(testing.cpu_isa(name))
            found[name] = digest(*case.draw())
    return found


def table_bits(table: StepTable) -> str:
    """A digest of all that a table holds, in float64."""
    numbers = (used_columns(table), table.level, table.ball_margin, np.float64(table.init_scale))
    flags = (table.calls_model, table.saves_origin, table.midpoint, np.bool_(table.energy))
    found = hashlib.sha256(repr((table.op, table.path, table.prediction, table.solver)).encode())
    for array in (*numbers, *flags):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:8]


def tables(solver: str) -> dict[str, list[str]]:
    """Digests of a solver's tables on each path, one a prediction, as this machine makes them."""
    options = {"dim": DIM} if "dim" in solver_options(solver) else {}
    return {
        path: [
            table_bits(ardiff.solver(solver, path=path, prediction=p, steps=14, **options))
            for p in PREDICTIONS
        ]
        for path in PATHS
    }


def recorded() -> dict:
    return json.loads(FILE.read_text())


def update(record: dict) -> list[str]:
    """Brings a record up to date with what this machine draws; returns what has changed.

    Where an entry of this kind of machine has changed, those of other kinds are out of date too,
    and go.
    """
    changed, before = [], record.get("bits", {})
    found = {}
    for name, case in CASES.items():
        if missing(case):
            found[name] = before[name]
            continue
        ways = set(bits(case).values())
        if len(ways) > 1:
            raise AssertionError(f"{name}: the instruction sets of this CPU differ")
        (here,) = ways
        if not case.depends:
            found[name] = here
            stale = before.get(name) != here
        else:
            kind, known = PRINTS[case.depends](), before.get(name, {})
            stale = known.get(kind, here) != here
            found[name] = dict(sorted({**({} if stale else known), kind: here}.items()))
        changed += [name] * stale
    kind, kinds = PRINTS["numpy"](), record.get("tables", {})
    made = {solver: tables(solver) for solver in SOLVERS}
    if any(made.get(solver) != entry for solver, entry in kinds.get(kind, {}).items()):
        changed.append("tables")
        kinds = {}
    record["bits"] = dict(sorted(found.items()))
    record["tables"] = dict(sorted({**kinds, kind: made}.items()))
    return changed


def written(record: dict) -> str:
    """As JSON, an entry per line."""

    def lines(entries: dict, indent: str) -> str:
        rows = (f"{indent}{json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
        return "{\n" + ",\n".join(rows) + "\n" + indent[:-1] + "}"

    kinds = (f'  "{kind}": {lines(made, "   ")}' for kind, made in record["tables"].items())
    made = "{\n" + ",\n".join(kinds) + "\n }"
    return f'{{\n "bits": {lines(record["bits"], "  ")},\n "tables": {made}\n}}\n'


def main(arguments: list[str]) -> int:
    os.environ.setdefault("TRITON_INTERPRET", "1")
    record = recorded() if FILE.exists() else {}
    changed = update(record)
    shown = changed[:SHOWN] + ["..."] * (len(changed) > SHOWN)
    print(f"{len(CASES)} cases, {len(changed)} changed or new", *shown, sep="\n")
    if arguments == ["--write"]:
        FILE.write_text(written(record))
        return 0
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
