"""Say what this installation can do: versions, CPU, backends and why one is not usable."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> tuple[dict, int]:
    from ardiff_kernels import collect_env

    del args
    found = collect_env.collect()
    print(collect_env.describe(found))
    return found, 0
