"""Measure a suite of `benchmarks/`, in a checkout, against its rivals: ops, sampler, quality..."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

_ROOT = Path(__file__).resolve().parents[3]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", metavar="SUITE", help="a suite that benchmarks/ holds")
    parser.add_argument("--case", metavar="NAME", help="one case, such as uld_step/1024/float32")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1...")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds, default 9")
    parser.add_argument("--rivals", nargs="+", metavar="RIVAL", help="default: all of the suite")


def run(args: argparse.Namespace) -> tuple[dict, int]:
    from ._parser import select_device

    modules = _suite(args.suite)
    from benchmarks import _harness

    settings = _harness.Settings(
        device=select_device(args.device), rounds=args.rounds, rivals=args.rivals, seed=args.seed
    )
    report = _harness.run_suite(modules, args.case, settings)
    print(_harness.table(report["rows"]))
    return report, 1 if _harness.failures(report["rows"]) else 0


def _suite(name: str) -> list[ModuleType]:
    folder = _ROOT / "benchmarks"
    if not (folder / "_harness.py").exists():
        raise FileNotFoundError(
            f"benchmarks are not part of an installation, and {folder} does not hold them: install "
            "ardiff by `make build` in a checkout of the repository, or in an unpacked source "
            "distribution, and use that"
        )
    sys.path.insert(0, str(_ROOT))
    found = [
        importlib.import_module(f"benchmarks.{path.stem}")
        for path in sorted(folder.glob("bench_*.py"))
    ]
    modules = [module for module in found if name == module.SUITE]
    if not modules:
        known = ", ".join(sorted({module.SUITE for module in found}))
        raise ValueError(f"unknown suite {name!r}: expected one of {known}")
    return modules
