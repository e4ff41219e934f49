"""Say what the theory promises for a problem, and which solver to use within a budget.

The theory's stages, steps and expected calls for DDPM, DPUM, RTK-ULD and RTK-MALA, the terms of its
KL bound, whether the inner steps are stable, and a recommendation from measured data, which
`ardiff sample --config` takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

PLAN = ".plan.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a shipped name, or a model folder; or the next three")
    parser.add_argument("--path", help="of the model: ou, edm, flow, vp-cosine, ...")
    parser.add_argument("--dim", type=int, help="elements of a sample, over all its patches")
    parser.add_argument("--patches", type=int, help="patches K that are drawn in turn, default 1")
    parser.add_argument(
        "--lipschitz", "--L", type=float, metavar="L",
        help="Lipschitz constant of the score on the OU path, for data of unit scale; default that "
        "of the model, measured",
    )  # fmt: skip
    parser.add_argument(
        "--accuracy", type=float, metavar="EPS",
        help="error that is wanted, default 0.1; without --calls and --seconds the budget too: the "
        "fewest calls that were measured to reach it",
    )  # fmt: skip
    parser.add_argument("--calls", type=int, help="budget: model calls per patch")
    parser.add_argument(
        "--seconds", type=float, help="budget: time of a batch here, measured with the model"
    )
    parser.add_argument("--batch", type=int, default=128, help="images drawn together, default 128")
    parser.add_argument(
        "--score", default="learned", help="exact, learned (default) or guided: whose measurements"
    )
    parser.add_argument("--guidance", type=float, help="classifier-free guidance scale, of a model")
    parser.add_argument(
        "--scale", type=float,
        help="root mean square length of a sample, or of a patch, where it is known",
    )  # fmt: skip
    parser.add_argument(
        "--second-moment", type=float, help="E |x0|^2 of the data, default the number of elements"
    )
    parser.add_argument(
        "--score-error", type=float, default=0.0, help="root mean square error of the score"
    )
    parser.add_argument(
        "--out", type=Path, metavar=f"FILE{PLAN}", help="write what ardiff sample --config takes"
    )


def run(args: argparse.Namespace) -> tuple[dict, int]:
    from ._parser import writable

    if args.out is not None and not args.out.name.endswith(PLAN) and not args.out.is_dir():
        raise ValueError(f"--out: expected a name ending in {PLAN}, got {args.out}")
    writable(args.out, "--out")

    from ..planning.plan import make_plan
    from ..planning.plan_file import write_plan

    choices = (
        "model", "path", "dim", "patches", "lipschitz", "accuracy", "calls", "seconds", "score",
        "guidance", "scale", "second_moment", "score_error", "batch", "seed",
    )  # fmt: skip
    made = make_plan(**{name: getattr(args, name) for name in choices})
    print(made)
    if args.out is not None:
        write_plan(args.out, made.sample)
        print(args.out)
    return {**made.as_dict(), "out": None if args.out is None else str(args.out)}, 0
