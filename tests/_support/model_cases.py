"""Samples whose bits are recorded: tokens of heads, and patches of `ARSampler` and `AREngine`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ardiff
from ardiff.ar.encoder import CausalEncoder, EncoderConfig
from ardiff.ar.patch_model import PatchModel
from ardiff.denoise import denoise_token
from ardiff.heads.edm import EDMHead
from ardiff.heads.mar import DiffusionHead
from ardiff.heads.pocket import PocketHead
from ardiff.heads.vibevoice import VibeVoiceHead
from tests._support.exact import ExactModel, numbers
from tests._support.sample_cases import GRID, Case, table_of

CONTEXT, TOKEN = 24, 6
HEADS = {
    "mar": (DiffusionHead, "vp-cosine", "epsilon"),
    "vibevoice": (VibeVoiceHead, "vp-cosine", "v_prediction"),
    "pocket": (PocketHead, "flow", "flow"),
    "edm": (DiffusionHead, "edm", "sample"),
}
KEY, STREAM = torch.tensor([7]), torch.arange(3) * 2**20 + 1


def filled(module: nn.Module) -> nn.Module:
    """Weights of about unit gain, from integers."""
    for i, parameter in enumerate(module.parameters()):
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.25
        with torch.no_grad():
            parameter.copy_(numbers(*parameter.shape, seed=40 + i) * scale)
    return module.eval().requires_grad_(False)


def token(kind: str, solver: str, ways: int, ragged: bool, **options: Any) -> tuple[Tensor, ...]:
    """Tokens of a tiny head."""
    make, *place = HEADS[kind]
    options_of = {"flow_map": False} if kind == "pocket" and solver != "ddpm" else {}
    head = filled(make(TOKEN, CONTEXT, 32, 2, **options_of))
    head = EDMHead(head) if kind == "edm" else head
    table = table_of(solver, *place, steps=12)
    if ragged:
        table = ardiff.RaggedTable([table, table_of(solver, *place, steps=14)], [0, 1, 0])
    modifiers = {}
    for way in range(1, ways):
        suffix = "" if way == 1 else str(way)
        modifiers[f"uncond{suffix}"] = numbers(3, CONTEXT, seed=20 + way)
        modifiers[f"guidance{suffix}"] = 1.5 / way
    c = numbers(3, CONTEXT, seed=20)
    return (denoise_token(head, c, table, KEY, 0, STREAM, **modifiers, **options),)


def of_heads() -> Iterator[tuple[str, Case]]:
    """Heads of the three families: their conditions are matrix products of torch's."""
    kinds = (
        ("ddpm", 1, False, False), ("ddpm", 2, False, False), ("ddpm", 2, True, False),
        ("ddpm", 2, False, True), ("ddpm", 2, True, True), ("ddpm", 3, True, False),
        ("rtk-mala", 2, True, False), ("heun", 1, False, False),
    )  # fmt: skip
    for kind in HEADS:
        for solver, ways, ragged, invariant in kinds:
            options = {"batch_invariant": invariant, "temperature": 0.75}
            draw = partial(token, kind, solver, ways, ragged, **options)
            name = f"head/{kind}/{solver}/{ways}-way" + "/ragged" * ragged
            yield name + "/invariant" * invariant, Case(draw, depends="torch")
        for weights in ("bfloat16", "int8"):
            draw = partial(token, kind, "ddpm", 2, False, weights=weights)
            yield f"head/{kind}/{weights}", Case(draw, depends="torch")


def plain_token(solver: str, place: tuple[str, str], **options: Any) -> tuple[Tensor, ...]:
    """`denoise_token` of a model that is no head."""
    table, start = table_of(solver, *place), numbers(3, TOKEN) * 2
    c = numbers(3, 1, seed=4)
    model = ExactModel(*place)
    return (denoise_token(model, c, table, KEY, 6, STREAM, start=start, **options),)


def of_plain_tokens() -> Iterator[tuple[str, Case]]:
    guided = {"uncond": numbers(3, 1, seed=6), "guidance": 1.5}
    kinds = {"plain": {}, "guided": guided, "cool": {"temperature": 0.5}}
    for solver, *place in (
        ("ddpm", "ou", "score"), ("dpmpp-2m", "edm", "sample"), ("heun", "flow", "flow"),
        ("rtk-uld", "vp-cosine", "epsilon"), ("rtk-mala", "edm", "sample"),
    ):  # fmt: skip
        for name, options in kinds.items():
            yield f"token/{solver}/{name}", Case(partial(plain_token, solver, place, **options))


PATCHES, WIDTH = 4, 32


def encode(patches: Tensor) -> Tensor:
    """The context of the next patch, summed in order."""
    context = torch.full((len(patches), WIDTH), 0.125)
    for patch in patches.unbind(1):
        context = context * 0.5 + patch * 0.25
    return context


