"""A model small enough for thousands of requests, and the plain loop that draws one of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import ardiff
from ardiff.ar.encoder import CausalEncoder, EncoderConfig
from ardiff.ar.patch_model import PatchModel
from ardiff.batch_invariant import batch_invariant
from ardiff.guide import guidance_weights
from ardiff.heads.fused import fused
from ardiff.heads.mar import DiffusionHead
from ardiff.loop.run import run
from ardiff.noise import initial_state
from tests._support.small_models import randomise

D, WIDTH, PLACES = 3, 32, 8
SOLVER = "ddpm"
PATH = {"path": "vp-cosine", "prediction": "v_prediction"}


def tiny_model(block: int = 1, places: int = PLACES, **options) -> PatchModel:
    config = EncoderConfig(**{"width": WIDTH, "depth": 1, "heads": 1, "ffn": 32, **options})
    encoder, head = CausalEncoder(config), DiffusionHead(D, WIDTH, 16, 1)
    model = PatchModel(encoder, head, D, **PATH, block=block, places=places)
    return randomise(model).eval()


def prompt_of(length: int, seed: int = 0) -> Tensor:
    return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(100 * seed + length))


class Drawn(NamedTuple):
    patches: Tensor
    places: list[int]
    stopped: bool


def encode(model: PatchModel, tokens: Tensor, position: list[int], prompt: int) -> Tensor:
    """All tokens `[T, width]` of a sequence at once, without a cache."""
    at = torch.arange(len(tokens))
    turn = torch.where(at < prompt, at, prompt + (at - prompt) // model.block * model.block)
    mask = turn <= turn[:, None]
    return model.encoder(tokens[None], torch.tensor([position]), mask)[0]


def draw_alone(
    model: PatchModel,
    prompt: Tensor | None,
    patches: int,
    *,
    cached: bool,
    seed: int = 0,
    sample_id: int = 0,
    steps: int = 3,
    guidance: float | None = None,
    guidance_schedule: str = "constant",
    uncond: Tensor | None = None,
    guidance2: float | None = None,
    uncond2: Tensor | None = None,
    temperature: float = 1.0,
    order: list[int] | None = None,
    stop=None,
    noise: list[tuple[int, int]] | None = None,
) -> Drawn:
    """One request in the plainest way: each patch a run of its own, by a table of its own.

    `cached`: with the encoder's cache, the fused head and `batch_invariant`, to compare bits; else
    every prefix is encoded anew and the head is plain.
    `noise`: seed and sample id of each patch, in the place of `seed` and `sample_id`.
    """
    order = list(range(patches)) if order is None else order
    table = ardiff.solver(SOLVER, steps=steps, **PATH)
    block = model.block
    noise = [(seed, sample_id)] * patches if noise is None else noise
    dtype, scales = model.encoder.dtype, [w for w in (guidance, guidance2) if w is not None]
    prompts = [prompt, uncond, uncond2][: 1 + len(scales)]
    nulled = [i > 0 and p is None and model.null is not None for i, p in enumerate(prompts)]
    prompts = [(torch.empty(0, WIDTH) if p is None else p).to(dtype) for p in prompts]
    weights = [guidance_weights(w, guidance_schedule, patches) for w in scales]
    caches = [model.encoder.new_cache(1, 64, dtype=dtype) for _ in prompts]
    sequences, positions = list(prompts), [list(range(len(p))) for p in prompts]
    made: list[Tensor] = []

    def contexts(new: Tensor, at: range | list[int]) -> list[Tensor]:
        found = []
        for i, prompt in enumerate(prompts):
            own = [len(prompt) + place for place in at]
            if nulled[i]:
                found.append(model.null.expand(block, -1))
            elif cached:
                if caches[i].lengths == [0] and len(prompt):
                    model.encoder.prefill(prompt[None], caches[i])
                found.append(
                    model.encoder.append(
                        new[None], caches[i], position=torch.tensor([own]), causal=block == 1
                    )[0]
                )
            else:
                sequences[i] = torch.cat([sequences[i], new])
                positions[i] += own
                found.append(encode(model, sequences[i], positions[i], len(prompt))[-block:])
        return found

    def loop() -> bool:
        tokens, at = model.start, range(block)
        while len(made) < patches:
            target = order[len(made) : len(made) + block]
            if model.place is not None:
                tokens = tokens + model.place[target + target[-1:] * (block - len(target))]
            states = contexts(tokens, at)
            block_made = []
            for j, place in enumerate(target):
                patch_seed, patch_sample = noise[len(made) + j]
                key = torch.tensor([patch_seed])
                stream = torch.tensor([patch_sample * 2**20 + place])
                ways: dict[str, Tensor] = {}
                for suffix, state, weight in zip(("", "2"), states[1:], weights, strict=False):
                    ways[f"uncond{suffix}"] = state[j : j + 1]
                    ways[f"guidance{suffix}"] = torch.tensor([weight[len(made) + j]])
                x = run(
                    table,
                    fused(model.denoiser) if cached else model.denoiser,
                    initial_state(table, key, stream, D),
                    key=key,
                    stream=stream,
                    condition=states[0][j : j + 1],
                    noise_scale=torch.tensor([temperature]),
                    **ways,
                )
                block_made.append(x)
            for x in block_made:
                made.append(x[0])
                if stop is not None and stop(x[0]):
                    return len(made) < patches
            tokens = model.embed(torch.cat(block_made).to(dtype))
            at = [block + place for place in target]
        return False

    with torch.no_grad():
        if cached:
            with batch_invariant():
                stopped = loop()
        else:
            stopped = loop()
    return Drawn(torch.stack(made), order[: len(made)], stopped)
