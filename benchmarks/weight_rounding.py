"""What narrower weights cost a trained model: errors over whole autoregressive runs, and figures of
the images beside what the seed of the noise changes.

    python -m benchmarks.weight_rounding [--images 300] [--seeds 6] [--threads 1]

prints the tables of docs/systems.md. The model is the shipped one with its weights moved within
half a step of bfloat16, as it was before it was rounded for shipping: else rounding to bfloat16
would change nothing. All runs of a seed have the same noise; the reference is computed in float64
throughout. The head runs as it does in use, on `head_step` with the weights of a row; the encoder
as its float32 modules with matrices rounded as `pack_linear` rounds them.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import ardiff
from ardiff.ar.sampler import ARSampler
from ardiff.data.sun_shadow_metrics import metrics
from ardiff.models import ARModel
from ardiff.noise import Purpose, counter_word, initial_state, make_key, stream_of
from ardiff.study.text import figure, table
from ardiff.tables.table import COLUMNS, StepTable
from ardiff_kernels import ops
from ardiff_kernels.ops.packed_linear.packing import quantize_rows

FIGURES = ("detection", "r2", "r2_far", "side", "shadow_error")
KNOWN = {"p_x", "p_o", "x_x", "x_0", "x_m", "x_n", "m_x", "m_0"}  # columns of the loop in float64
MOVE_SEED = 0


class Variant(NamedTuple):
    """Dtypes of the weights of an encoder's and a head's matrices."""

    encoder: str
    head: str


VARIANTS = (
    Variant("float32", "float32"),
    Variant("bfloat16", "float32"),
    Variant("float32", "bfloat16"),
    Variant("bfloat16", "bfloat16"),
    Variant("int8", "float32"),
    Variant("float32", "int8"),
    Variant("int8", "int8"),
)


@torch.no_grad()
def off_the_grid(model: ARModel, seed: int = MOVE_SEED) -> ARModel:
    """A copy with float32 matrices, drawn evenly from what rounds to the model's in bfloat16."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            mantissa, exponent = torch.frexp(weight)
            step = torch.ldexp(torch.ones_like(weight), exponent - 8)  # bfloat16 keeps 8 bits
            step = torch.where(mantissa.abs() == 0.5, step / 2, step)  # as it is below a power of 2
            step = torch.where(weight == 0, 0.0, step)
            weight += 0.98 * step * (torch.rand(weight.shape, generator=generator) - 0.5)
    return model


@torch.no_grad()
def rounded_encoder(model: ARModel, dtype: str) -> ARModel:
    """A copy whose encoder's blocks have rounded matrices: bfloat16, or int8 with a scale a row."""
    model = copy.deepcopy(model)
    if dtype == "float32":
        return model
    for module in model.context.blocks.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            if dtype == "bfloat16":
                weight.copy_(weight.bfloat16())
            else:
                codes, scale = quantize_rows(weight)
                weight.copy_(codes.float() * scale[:, None])
    return model


def latents(sampler: ARSampler, count: int, seed: int) -> Tensor:
    """Normalised patches `[count, K, d]` of a sampler, clipped to the range of pixels."""
    parts = [part.pixels.flatten(1) for part in sampler.stream(count, seed)]
    patches = sampler.model.config.patches  # of a batch, one after another
    batches = [torch.stack(parts[i : i + patches], 1) for i in range(0, len(parts), patches)]
    return sampler.model.normalised(torch.cat(batches))


class Exact:
    """The runs of a sampler in float64: weights, state, contexts, time embeddings, coefficients.

    Raises:
        ValueError: a table of which this loop lacks something, a model with preconditioning.
    """

    def __init__(self, model: ARModel, step_table: StepTable) -> None:
        names = COLUMNS["diffusion"]
        used = {name for name in names if np.any(step_table.column(name) != 0)}
        if set(step_table.op) != {"diffusion"} or not used <= KNOWN:
            raise ValueError(
                f"expected a table of diffusion rows with columns of {sorted(KNOWN)}, got "
                f"{step_table.solver} with {sorted(used)}"
            )
        if model.config.preconditioning != "none":
            raise ValueError("expected a model without preconditioning")
        self.model, self.table = copy.deepcopy(model).double(), step_table

    def out(self, x: Tensor, level: float, context: Tensor) -> Tensor:
        """The head's output `[B, d]`."""
        head = self.model.head
        half = head.time_embed.features // 2
        angles = level * torch.exp(-math.log(10000.0) / half * torch.arange(half).double())
        features = torch.cat([angles.cos(), angles.sin()])
        y = head.time_embed.mlp(features) + head.cond_embed(context)
        h = head.input_proj(x)
        for block in head.res_blocks:
            h = block(h, y)
        return head.final_layer(h, y)

    @torch.no_grad()
    def latents(self, count: int, seed: int) -> Tensor:
        """As :func:`latents`."""
        model, config = self.model, self.model.config
        key = make_key(seed, "cpu")
        made = torch.empty(count, 0, config.patch_dim, dtype=torch.float64)
        for k in range(config.patches):
            context = model.context.encode(made)[:, k]
            stream = stream_of(torch.arange(count), k)
            x = self._run(context, key, stream)
            made = torch.cat([made, model.clip(x, k)[:, None]], 1)
        return made

    def _run(self, context: Tensor, key: Tensor, stream: Tensor) -> Tensor:
        dim = self.model.config.patch_dim
        x = initial_state(self.table, key, stream, dim).double()
        memory = torch.zeros_like(x)
        columns = {name: self.table.column(name) for name in KNOWN}
        for row in range(len(self.table)):
            c = {name: float(column[row]) for name, column in columns.items()}
            out = self.out(x, float(self.table.level[row]), context)
            x0 = c["p_x"] * x + c["p_o"] * out
            new = c["x_x"] * x + c["x_0"] * x0 + c["x_m"] * memory
            if c["x_n"]:
                counter = counter_word(row, Purpose.STEP_NOISE)
                new += c["x_n"] * ops.philox_normal(key, counter, stream, dim).double()
            if c["m_x"] or c["m_0"]:
                memory = c["m_x"] * x + c["m_0"] * x0
            x = new
        return x