def ar_sampler(solver: str, place: tuple[str, str], **options: Any) -> tuple[Tensor, ...]:
    """`ARSampler` of functions."""
    path, prediction = place
    if options.pop("three", False):
        options |= {"guidance2": 0.5, "uncond2": numbers(WIDTH, seed=2)}
    sampler = ardiff.ARSampler(
        None, solver, encode=encode, denoise=ExactModel(*place), path=path, prediction=prediction,
        patches=PATCHES, patch_dim=WIDTH, null=torch.zeros(WIDTH), **GRID, **options,
    )  # fmt: skip
    found = sampler.sample(3, seed=-5, sample_ids=[8, 0, 2**43 - 1]).images
    return found, sampler.sample(2, seed=5).images


class Sums(CausalEncoder):
    """Takes in tokens by sums in order: it keeps a token per row in place of keys and values."""

    def __init__(self) -> None:
        super().__init__(EncoderConfig(WIDTH, 1, 1, ffn=8))
        self.kept: dict[int, Tensor] = {}

    def prefill(self, x, cache, rows=None, count=None, position=None) -> Tensor:
        for tokens, row, n in zip(x, rows, count, strict=True):
            self.kept[row] = torch.zeros(WIDTH)
            self._add(row, tokens[:n])
        return x

    def append(self, x, cache, rows=None, count=None, position=None, causal=True) -> Tensor:
        return torch.stack([self._add(row, tokens) for row, tokens in zip(rows, x, strict=True)])

    def _add(self, row: int, tokens: Tensor) -> Tensor:
        hidden = []
        for one in tokens.unbind(0):
            self.kept[row] = self.kept[row] * 0.5 + one * 0.25
            hidden.append(self.kept[row])
        return torch.stack(hidden)


def engine(solver: str, place: tuple[str, str], block: int, steps: Sequence[int], rows: int):
    """`AREngine` of such an encoder: requests of all kinds, which wait for each other's rows."""
    path, prediction = place
    model = PatchModel(
        Sums(), ExactModel(*place), WIDTH, path=path, prediction=prediction, block=block, places=3,
        grid=GRID,
    )  # fmt: skip
    with torch.no_grad():
        model.start.copy_(numbers(block, WIDTH, seed=1))
        model.place.copy_(numbers(3, WIDTH, seed=3))
        model.embed.weight.copy_(torch.eye(WIDTH).roll(1, 0) * 0.5)
        model.embed.bias.copy_(numbers(WIDTH, seed=2))
    model.null = torch.full((WIDTH,), 0.0625)
    made = ardiff.AREngine(model.eval().requires_grad_(False), solver, rows=rows, capacity=16)
    kinds = [
        {}, {"guidance": 1.5}, {"temperature": 0.5, "sample_id": 77},
        {"guidance": 2.0, "guidance_schedule": "linear", "uncond": numbers(2, WIDTH, seed=5)},
        {"guidance": 1.5, "guidance2": 0.5, "uncond2": numbers(1, WIDTH, seed=6)},
        {"seed": -9, "order": [2, 0, 1]},
    ]  # fmt: skip
    for i, kind in enumerate(kinds):
        options = {"seed": i // 2, "steps": steps[i % len(steps)], **kind}
        made.submit(numbers(1 + i % 3, WIDTH, seed=10 + i), 3, **options)
    found = {}
    while made.step():
        found |= {done.request: done.patches for done in made.collect()}
    return tuple(found[i] for i in range(len(kinds)))


def of_engines() -> Iterator[tuple[str, Case]]:
    """Patch after patch, by functions without a matrix product whose sums have several terms."""
    for solver, *place in (
        ("ddpm", "vp-cosine", "v_prediction"), ("ddim", "ou", "score"), ("heun", "flow", "flow"),
        ("dpmpp-2m", "edm", "sample"), ("rtk-uld", "ou", "epsilon"), ("rtk-mala", "edm", "sample"),
    ):  # fmt: skip
        for name, options in {
            "plain": {}, "guided": {"guidance": 1.5, "guidance_schedule": "linear"},
            "three-way": {"guidance": 1.5, "three": True, "batch": 2},
            "cool": {"temperature": 0.5, "steps": [12, 14, 18, 13]},
        }.items():  # fmt: skip
            draw = partial(ar_sampler, solver, place, **{"steps": 12, **options})
            yield f"ar-sampler/{solver}/{name}", Case(draw)
        for block, steps, rows in ((1, (12,), 16), (1, (12, 18), 4), (2, (12, 14), 16)):
            draw = partial(engine, solver, place, block, steps, rows)
            name = "ragged" if len(steps) > 1 else "plain"
            yield f"ar-engine/{solver}/block-{block}/{name}", Case(draw)


def model_cases() -> dict[str, Case]:
    """All of the above by name."""
    makers = (of_heads, of_plain_tokens, of_engines)
    return {name: case for maker in makers for name, case in maker()}
