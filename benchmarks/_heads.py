"""Diffusion heads at the shapes that people run, with random weights, and the loops around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ardiff.heads.base import Head
from ardiff.heads.mar import DiffusionHead
from ardiff.heads.pocket import PocketHead
from ardiff.heads.vibevoice import VibeVoiceHead
from ardiff.solvers import solver
from ardiff.tables.table import StepTable

from ._rivals import Rival


@dataclass(frozen=True)
class Shape:
    """A head and how it is sampled: its class, sizes, path, prediction, solver and steps."""

    kind: type[Head]
    dim: int
    context: int
    width: int
    depth: int
    path: str
    prediction: str
    solver: str
    steps: int

    def head(self, seed: int) -> Head:
        """With weights of unit gain; an untrained head begins with zeros."""
        head = self.kind(self.dim, self.context, self.width, self.depth)
        generator = torch.Generator().manual_seed(seed)
        for parameter in head.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
            with torch.no_grad():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        return head.eval().requires_grad_(False)

    def table(self, name: str, steps: int, **options) -> StepTable:
        options = {"path": self.path, "prediction": self.prediction, "steps": steps, **options}
        return solver(name, **options)

    def own_table(self, most: int | None = None) -> StepTable:
        """What its users run, in at most so many steps."""
        steps = self.steps if most is None else min(self.steps, most)
        options = {}
        if self.solver == "flow-euler":  # n equal steps from noise, one for Pocket-TTS
            options["grid"] = [1 - k / steps for k in range(steps)]
        return self.table(self.solver, steps, **options)


_MAR = ("vp-cosine", "epsilon", "ddpm", 100)
MODELS = {
    "mar-b": Shape(DiffusionHead, 16, 768, 1024, 6, *_MAR),
    "mar-l": Shape(DiffusionHead, 16, 1024, 1280, 8, *_MAR),
    "mar-h": Shape(DiffusionHead, 16, 1280, 1536, 12, *_MAR),
    "vibevoice-1.5b": Shape(
        VibeVoiceHead, 64, 1536, 1536, 4, "vp-cosine", "v_prediction", "dpmpp-2m", 10
    ),
    "nextstep-1": Shape(DiffusionHead, 64, 5120, 1536, 12, "flow", "flow", "flow-sde", 20),
    "pocket-tts": Shape(PocketHead, 32, 1024, 512, 6, "flow", "flow", "flow-euler", 1),
    "tiny": Shape(DiffusionHead, 8, 12, 32, 2, "vp-cosine", "epsilon", "ddpm", 10),
}  # fmt: skip


class PlainLoop:
    """A head called as a user calls it: at each step everything anew, with the rows of x repeated
    for the conditions of guidance, in one call; `rival` is the head, or a form of it."""

    hoists_ragged = False

    def __init__(self, head: Head, rival: Rival) -> None:
        self.head, self.rival = head, rival

    def hoist(self, levels: Tensor, c: Tensor) -> Callable[[int, Tensor], Tensor]:
        loop = self.hoist_guided(levels, [c])
        return lambda row, x: loop(row, x)[0]

    def hoist_guided(
        self, levels: Tensor, conditions: Sequence[Tensor]
    ) -> Callable[[int, Tensor], Sequence[Tensor]]:
        ways, c = len(conditions), torch.cat(list(conditions)).to(self.rival.dtype)
        times = [column[:, None] for column in self.head.time_arguments(levels).unbind(-1)]

        def step(row: int, x: Tensor) -> Sequence[Tensor]:
            x = x.to(self.rival.dtype)
            x = x if ways == 1 else x.repeat(ways, 1)
            level, *end = [time[row] for time in times]
            return self.rival.call(x, level, c, *end).clone().chunk(ways)

        return step
