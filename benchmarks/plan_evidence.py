"""The measurements that `ardiff plan` recommends a solver by: python/ardiff/planning/evidence.json.

    python -m benchmarks.plan_evidence [--kinds exact learned guided image] [--check-images]

measures every choice of solver and grid below on models of each kind at each budget, and writes
those of a kind in the place of its old ones. The targets are the mixtures `random_mixture` of seeds
1 to 6, on which solvers may be chosen; of kind ``learned`` each has two models, one perturbed and
one trained. ``image`` is the shipped model. It takes some tens of minutes of two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ardiff
from ardiff._files import replacing
from ardiff.data.sun_shadow import sun_shadow
from ardiff.data.sun_shadow_metrics import metrics
from ardiff.models.image_model import ARModel
from ardiff.planning import recommend
from ardiff.planning.recommend import Choice
from ardiff.study.intervals import geometric_mean
from ardiff.study.problems import make_problem

FILE = Path(recommend.__file__).with_name("evidence.json")
MIXTURES, SAMPLES, TRAINING_STEPS, NOISE_SEEDS = range(1, 7), 2000, 1000, (0, 1)
MODELS = {"exact": ("exact",), "learned": ("perturbed", "learned"), "guided": ("guided",)}
BUDGETS = (5, 6, 8, 10, 12, 16, 24, 32)
SOLVERS = (
    *("deis", "dpmpp-2m-sde", "dpmpp-3m-sde", "er-sde", "flow-sde", "ipndm", "rtk-harmonic"),
    *("sa", "seeds-3", "unipc"),
)
GRIDS: tuple[dict[str, Any], ...] = (
    {"ratio_min": {"smallest": 0.1}},
    {"ratio_min": {"scale": 0.02}},
    {"grid": "karras"},
)
CHOICES = (
    *((solver, grid) for solver in SOLVERS for grid in GRIDS),
    ("learned", {}),
    ("learned", {"scale": {"scale": 1.0}}),
    ("dpmpp-3m-sde", {"eta": 0.5, **GRIDS[0]}),
    ("dpmpp-3m-sde", {"eta": 0.5, **GRIDS[1]}),
)
IMAGE_SEEDS, IMAGES = (77, 78), 1000
IMAGE_BUDGETS = (5, 8, 16, 32)
FINAL = 1.15  # with most calls only choices within this of the best at the budget before are run
IMAGE_CHOICES = tuple(
    (solver, grid)
    for solver in ("ddpm", "dpmpp-2m-sde", "er-sde", "flow-sde", "rtk-harmonic", "seeds-3")
    for grid in (
        {"grid": "karras", "rho": 7.0, "ratio_min": 0.0064},
        {"grid": "karras", "rho": 7.0, "ratio_min": 0.02},
        {"grid": "log-snr", "ratio_min": 0.02},
    )
)
MISSING = 8.0  # px: what a scene without its sun, pole or shadow counts for
CHECK_SEEDS = (0, 1, 2, 3)
KEPT = 8  # choices of a budget that are written, the best; and those that need no length

Errors = dict[tuple[int, int], list[float]]  # of (budget, number of the choice), by seed


def errors_of(target: str, model: str) -> tuple[float, Errors]:
    """The floor of sliced W2 on a target, and the distances of all choices at all budgets."""
    torch.set_num_threads(1)
    problem = make_problem(target, model, SAMPLES, 0, TRAINING_STEPS)
    lengths = {"scale": problem.norm, "smallest": problem.smallest}
    found: Errors = {}
    for budget in BUDGETS:
        for number, (solver, options) in enumerate(CHOICES):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                try:
                    resolved = Choice(solver, options, 0.0).resolved(lengths)
                    table = problem.table(solver, budget, **resolved)
                except ValueError:  # too few calls
                    continue
            found[budget, number] = [
                problem.judge(problem.draw(table, seed))["sliced_w2"] for seed in NOISE_SEEDS
            ]
    return problem.judge.floor["sliced_w2"], found


def pooled(found: Sequence[tuple[float, Errors]], choices: Sequence) -> dict[str, dict]:
    """The floor and the best choices of each budget, by the geometric mean of all errors."""
    floor = geometric_mean(each for each, _ in found)
    budgets = sorted({budget for _, errors in found for budget, _ in errors})
    written = {}
    for budget in budgets:
        mean = {}
        for number in range(len(choices)):
            lists = [errors.get((budget, number)) for _, errors in found]
            if all(lists):
                mean[number] = geometric_mean(value for each in lists for value in each)
        order = sorted((n for n in mean if math.isfinite(mean[n])), key=mean.get)
        free = [n for n in order if not Choice(*choices[n], 0.0).needs()]
        scaled = [n for n in order if Choice(*choices[n], 0.0).needs() <= {"scale"}]
        kept = sorted({*order[:KEPT], *free[:2], *scaled[:2]}, key=order.index)
        written[str(budget)] = {
            "floor": _rounded(floor),
            "choices": [[*choices[n], _rounded(mean[n])] for n in kept],
        }
    return written


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def real_images() -> np.ndarray:
    """As many as are drawn."""
    return sun_shadow(IMAGES, seed=IMAGE_SEEDS[0])[0]


def scene_error(images: np.ndarray) -> float:
    """Mean error of the shadows in px, scenes whose parts are not found taken for wrong ones."""
    found = metrics(images)
    return found.shadow_error * found.detection + MISSING * (1 - found.detection)


def drawn_errors(
    model: ARModel, solver: str, budget: int, grid: dict, seeds: Sequence[int]
) -> list[float]:
    """The errors of images of each seed."""
    sampler = ardiff.ARSampler(model, solver, steps=budget, **_over_config(grid))
    return [scene_error(sampler.sample(IMAGES, seed=seed).images.numpy()) for seed in seeds]


def image_errors() -> tuple[float, Errors]:
    """The floor, of real images, and what images of the shipped model lack."""
    torch.set_num_threads(1)
    real = scene_error(real_images())
    model, found = ardiff.load("sun-shadow"), {}
    entered = range(len(IMAGE_CHOICES))
    for budget in IMAGE_BUDGETS:
        mean = {}
        for number in entered:
            solver, grid = IMAGE_CHOICES[number]
            found[budget, number] = drawn_errors(model, solver, budget, grid, IMAGE_SEEDS)
            mean[number] = geometric_mean(found[budget, number])
        if budget == IMAGE_BUDGETS[-2]:
            entered = [n for n in entered if mean[n] <= FINAL * min(mean.values())]
    return real, found


def _over_config(grid: dict[str, Any]) -> dict[str, Any]:
    """A grid that takes nothing of the model's config."""
    return {"rho": None, "ratio_max": 40.0, **grid}


