"""The budget of the GPU kernels: registers, spills, memory and access widths of the compiled code.

`python -m tests.kernels.compiled.kernel_budget` compiles the Triton and CUDA kernels, prints the
table and compares it with kernel_budget.json; `--write` makes what it measured the budget, which a
commit then says why. The tests compare what they compile anyway.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from tests import ROOT
from tests._support import build_cache
from tests.kernels.compiled import sass

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m tests.kernels.compiled.kernel_budget --write"
TARGETS = ("sm_80", "sm_90")
TRITON_SCRIPTS = [
    *sorted((ROOT / "tests/kernels").glob("*/static.py")),
    ROOT / "tests/kernels/compiled/triton_static.py",
]
KEY = ("backend", "op", "case", "target")
# What another compiler may not exceed either; the rest is its choice.
ALWAYS = ("spills", "shared_bytes", "local_bytes")


def budget_row(backend: str, row: dict) -> dict:
    """What the budget holds of a measured row. `spills` counts instructions that access local
    memory; `loads` and `stores` count global accesses by bits per lane."""
    accesses = {
        f"{kind}s": {
            name.removeprefix(f"{kind}_"): count
            for name, count in row.items()
            if name.startswith(f"{kind}_") and count
        }
        for kind in ("load", "store")
    }
    sizes = {name: row[name] for name in ("registers", "shared_bytes", "local_bytes")}
    place = {"backend": backend, **{name: row[name] for name in KEY[1:]}}
    return {**place, **sizes, "spills": row["local_instructions"], **accesses}


def budget_rows(backend: str, rows: Iterable[dict]) -> list[dict]:
    return [budget_row(backend, row) for row in rows if row["target"] in TARGETS]


def key_of(row: dict) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def title(row: dict) -> str:
    return f"{row['backend']} {row['op']} ({row['case']}) on {row['target']}"


def quantities(row: dict) -> dict[str, int]:
    flat = {name: value for name, value in row.items() if isinstance(value, int)}
    for kind in ("loads", "stores"):
        flat |= {f"{bits}-bit {kind}": count for bits, count in row[kind].items()}
    return flat


def breaches(measured: list[dict], budget: list[dict], same_compiler: bool) -> Iterator[str]:
    """A sentence for each quantity past its budget, each kernel without a row, and each row
    without a kernel among those of the measured ops."""
    allowed = {key_of(row): row for row in budget}
    for row in measured:
        if key_of(row) not in allowed:
            yield f"{title(row)} has no row in {FILE.name}: run `{COMMAND}`"
            continue
        limits = quantities(allowed[key_of(row)])
        for name, value in quantities(row).items():
            if (same_compiler or name in ALWAYS) and value > limits.get(name, 0):
                yield f"{title(row)}: {name} {value} > budget {limits.get(name, 0)}"
    ours = {(row["backend"], row["op"]) for row in measured}
    gone = {key for key in allowed if key[:2] in ours} - {key_of(row) for row in measured}
    for key in sorted(gone):
        yield f"{title(allowed[key])} is in {FILE.name} but was not compiled: run `{COMMAND}`"


def check(backend: str, rows: list[dict], compiler: str) -> None:
    """Raises AssertionError with every breach of the checked-in budget. `rows` are measured, of
    whole ops; with another compiler than the budget's, registers and widths are not compared."""
    stored = json.loads(FILE.read_text())
    same = stored["compilers"][backend] == compiler
    if not same:
        warnings.warn(
            f"the {backend} budget is of {stored['compilers'][backend]}, this is {compiler}: "
            f"only {', '.join(ALWAYS)} are compared",
            stacklevel=2,
        )
    found = list(breaches(budget_rows(backend, rows), stored["rows"], same))
    assert not found, "\n".join(
        [*found, f"If this is meant: `{COMMAND}`, and say why in the commit."]
    )


def triton_compiler() -> str:
    return "triton " + ".".join(version("triton").split(".")[:2])


def cuda_compiler(nvcc: str) -> str:
    from tests.kernels.compiled import cuda_static

    return f"nvcc {cuda_static.version(nvcc)}"


def table(rows: Iterable[dict]) -> str:
    """The rows as aligned columns; accesses as count x bits."""
    head = ("kernel", "registers", "spills", "shared", "local", "loads", "stores")
    lines = [head]
    for row in rows:
        sizes = (row[name] for name in ("registers", "spills", "shared_bytes", "local_bytes"))
        widths = (
            " ".join(f"{count}x{bits}" for bits, count in row[kind].items()) or "-"
            for kind in ("loads", "stores")
        )
        lines.append((title(row), *map(str, sizes), *widths))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def run_triton(script: Path) -> list[dict]:
    """What a script of `TRITON_SCRIPTS` measures, in a process without TRITON_INTERPRET; once per
    content of the kernels and of the scripts."""

    def make(folder: Path) -> None:
        env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
        done = subprocess.run(
            [sys.executable, str(script)], env=env, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{script.name} failed:\n{done.stderr}")
        (folder / "rows.json").write_text(done.stdout)

    inputs = [*(ROOT / "ardiff_kernels").rglob("*.py"), script]
    inputs += [TRITON_SCRIPTS[-1], Path(sass.__file__)]
    facts = [sys.version, version("torch"), version("triton"), sass.find_cuobjdump()]
    name = f"triton-{script.parent.name}-{script.stem}"
    return json.loads((build_cache.cached(name, inputs, facts, make) / "rows.json").read_text())


def measure(backend: str) -> tuple[str, list[dict]]:
    """The compiler of a backend and what its kernels use."""
    if backend == "triton":
        scripts = [script for script in TRITON_SCRIPTS if script.stem != "cuda_static"]
        return triton_compiler(), [row for script in scripts for row in run_triton(script)]
    from tests.kernels.compiled import cuda_static

    nvcc = cuda_static.find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc was not found: set CUDA_HOME, or name the backend triton alone")
    compiled = cuda_static.compile_all(nvcc).values()
    return cuda_compiler(nvcc), [row for result in compiled for row in result.rows]


def write(stored: dict) -> None:
    """One row per line, so that a change of the budget reads as one line of a diff."""
    rows = ",\n".join("  " + json.dumps(row) for row in sorted(stored["rows"], key=key_of))
    compilers = json.dumps(stored["compilers"])
    FILE.write_text(f'{{\n "compilers": {compilers},\n "rows": [\n{rows}\n ]\n}}\n')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backends", nargs="*", default=[], help="triton, cuda; both when left out")
    parser.add_argument("--write", action="store_true", help="make what is measured the budget")
    options = parser.parse_args()
    stored = json.loads(FILE.read_text()) if FILE.exists() else {"compilers": {}, "rows": []}
    failed = False
    for backend in options.backends or ("triton", "cuda"):
        compiler, measured = measure(backend)
        print(table(budget_rows(backend, measured)), flush=True)
        if options.write:
            stored["compilers"][backend] = compiler
            others = [row for row in stored["rows"] if row["backend"] != backend]
            stored["rows"] = others + budget_rows(backend, measured)
            write(stored)
            continue
        try:
            check(backend, measured, compiler)
        except AssertionError as error:
            failed = True
            print(error, file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
