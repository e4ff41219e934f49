"""Mixtures of unit variance, tests of laws and wrong forms of `lookahead_verify`, for the tests of
runs with a lookahead."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ardiff.data.mixture import GaussianMixture
from ardiff_kernels.ops.lookahead_verify import reference

# What each wrong form has in the place of a line of the reference.
MUTANTS = {
    "no reflection": (
        "factor = torch.where(reach, factor, 0).to(dtype)",
        "factor = torch.zeros_like(log_u)",
    ),
    "accept always": (
        "holds = torch.where(reach, log_u <= log_ratio, equal)",
        "holds = torch.where(reach, torch.ones_like(equal), equal)",
    ),
    "uniform of the step noise": (
        "log_u = log_uniform(key, draw + window.row + j, stream).to(dtype)",
        "log_u = step_word(key, draw + window.row + j, stream).to(dtype)",
    ),
    "drafted memory": (
        "memory = torch.where(stays | takes, true[2], memory)",
        "memory = torch.where(stays, drafted[2], torch.where(takes, true[2], memory))",
    ),
}


def step_word(key: Tensor, draw: Tensor, stream: Tensor) -> Tensor:
    """log of a uniform from word 0 of the step noise, from which its first normal is made too."""
    from ardiff_kernels.ops._shared.address import counter_word, philox_words

    word = philox_words(torch.zeros_like(stream), counter_word(draw), stream, key)[0]
    return ((word.double() + 0.5) * 2.0**-32).log().unsqueeze(1)


def mutant(name: str) -> Callable:
    """`lookahead_verify` with one line wrong."""
    right, wrong = MUTANTS[name]
    source = inspect.getsource(reference)
    assert source.count(right) == 1, f"the reference no longer has the line {right}"
    module = types.ModuleType("mutant")
    module.__package__ = reference.__package__
    module.step_word = step_word
    exec(compile(source.replace(right, wrong), name, "exec"), module.__dict__)
    return module.lookahead_verify


def unit_mixture(d: int) -> GaussianMixture:
    """Eight modes in d dimensions, of unit variance about 0 on average over the elements."""
    generator = np.random.default_rng(100 + d)
    means = generator.normal(size=(8, d))
    means -= means.mean(0)
    means /= means.std(0).mean()
    variances = 0.05 + 0.1 * generator.random(8)
    means *= math.sqrt(1 - variances.mean())
    return GaussianMixture(torch.tensor(means), torch.tensor(variances)[:, None])


def ks_statistic(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples, times sqrt(n m / (n + m))."""
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    apart = np.searchsorted(a, both, "right") / len(a) - np.searchsorted(b, both, "right") / len(b)
    return float(np.abs(apart).max() * math.sqrt(len(a) * len(b) / (len(a) + len(b))))


def ks_bound(false_alarm: float) -> float:
    """What the statistic exceeds with at most that probability (Massart)."""
    return math.sqrt(-math.log(false_alarm / 2) / 2)
