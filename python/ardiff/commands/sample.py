"""Draw images from a model and write them as one grid."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..planning.plan_file import SamplePlan

DEFAULT_SEED = None
MODEL = "sun-shadow"
GRID = ("grid", "ratio_max", "ratio_min", "rho", "shift")
SOLVER = ("solver", "steps", "stages", *GRID)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help=f"a shipped name, or a model folder; default {MODEL}")
    parser.add_argument("--solver", help="default: the best measured at so many steps")
    parser.add_argument("--steps", type=int, help="bound on model calls per patch, default 48")
    parser.add_argument("--stages", type=int, help="stages of an rtk-* solver")
    parser.add_argument("--table", metavar="FILE", help="a table file in place of the three above")
    parser.add_argument(
        "--config", metavar="FILE", help="a plan of ardiff plan, in place of solver options"
    )
    parser.add_argument("--grid", help="time grid, default the model's; see docs/solvers.md")
    parser.add_argument("--ratio-max", type=float, help="sigma / alpha at the grid's noisy end")
    parser.add_argument("--ratio-min", type=float, help="sigma / alpha at the grid's clean end")
    parser.add_argument("--rho", type=float, help="exponent of the karras grid")
    parser.add_argument("--shift", type=float, help="factor on sigma / alpha of the grid's levels")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance scale")
    parser.add_argument("--temperature", type=float, default=1.0, help="scales the step noise")
    parser.add_argument("--n", type=int, default=64, help="images, default 64")
    parser.add_argument("--batch", type=int, default=128, help="images drawn together")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1...")
    parser.add_argument("--backend", help="force a kernel backend: reference, cpu, triton, cuda")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="of Sun/Shadow images, print detection rate and R^2 of the shadow relation, untrimmed",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/samples.png"),
        metavar="FILE.png",
        help="default out/samples.png",
    )


def run(args: argparse.Namespace) -> tuple[dict, int]:
    from ._parser import check_backend, select_device, writable

    writable(args.out, "--out", ".png")
    if args.n < 1:
        raise ValueError(f"--n: expected at least 1, got {args.n}")
    check_backend(args.backend, select_device(args.device))
    _check_alone(args, "table", "a table fixes the solver", ("config", *SOLVER))
    _check_alone(args, "config", "a plan fixes the sampler", (*SOLVER, "guidance"))

    from tqdm import tqdm

    from .._files import replacing
    from ..ar.sampler import ARSampler, load
    from ..data.sun_shadow import SIZE
    from ..data.sun_shadow_metrics import metrics
    from ..noise import make_key
    from ._image_grid import image_grid

    seed = int(make_key(args.seed, "cpu"))
    name, plan, chosen = _choices(args)
    model = load(name, args.device)
    if plan is not None:
        plan.check_path(model.path)
    sampler = ARSampler(
        model, temperature=args.temperature, batch=args.batch, backend=args.backend, **chosen
    )
    size, channels = sampler.model.config.image_size, sampler.model.config.channels
    if args.measure and (channels, size) != (3, SIZE):
        raise ValueError(
            f"--measure: Sun/Shadow images are 3 x {SIZE} x {SIZE}, this model makes "
            f"{channels} x {size} x {size}"
        )
    with tqdm(total=args.n * sampler.model.config.patches, unit="patch", disable=None) as bar:
        drawn = sampler.sample(args.n, seed=seed, progress=lambda done, _: bar.update(done - bar.n))
    with replacing(args.out) as temporary:
        image_grid(drawn.images).save(temporary, format="PNG")
    stats = drawn.stats
    rate = args.n / stats.seconds
    made = f"{args.n} images of seed {seed}, {stats.calls} model calls each"
    print(f"{args.out}: {made}, {rate:.1f} images/s")
    found = {}
    if args.measure:
        found = metrics(drawn.images.cpu().numpy()).as_dict()
        names = ("detection", "r2", "r2_far")
        print(", ".join(f"{name} {found[name]:.4f}" for name in names))
    settings = {"model": name, "steps": max(sampler.steps), "n": args.n}
    settings |= {"solver": sampler.table.solver, "seed": seed}
    result = {"calls": stats.calls, "seconds": stats.seconds, "images_per_second": rate}
    return {**settings, **result, **found, "out": str(args.out)}, 0


def _choices(args: argparse.Namespace) -> tuple[str, SamplePlan | None, dict]:
    """The model's name, the plan if there is one, and what the sampler is told."""
    if args.config is None:
        chosen = {name: getattr(args, name) for name in (*SOLVER, "guidance", "table")}
        return args.model or MODEL, None, {k: v for k, v in chosen.items() if v is not None}
    from ..planning.plan_file import read_plan

    plan = read_plan(args.config)
    if plan.model is not None and args.model is not None:
        raise ValueError(f"--config: the plan is for model {plan.model}; leave --model out")
    return args.model or plan.model or MODEL, plan, plan.sampler_options()


def _check_alone(args: argparse.Namespace, fixing: str, why: str, fixed: tuple[str, ...]) -> None:
    """ValueError where an option is given beside the one, `fixing`, that decides it."""
    beside = [name for name in fixed if getattr(args, name) is not None]
    if getattr(args, fixing) is not None and beside:
        raise ValueError(f"--{fixing}: {why}; leave --{beside[0].replace('_', '-')} out")
