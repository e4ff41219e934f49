"""Learn a table of few steps for a model's patches, and write it as a file.

The starting points are noise of held-out ids, and the contexts those of images that the model has
drawn; the table's samples end where the model's own ODE ends.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

TABLE = ".table.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="sun-shadow", help="a shipped name, or a model folder")
    parser.add_argument("--steps", type=int, default=8, help="model calls per patch, default 8")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance scale")
    parser.add_argument("--runs", type=int, default=128, help="starting points of a batch")
    parser.add_argument("--images", type=int, default=32, help="drawn for their contexts")
    parser.add_argument("--teacher-steps", type=int, default=100, help="of the exact ODE")
    parser.add_argument("--iterations", type=int, default=30, help="at most, default 30")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of the fit, at most")
    parser.add_argument(
        "--out", type=Path, default=Path(f"out/learned{TABLE}"), metavar=f"FILE{TABLE}",
        help=f"default out/learned{TABLE}",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw levels and weights")


def run(args: argparse.Namespace) -> tuple[dict, int]:
    from ._parser import writable

    writable(args.out, "--out", ".json")
    writable(args.plot, "--plot", ".svg")
    if args.images < 1:
        raise ValueError(f"--images: expected at least 1, got {args.images}")

    import torch
    from tqdm import tqdm

    from .._files import replacing
    from ..ar.sampler import ARSampler, load
    from ..training.learn_table import learn_table

    model = load(args.model)
    if args.guidance is not None and model.null is None:
        raise ValueError("--guidance: the model was trained without context dropout")
    images = ARSampler(model, steps=48).sample(args.images, seed=args.seed).images
    with torch.no_grad():
        contexts = model.context.encode(model.to_patches(images)).flatten(0, 1)
    generator = torch.Generator().manual_seed(args.seed)

    def condition(batch: int) -> torch.Tensor:
        return contexts[torch.randint(len(contexts), (args.runs,), generator=generator)]

    guided = {} if args.guidance is None else {"guidance": args.guidance}
    with tqdm(total=args.iterations, unit="iteration", disable=None) as bar:

        def progress(done: int, total: int, error: float) -> None:
            bar.update(done - bar.n)
            bar.set_postfix(error=f"{error:.3g}")

        found = learn_table(
            model.denoiser, (args.runs, model.patch_dim), path=model.path,
            prediction=model.prediction, steps=args.steps, condition=condition,
            uncond=None if model.null is None or not guided else model.null.expand(args.runs, -1),
            ratio_max=model.config.ratio_max, teacher_steps=args.teacher_steps,
            iterations=args.iterations, seconds=args.seconds, seed=args.seed, progress=progress,
            **guided,
        )  # fmt: skip
    found.save(args.out)
    if args.plot is not None:
        with replacing(args.plot) as temporary:
            temporary.write_text(found.svg())
    print(found)
    print(args.out)
    figures = {name: getattr(found, name) for name in _FIGURES}
    return {**figures, "rows": found.rows.tolist(), "out": str(args.out)}, 0


_FIGURES = (
    "learned", "error", "start", "start_error", "others", "teacher_error", "calls", "seconds",
)  # fmt: skip
