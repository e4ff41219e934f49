"""`make demo`: 64 images from the shipped Sun/Shadow model by two solvers and a hand-written loop.

Writes out/demo/samples.png and out/demo/stats.json, and prints the same figures as a table. Each
may make 48 model calls per patch, the protocol of `tests/ar/test_sampler.py`; the table says how
many it made. They are timed in turns and the medians are shown; speeds against the loop are those
of a model call.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ardiff  # noqa: E402
from ardiff._files import replacing, write_json  # noqa: E402
from ardiff.commands._image_grid import image_grid, side_by_side  # noqa: E402
from ardiff.data.sun_shadow_metrics import metrics  # noqa: E402
from benchmarks.reference_ddpm import reference_ddpm  # noqa: E402

IMAGES, STEPS, SEED = 64, 48, 0
ROUNDS, BUDGET_SECONDS = 5, 35.0
SOLVERS = (ardiff.default_solver(STEPS), "ddpm")
REFERENCE = "reference-ddpm"


def competitors() -> tuple[dict[str, Callable[[], Tensor]], dict[str, int]]:
    """What is compared, by name, and the model calls per image of each."""
    model = ardiff.load("sun-shadow")
    samplers = {name: ardiff.ARSampler(model, solver=name, steps=STEPS) for name in SOLVERS}
    draw: dict[str, Callable[[], Tensor]] = {
        name: lambda s=sampler: s.sample(IMAGES, seed=SEED).images
        for name, sampler in samplers.items()
    }
    draw[REFERENCE] = lambda: reference_ddpm(model, IMAGES, STEPS, SEED)
    counted = {name: sampler.calls for name, sampler in samplers.items()}
    return draw, {**counted, REFERENCE: STEPS * model.config.patches}


def measure(draw: dict[str, Callable[[], Tensor]]) -> tuple[dict[str, list[float]], dict]:
    """Seconds of each round and the images of each competitor.

    A warm-up round is not counted; on a slow machine there are fewer than ROUNDS rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in draw}
    images = {}
    began = time.perf_counter()
    with tqdm(total=(ROUNDS + 1) * len(draw), unit="batch", disable=None) as bar:
        for turn in range(ROUNDS + 1):
            if turn > 1 and time.perf_counter() - began > BUDGET_SECONDS:
                break
            for name, run in draw.items():
                bar.set_postfix_str(name)
                start = time.perf_counter()
                images[name] = run()
                if turn > 0:
                    seconds[name].append(time.perf_counter() - start)
                bar.update()
    return seconds, images


def main() -> int:
    out = ROOT / "out" / "demo"
    out.mkdir(parents=True, exist_ok=True)
    draw, calls = competitors()
    seconds, images = measure(draw)
    rows, pictures = [], []
    for name in draw:
        a_call = {which: [s / calls[which] for s in seconds[which]] for which in (REFERENCE, name)}
        paired = [a / b for a, b in zip(a_call[REFERENCE], a_call[name], strict=True)]
        found = metrics(images[name].numpy())
        middle = statistics.median(seconds[name])
        row = {
            "solver": name,
            "calls": calls[name],
            "seconds": middle,
            "images_per_second": IMAGES / middle,
            "detection_rate": found.detection,
            "r2_constraint": found.r2,
            "r2_far": found.r2_far,
            "speed_against_reference": statistics.median(paired),
        }
        rows.append(row)
        caption = f"{name}, {calls[name]} calls, {row['images_per_second']:.0f} images/s"
        pictures.append(image_grid(images[name], caption=caption))
    with replacing(out / "samples.png") as temporary:
        side_by_side(pictures).save(temporary, format="PNG")
    write_json(out / "stats.json", rows)
    print(table(rows))
    print(f"{out / 'samples.png'}\n{out / 'stats.json'}")
    return 0


def table(rows: list[dict]) -> str:
    """The rows as aligned text."""
    head = list(rows[0])
    body = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *body]
    )


if __name__ == "__main__":
    sys.exit(main())
