"""Say what this installation can do: versions, CPU, backends and why one is not usable.

The exit status is 1 where no compiled kernels can serve, so that scripts can check an installation.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> tuple[dict, int]:
    from ardiff_kernels import collect_env

    del args
    found = collect_env.collect()
    print(collect_env.describe(found))
    return found, int(found["only_reference"])
