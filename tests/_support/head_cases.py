"""Random heads of each kind, small or at a published width, and what is drawn from them."""

from __future__ import annotations

import torch

from ardiff.heads.base import Head
from ardiff.heads.edm import EDMHead
from ardiff.heads.loading import forms
from ardiff.loop.run import run
from ardiff.noise import initial_state
from ardiff.solvers import solver
from ardiff.tables.table import StepTable
from tests._support.small_models import randomise

CONTEXT = 24
# Each form of a head, and MAR's within EDM's preconditioning: the path and the prediction.
_PLACES = {
    "mar": ("vp-cosine", "epsilon"),
    "vibevoice": ("vp-cosine", "v_prediction"),
    "pocket": ("flow", "flow"),
    "swiglu": ("vp-linear", "epsilon"),
    "edm": ("edm", "sample"),
}
KINDS = tuple(_PLACES)
LEVELLED = tuple(kind for kind in KINDS if kind != "pocket")  # a flow map wants a row's end too
BARE = tuple(kind for kind in LEVELLED if kind != "edm")


def head_of(kind: str, dim: int = 6, width: int = 32, depth: int = 2) -> Head | EDMHead:
    if kind == "edm":
        return EDMHead(head_of("mar", dim, width, depth))
    return randomise(forms()[kind](dim, CONTEXT, width, depth)).eval()


def table_of(kind: str, name: str, steps: int, **options) -> StepTable:
    path, prediction = _PLACES[kind]
    return solver(name, path=path, prediction=prediction, steps=steps, **options)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found.double() - expected.double()).square().mean().sqrt()
    return float(error / expected.double().square().mean().sqrt())


KEY = torch.tensor([7])


def streams(n: int, first: int = 0) -> torch.Tensor:
    return torch.arange(first, first + n) * 2**20


class Plain:
    """A head that run knows nothing of: called with levels, in float32 or in another dtype."""

    def __init__(self, head, dtype=None) -> None:
        self.head, self.dtype = head, dtype

    def __call__(self, x, level, c):
        x = x if self.dtype is None else x.to(self.dtype)
        c = c if self.dtype is None else c.to(self.dtype)
        return self.head(x, level, c).float()


def plain_token(head, context, table, stream, **modifiers):
    x = initial_state(table, KEY, stream, 6)
    return run(table, head, x, key=KEY, stream=stream, condition=context, **modifiers)


def guided(n: int, three: bool = False) -> dict:
    """Guidance as denoise_token and run take it; the unconditional context is one for all."""
    options = {"uncond": rows(1, CONTEXT, seed=5).expand(n, -1), "guidance": torch.tensor([2.5])}
    if three:
        options |= {"uncond2": rows(n, CONTEXT, seed=6), "guidance2": torch.tensor([1.5])}
    return options
