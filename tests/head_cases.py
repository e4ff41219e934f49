"""Random heads of each kind, small or at a published width, and what is drawn from them."""

from __future__ import annotations

import torch
from small_models import randomise

from ardiff.models.head import DiffusionHead, EDMHead, Head
from ardiff.models.pocket_head import PocketHead
from ardiff.models.vibevoice_head import VibeVoiceHead
from ardiff.solvers import solver
from ardiff.table import StepTable

CONTEXT = 24


def head_of(kind: str, dim: int = 6, width: int = 32, depth: int = 2) -> Head | EDMHead:
    makers = {"mar": DiffusionHead, "vibevoice": VibeVoiceHead, "pocket": PocketHead}
    if kind == "edm":
        return EDMHead(head_of("mar", dim, width, depth))
    return randomise(makers[kind](dim, CONTEXT, width, depth)).eval()


KINDS = ("mar", "vibevoice", "pocket", "edm")
_PLACES = {
    "mar": ("vp-cosine", "epsilon"),
    "vibevoice": ("vp-cosine", "v_prediction"),
    "pocket": ("flow", "flow"),
    "edm": ("edm", "sample"),
}


def table_of(kind: str, name: str, steps: int, **options) -> StepTable:
    path, prediction = _PLACES[kind]
    return solver(name, path=path, prediction=prediction, steps=steps, **options)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found.double() - expected.double()).square().mean().sqrt()
    return float(error / expected.double().square().mean().sqrt())
