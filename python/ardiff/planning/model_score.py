"""The score of a model, at states that have the law of their level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..guide import Guidance
from ..loop.model_calls import CountedModel
from ..loop.run import run
from ..noise import initial_state
from ..solvers import solver
from ..tables.paths import Path, score_coefficients

PILOT = "dpmpp-2m"  # one call a level, and good at few


class Score:
    """The score of a model at one level at a time, guidance included; counts the model's calls.

    Args:
        model_fn, condition: as of :func:`ardiff.sample`.
        shape: (samples, ...) of the states as the model takes them.
        path, prediction: of the model.
        guided: with weights as :meth:`ardiff.guide.Guidance.per_sample` gives them.
        device: of the states.

    Attributes:
        eps: the rounding of the model's outputs, of the coarsest so far.
    """

    def __init__(
        self, model_fn: Any, shape: Sequence[int], path: Path, prediction: str, condition: Any,
        guided: Guidance, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self._model = CountedModel(model_fn, tuple(shape))
        self._path, self.prediction, self._device = path, prediction, device
        self._conditions, self._weights = [condition, *guided.conditions], guided.weights
        self.eps = torch.finfo(torch.float32).eps

    @property
    def calls(self) -> int:
        """Model calls so far; guidance makes two or three at a state."""
        return self._model.calls

    def output_at(self, level: float) -> Callable[[Tensor], Tensor]:
        """``f(x)``: the guided output at `level`, float32 `[B, d]`, for x float32 `[B, d]`."""
        each = [self._bind(level, condition) for condition in self._conditions]

        def output(x: Tensor) -> Tensor:
            with torch.no_grad():
                outs = [bound(x.clone()).clone() for bound in each]
            self.eps = max(self.eps, *(torch.finfo(out.dtype).eps for out in outs))
            outs = [out.float() for out in outs]
            found = outs[-1]
            for weight, out, other in zip(self._weights, outs, outs[1:], strict=False):
                found = found + weight.reshape(-1, 1) * (out - other)
            return found

        return output

    def at(self, level: float) -> Callable[[Tensor], Tensor]:
        """``f(x)``: the score at `level`, float64 `[B, d]`, for x float32 `[B, d]`."""
        alpha, sigma = float(self._path.alpha(level)), float(self._path.sigma(level))
        s_z, s_o = score_coefficients(self.prediction, alpha, sigma)
        output = self.output_at(level)
        return lambda x: s_z * x.double() + s_o * output(x).double()

    def _bind(self, level: float, condition: Any) -> Callable[[Tensor], Tensor]:
        if hasattr(self._model, "hoist"):
            at = torch.full((1,), level, device=self._device)
            function = self._model.hoist(at, condition)
            return lambda x: function(0, x)
        return lambda x: self._model(x, x.new_full((len(x),), level), condition)


def pilot_states(
    score: Score, path: Path, levels: np.ndarray, key: Tensor, stream: Tensor, dim: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The states of a run of :data:`PILOT` at each of `levels` and the outputs there.

    float32 `[B, d]` each, for the samples of `stream`; one model call a level.
    """
    table = solver(PILOT, path=path, prediction=score.prediction, steps=len(levels), grid=levels)
    states, outputs = [], []

    def model(x: Tensor, level: Tensor, condition: Any) -> Tensor:
        out = score.output_at(float(levels[len(states)]))(x)
        states.append(x)
        outputs.append(out)
        return out

    run(table, model, initial_state(table, key, stream, dim), key=key, stream=stream)
    return states, outputs
