"""MAR whole, with random weights: from a class to the latents of one image.

`build(size, dtype, seed)` makes a model; `generate(model, size, seed)` its latents, 64 sets of
tokens with guidance 2.9, on orders and normals of a seed: the same for a stock model and for one
that `ardiff.accelerate` took. `draw(model, noise, sets)` takes them as they are, and
`methods(model)` names what belongs to head, encoder and decoder, for
`ardiff.integrations.systems.shares.measure`. To measure stock and ours by hand:

    python -m benchmarks.systems_mar --size mar-b --dtype float32 --sets 64 --rounds 3
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import ardiff
from ardiff.integrations.systems.shares import measure

from . import _harness
from .reference_mar_model import MAR, SIZES, randomised

__all__ = ["SIZES", "Noise", "amount", "build", "draw", "generate", "methods", "noise"]

UNIT = "image"
BACKBONE = "encoder_norm"  # there is no KV cache
PARTS = {"head": ("diffloss.sample",)}
GUIDANCE, LABEL = 2.9, 7
SETS = {size: 5 if size == "tiny" else 64 for size in SIZES}
RIVALS: dict[str, Any] = {}


class Noise(NamedTuple):
    """Orders int64 `[B, L]`, and normals `[1 + steps, 2 B L, d]`: of each row that the head is
    asked for, in turn, the state's first and those of its steps."""

    orders: Tensor
    normals: Tensor


def build(size: str, dtype: str, seed: int) -> MAR:
    """A model of a size of `SIZES` with random weights."""
    return randomised(SIZES[size], seed).to(getattr(torch, dtype))


def noise(size: str, seed: int, samples: int = 1) -> Noise:
    """What a run draws from, of a seed."""
    own, generator = SIZES[size], torch.Generator().manual_seed(seed)
    places = own.side**2
    orders = [torch.randperm(places, generator=generator) for _ in range(samples)]
    shape = (1 + own.steps, 2 * samples * places, own.channels)
    return Noise(torch.stack(orders), torch.randn(shape, generator=generator))


def draw(
    model: nn.Module, given: Noise, sets: int, cfg: float = GUIDANCE, label: int | None = LABEL
) -> Tensor:
    """Latents `[B, d, h, w]` of a class on given noise, by the model's `sample_tokens` as it is."""
    loss, count, first = model.diffloss, len(given.orders), 0
    sample = loss.sample

    def on_noise(z: Tensor, temperature: float, weight: Any) -> Tensor:
        nonlocal first
        rows = slice(first, first + len(z))
        first += len(z)
        return sample(z, temperature, weight, noise=given.normals[:, rows])

    owners = [(loss, "sample", on_noise), (model, "sample_orders", lambda bsz: given.orders)]
    held = [(owner, name, vars(owner).get(name)) for owner, name, _ in owners]
    for owner, name, method in owners:
        vars(owner)[name] = method
    try:
        labels = None if label is None else torch.full((count,), label)
        return model.sample_tokens(count, sets, cfg, "linear", labels, 1.0)
    finally:
        for owner, name, method in held:
            vars(owner).pop(name)
            if method is not None:
                vars(owner)[name] = method


def generate(model: nn.Module, size: str, seed: int) -> dict[str, Tensor]:
    """The latents `[1, d, h, w]` of one image, on the noise of a seed."""
    return {"latents": draw(model, noise(size, seed), SETS[size])}


def amount(size: str) -> float:
    """Images of a run."""
    return 1.0


def methods(model: MAR) -> list[tuple[str, Any, str]]:
    """Part, owner and name of each method that belongs to a part."""
    found: list[tuple[str, Any, str]] = [("head", model.diffloss, "sample")]
    found += [("encoder", block, "forward") for block in model.encoder_blocks]
    return found + [("decoder", block, "forward") for block in model.decoder_blocks]


def main() -> None:
    """Prints time, speedup and shares by part of stock and ours, runs interleaved, then the error
    of ours and, in bfloat16, of both against the stock model in float32."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--size", default="mar-b", choices=SIZES)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--weights", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--sets", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    stock, given = build(asked.size, asked.dtype, 0), noise(asked.size, 0)
    ours = copy.deepcopy(stock, {id(p): p for p in stock.parameters()})
    report = ardiff.accelerate(ours, weights=asked.weights)
    models = {"stock": stock, "ours": ours}
    latents = {name: draw(model, given, asked.sets) for name, model in models.items()}
    _print_errors(latents, asked, given)
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for turn in range(asked.rounds):
        for name in sorted(models, reverse=turn % 2 == 0):
            run = partial(draw, models[name], given, asked.sets)
            began = time.process_time()
            spent[name].append(measure(run, methods(models[name]), "cpu"))
            busy = time.process_time() - began
            whole = sum(spent[name][-1].values())
            print(f"round {turn}, {name}: {whole:.2f} s, of all threads {busy:.2f} s", flush=True)
    _print_times(spent)
    print(report)


def _print_errors(latents: dict[str, Tensor], asked: argparse.Namespace, given: Noise) -> None:
    expected, found = latents["stock"], latents["ours"]
    most, scale = float((found - expected).abs().max()), float(expected.abs().max())
    error = _harness.relative_error(found, expected)
    print(f"ours against stock: relative RMS {error:.2g}, at most {most:.2g} of {scale:.2g}")
    if asked.dtype != "float32":
        exact = draw(build(asked.size, asked.dtype, 0).float(), given, asked.sets)
        for name, value in latents.items():
            error = _harness.relative_error(value, exact)
            print(f"{name} against the same parameters in float32: relative RMS {error:.2g}")


def _print_times(spent: dict[str, list[dict[str, float]]]) -> None:
    whole = {name: [sum(one.values()) for one in kept] for name, kept in spent.items()}
    for name, kept in spent.items():
        middle, low, high = _harness.quartiles(whole[name])
        print(f"{name}: {middle:.2f} s ({low:.2f} to {high:.2f})")
        for part in dict.fromkeys(part for one in kept for part in one):
            seconds = statistics.median(one.get(part, 0.0) for one in kept)
            share = statistics.median(one.get(part, 0.0) / sum(one.values()) for one in kept)
            print(f"  {part}: {seconds:.2f} s, {share:.1%}")
    ratios = [a / b for a, b in zip(whole["stock"], whole["ours"], strict=True)]
    middle, low, high = _harness.quartiles(ratios)
    print(f"speedup: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
