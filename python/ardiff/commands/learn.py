"""Learn a table of few steps for a model's patches, and write it as a file.

By `--judge ode` the table's samples end where the model's own ODE ends: the starting points are
noise of held-out ids, and the contexts those of images that the model has drawn. By `--judge
sun-shadow` it is a table with noise whose images are best by the figures of Sun/Shadow.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..models.image_model import ARModel
    from ..tables.table import StepTable

TABLE = ".table.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="sun-shadow", help="a shipped name, or a model folder")
    parser.add_argument("--steps", type=int, default=8, help="model calls per patch, default 8")
    parser.add_argument(
        "--judge", choices=("ode", "sun-shadow"), default="ode",
        help="what is fitted to: the model's exact ODE, or the figures of Sun/Shadow images",
    )  # fmt: skip
    parser.add_argument("--guidance", type=float, help="classifier-free guidance scale")
    parser.add_argument("--runs", type=int, default=128, help="starting points of a batch")
    parser.add_argument(
        "--images", type=int,
        help="drawn for their contexts (ode, default 32), or for each judging (default 1000)",
    )  # fmt: skip
    parser.add_argument("--teacher-steps", type=int, default=100, help="of the exact ODE")
    parser.add_argument("--iterations", type=int, default=30, help="at most, default 30")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="of the fit or the search, at most"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(f"out/learned{TABLE}"), metavar=f"FILE{TABLE}",
        help=f"default out/learned{TABLE}",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw levels and weights")


def run(args: argparse.Namespace) -> tuple[dict, int]:
    from ._parser import writable

    writable(args.out, "--out", ".json")
    writable(args.plot, "--plot", ".svg")
    if args.images is not None and args.images < 1:
        raise ValueError(f"--images: expected at least 1, got {args.images}")
    if args.judge != "ode" and args.plot is not None:
        raise ValueError("--plot: draws tables fitted to the ODE alone")

    from ..ar.sampler import load

    model = load(args.model)
    if args.guidance is not None and model.null is None:
        raise ValueError("--guidance: the model was trained without context dropout")
    return (_to_ode if args.judge == "ode" else _to_images)(args, model)


def _to_ode(args: argparse.Namespace, model: ARModel) -> tuple[dict, int]:
    import torch
    from tqdm import tqdm

    from .._files import replacing
    from ..ar.sampler import ARSampler
    from ..training.learn_table import learn_table

    images = ARSampler(model, steps=48).sample(args.images or 32, seed=args.seed).images
    with torch.no_grad():
        contexts = model.context.encode(model.to_patches(images)).flatten(0, 1)
    generator = torch.Generator().manual_seed(args.seed)

    def condition(batch: int) -> torch.Tensor:
        return contexts[torch.randint(len(contexts), (args.runs,), generator=generator)]

    guided = {} if args.guidance is None else {"guidance": args.guidance}
    with tqdm(total=args.iterations, unit="iteration", disable=None) as bar:
        found = learn_table(
            model.denoiser, (args.runs, model.patch_dim), path=model.path,
            prediction=model.prediction, steps=args.steps, condition=condition,
            uncond=None if model.null is None or not guided else model.null.expand(args.runs, -1),
            ratio_max=model.config.ratio_max, teacher_steps=args.teacher_steps,
            iterations=args.iterations, seconds=args.seconds, seed=args.seed,
            progress=_shown(bar), **guided,
        )  # fmt: skip
    found.save(args.out)
    if args.plot is not None:
        with replacing(args.plot) as temporary:
            temporary.write_text(found.svg())
    print(found)
    print(args.out)
    figures = {name: getattr(found, name) for name in _FIGURES}
    return {**figures, "rows": found.rows.tolist(), "out": str(args.out)}, 0


def _to_images(args: argparse.Namespace, model: ARModel) -> tuple[dict, int]:
    from tqdm import tqdm

    from ..ar.sampler import ARSampler
    from ..data.sun_shadow_metrics import metrics, shortfall
    from ..training.search_table import GRIDS, search_table

    def judge(table: StepTable, seed: int) -> float:
        sampler = ARSampler(model, table=table, guidance=args.guidance)
        images = sampler.sample(args.images or 1000, seed=seed, nonfinite="ignore").images
        return shortfall(metrics(images.numpy()))

    config = model.config
    own = (config.ratio_max, config.ratio_min, config.rho)
    with tqdm(total=args.iterations, unit="generation", disable=None) as bar:
        found = search_table(
            judge, path=model.path, prediction=model.prediction, steps=args.steps,
            grids=[own, *GRIDS], seconds=args.seconds,
            generations=args.iterations, seed=args.seed, progress=_shown(bar),
        )  # fmt: skip
    found.save(args.out)
    print(found)
    print(args.out)
    gain, error = found.gain
    figures = {"learned": found.learned, "start": found.start, "others": found.others}
    figures |= {"gain": gain, "gain_error": error, "choice": found.choice._asdict()}
    figures |= {"tables": found.tables, "seconds": found.seconds, "out": str(args.out)}
    return figures, 0


def _shown(bar: tqdm) -> Callable[[int, int, float], None]:
    def progress(done: int, total: int, error: float) -> None:
        bar.update(done - bar.n)
        bar.set_postfix(error=f"{error:.3g}")

    return progress


_FIGURES = (
    "learned", "error", "start", "start_error", "others", "teacher_error", "calls", "seconds",
)  # fmt: skip