def measured(kinds: Sequence[str]) -> Iterator[tuple[str, dict[str, dict]]]:
    """The measurements of each kind."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        started = {
            kind: [
                pool.submit(errors_of, f"random-{seed}", model)
                for model in MODELS[kind]
                for seed in MIXTURES
            ]
            for kind in kinds
            if kind in MODELS
        }
        image = pool.submit(image_errors) if "image" in kinds else None
        for kind, jobs in started.items():
            yield kind, pooled([job.result() for job in jobs], CHOICES)
        if image is not None:
            yield "image", pooled([image.result()], IMAGE_CHOICES)


def check_images() -> None:
    """Prints, on seeds that nothing was chosen on, what is recommended beside the other choices."""
    torch.set_num_threads(1)
    model = ardiff.load("sun-shadow")
    for budget in IMAGE_BUDGETS:
        _, choices = recommend.evidence()["image"][budget]
        errors = {
            str(each): geometric_mean(
                drawn_errors(model, each.solver, budget, each.options, CHECK_SEEDS)
            )
            for each in choices
        }
        best = min(errors, key=errors.get)
        plan = recommend.recommend(budget, dim=model.patch_dim)
        first = next(
            str(each)
            for each in choices
            if (each.solver, each.options) == (plan.solver, plan.options)
        )
        print(
            f"{budget} calls: {first} {errors[first]:.4f}; best of {len(choices)}: {best} "
            f"{errors[best]:.4f}; ratio {errors[first] / errors[best]:.3f}",
            flush=True,
        )


def write(found: dict[str, dict[str, dict]]) -> None:
    """Puts measurements in the place of those of their kinds."""
    kept = json.loads(FILE.read_text())["kinds"] if FILE.exists() else {}
    lines = [
        f'  "{kind}": {{\n' + ",\n".join(_lines(budgets)) + "\n  }"
        for kind, budgets in {**kept, **found}.items()
    ]
    with replacing(FILE) as temporary:
        temporary.write_text('{"kinds": {\n' + ",\n".join(lines) + "\n}}\n")


def _lines(budgets: dict[str, dict]) -> Iterator[str]:
    for budget, found in budgets.items():
        choices = ",\n      ".join(json.dumps(each) for each in found["choices"])
        yield f'    "{budget}": {{"floor": {found["floor"]}, "choices": [\n      {choices}]}}'


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what `ardiff plan` recommends by.")
    parser.add_argument(
        "--kinds", nargs="+", choices=recommend.KINDS, default=list(recommend.KINDS), metavar="KIND"
    )
    parser.add_argument(
        "--check-images", action="store_true", help="compare the choices on other seeds, print"
    )
    asked = parser.parse_args(arguments)
    if asked.check_images:
        check_images()
        return
    for kind, found in measured(asked.kinds):
        write({kind: found})
        print(kind, flush=True)


if __name__ == "__main__":
    main()
