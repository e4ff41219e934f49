"""Rectified flow in the conventions of diffusers' flow matching schedulers.

Source: `FlowMatchEulerDiscreteScheduler`, whose own code makes the sigmas, with Stable Diffusion
3's shift (Esser et al. 2024), s sigma / (1 + (s - 1) sigma), which multiplies sigma / alpha by s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

RATIO_MAX, RATIO_MIN = 40.0, 0.002  # of sigma / alpha, as ardiff.tables.paths.time_grid has them


def read_flow_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A flow matching scheduler's configuration in the names that the others have for it.

    Such a configuration has no `prediction_type`, whose default elsewhere is epsilon, and calls the
    shift `shift`. Others are returned as they are.
    """
    flow = config.get("prediction_type", "flow_prediction") == "flow_prediction"
    kind = str(config.get("_class_name", ""))
    known = "shift" in config or kind.startswith("FlowMatch")
    if not (flow and known) or "flow_shift" in config:
        return config
    # by its class diffusers tells which names it does not expect, and keeps them for the way back
    kind = kind if kind.startswith("FlowMatch") else "FlowMatchEulerDiscreteScheduler"
    kept = dict(config) | {"_class_name": kind}
    kept.pop("_use_default_values", None)
    named = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return kept | named | {"flow_shift": config.get("shift", 1.0)}


def flow_shift(config: Any, mu: float | None) -> float:
    """The factor of sigma / alpha: `flow_shift`, or with `use_dynamic_shifting` what `mu` says.

    Raises:
        ValueError: `use_dynamic_shifting` without `mu`.
    """
    if not config.use_dynamic_shifting:
        return config.flow_shift
    if mu is None:
        raise ValueError(
            "use_dynamic_shifting needs mu: pass set_timesteps(..., mu=...), as pipelines do that "
            "shift by the image's size, or use_dynamic_shifting=False"
        )
    return math.exp(mu) if config.time_shift_type == "exponential" else float(mu)


def flow_sigmas(
    config: Any, count: int | None, sigmas: Sequence[float] | None, mu: float | None
) -> list[float]:
    """The sigmas that `FlowMatchEulerDiscreteScheduler` makes of these arguments, but for the last.

    Raises:
        ValueError: `invert_sigmas`, sigmas outside (0, 1], or what that scheduler refuses.
    """
    own = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal")
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas is not supported: its model is given 1 - sigma")
    if sigmas is not None:
        sigmas = without_end(sigmas)
        if not all(0 < sigma <= 1 for sigma in sigmas):
            raise ValueError(f"sigmas of a flow model must lie in (0, 1], got {sigmas}")
    theirs = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=config.num_train_timesteps,
        shift=config.flow_shift,
        use_dynamic_shifting=config.use_dynamic_shifting,
        time_shift_type=config.time_shift_type,
        **{name: config[name] for name in own if config.get(name)},
    )
    theirs.set_timesteps(count, sigmas=sigmas, mu=mu)
    return theirs.sigmas[:-1].tolist()


def without_end(sigmas: Sequence[float]) -> list[float]:
    """The sigmas at the model calls: without the 0 that some lists end with."""
    given = [float(sigma) for sigma in sigmas]
    return given[:-1] if given[-1:] == [0.0] else given


def flow_noise(x0: Tensor, noise: Tensor, timesteps: Tensor, training: int) -> Tensor:
    """(1 - sigma) x0 + sigma noise at the timesteps `[B]`, `training` sigma."""
    sigma = timesteps.to(x0.device, x0.dtype) / training
    sigma = sigma.reshape(-1, *[1] * (x0.dim() - 1))
    return (1 - sigma) * x0 + sigma * noise


def log_snr_sigmas(count: int, shift: float, terminal: float | None) -> list[float]:
    """`count` sigmas, 1 and the others evenly in log(sigma / alpha), in a range moved by `shift`.

    The range ends at `terminal` where that is given. The first is pure noise, as the sample is: a
    model that is told of less noise takes the noise's mean for the image's.
    """
    least = shift * RATIO_MIN if terminal is None else terminal / (1 - terminal)
    ratio = np.geomspace(shift * RATIO_MAX, least, count - 1) if count > 2 else np.array([least])
    return [1.0, *(ratio / (1 + ratio)).tolist()]
