"""The solvers of this package in the papers' experiment, with exact scores, at equal calls."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...data.mixture import GaussianMixture
from ...sampling import sample
from ...tables.paths import get_path
from .published import OU_PER_T, TIME
from .samplers import Drawn

PATH, PREDICTION = "ou", "sample"
GRIDS = ("log-snr", "karras", "uniform")  # of which DDPM has the best


@dataclass(frozen=True)
class Rival:
    """A solver by the name that its rows have, and its options; `grids` are tried, or its own."""

    solver: str
    options: dict[str, str] = field(default_factory=dict)
    grids: tuple[str | None, ...] = (None,)


DDPM = Rival("ddpm", grids=GRIDS)
RIVALS = {
    "ddpm, their grid": Rival("ddpm", grids=("theirs",)),
    "ddpm, best grid": DDPM,
    "rtk-ula": Rival("rtk-ula"),
    "rtk-uld": Rival("rtk-uld"),
    "rtk-mala, trapezoid": Rival("rtk-mala"),
    "rtk-mala, simpson": Rival("rtk-mala", {"accept": "simpson"}),
    "rtk-mala, energy": Rival("rtk-mala", {"accept": "energy"}),
    "rtk-hmc": Rival("rtk-hmc"),
    "rtk-harmonic": Rival("rtk-harmonic"),
    "rtk-harmonic-mala": Rival("rtk-harmonic-mala"),
    "dpmpp-2m": Rival("dpmpp-2m"),
    "unipc": Rival("unipc"),
    "learned": Rival("learned"),
}


def draw(
    mixture: GaussianMixture, rival: Rival, grid: str | None, calls: int, n: int, seed: int
) -> Drawn:
    """`n` samples, of at most `calls` model calls.

    A named grid ends where the noise is a tenth of the narrowest mode's standard deviation;
    ``theirs`` is even in time from OU time 5, and its last step goes to 0.
    """
    options = dict(rival.options)
    if grid == "theirs":
        options["grid"] = OU_PER_T * TIME * (1 - np.arange(calls) / calls)
    elif rival.solver != "learned":  # which has levels of its own
        options["ratio_min"] = float(mixture.variances.min().sqrt()) / 10
        options["grid"] = grid
    if options.get("accept") == "energy":
        options["energy_fn"] = _energy(mixture)
    x, stats = sample(
        mixture.model(PATH, PREDICTION), (n, mixture.means.shape[1]), PATH, PREDICTION,
        rival.solver, calls, seed=seed, return_stats=True, **options,
    )  # fmt: skip
    return Drawn(x, stats.calls)


def _energy(mixture: GaussianMixture):
    path = get_path(PATH)

    def energy(x: Tensor, level: Tensor, condition: object) -> Tensor:
        at = level[:1].double().numpy()
        return -mixture.log_density(x, *(torch.tensor(f(at)) for f in (path.alpha, path.sigma)))

    return energy