class Measured(NamedTuple):
    """Of one variant: errors `[seeds, images, K]` of the patches, 0 for the reference, in units of
    the root mean square of that patch over a seed's images; `FIGURES` `[seeds, 5]` of the images.
    """

    errors: np.ndarray
    figures: np.ndarray


def measure(images: int, seeds: Sequence[int], steps: int) -> dict[Variant | None, Measured]:
    """All variants on the noise of some seeds; None is the reference in float64."""
    model = off_the_grid(ardiff.load("sun-shadow"))
    samplers = {
        variant: ARSampler(
            rounded_encoder(model, variant.encoder), steps=steps, weights=variant.head
        )
        for variant in VARIANTS
    }
    exact = Exact(model, samplers[VARIANTS[0]].table)
    errors: dict[Variant | None, list] = {key: [] for key in (None, *VARIANTS)}
    figures: dict[Variant | None, list] = {key: [] for key in (None, *VARIANTS)}
    for seed in seeds:
        expected = exact.latents(images, seed)
        for key in errors:
            found = expected if key is None else latents(samplers[key], images, seed)
            squares = (found.double() - expected).square().mean(2)
            errors[key].append((squares / expected.square().mean((0, 2))).sqrt().numpy())
            shown = metrics(model.to_images(found.float()).clamp(-1, 1).numpy())
            figures[key].append([getattr(shown, name) for name in FIGURES])
    return {key: Measured(np.array(errors[key]), np.array(figures[key])) for key in errors}


def error_table(found: dict[Variant | None, Measured]) -> str:
    """Of each patch the median error of the images and, in brackets, their root mean square, which
    few images carry; and how many times the first patch's median the last one's is."""
    patches = next(iter(found.values())).errors.shape[2]
    head = ["encoder", "head", *(f"patch {k}" for k in range(patches)), "last / first"]
    lines = []
    for variant in VARIANTS:
        errors = found[variant].errors.reshape(-1, patches)
        middle, whole = np.median(errors, 0), np.sqrt((errors**2).mean(0))
        cells = [f"{m:.1e} ({w:.1e})" for m, w in zip(middle, whole, strict=True)]
        lines.append([*variant, *cells, f"{middle[-1] / middle[0]:.1f}"])
    return table(head, lines)


def figure_table(found: dict[Variant | None, Measured]) -> str:
    """Figures of the reference, their deviation between seeds, and of each variant the mean change
    on equal noise with its standard error."""
    exact = found[None].figures
    root = math.sqrt(len(exact))
    mean, spread = exact.mean(0), exact.std(0, ddof=1)
    lines = [
        ["float64", "float64", *(figure(value, 4) for value in mean)],
        ["", "deviation between seeds", *(figure(value, 4) for value in spread)],
    ]
    for variant in VARIANTS:
        change = found[variant].figures - exact
        middle, error = change.mean(0), change.std(0, ddof=1) / root
        cells = [
            f"{figure(m, 4, True)} ± {figure(e, 4)}" for m, e in zip(middle, error, strict=True)
        ]
        lines.append([*variant, *cells])
    return table(["encoder", "head", *FIGURES], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what rounding a model's weights costs.")
    parser.add_argument("--images", type=int, default=300, help="of each seed")
    parser.add_argument("--seeds", type=int, default=6, help="from 0 up, 2 or more")
    parser.add_argument("--steps", type=int, default=48, help="model calls of a patch")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    if asked.seeds < 2:
        parser.error(f"--seeds must be 2 or more, for their spread; got {asked.seeds}")
    torch.set_num_threads(asked.threads)
    found = measure(asked.images, range(asked.seeds), asked.steps)
    print(f"{error_table(found)}\n\n{figure_table(found)}")


if __name__ == "__main__":
    main()
