"""Pocket-TTS of transformers (5.21 and later): its flow head at each audio frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ardiff_kernels import ops

from ..heads.base import Head
from ..heads.token import denoise_token
from ..noise import Purpose, counter_word, make_stream
from ..solvers import solver as make_table
from ..tables.table import StepTable, TableBuilder
from ._accelerator import Accelerator
from ._replace import install, uninstall

__all__ = ["PocketTTSAccelerator", "accelerate", "restore"]


class PocketTTSAccelerator(Accelerator):
    """What :func:`accelerate` returns."""

    system = "Pocket-TTS"
    module = "transformers.models.pocket_tts.modeling_pocket_tts"
    model_class = "PocketTTSForConditionalGeneration"
    since = "5.21"
    methods = {
        "sample_latent": ("condition", "noise", "num_flow_steps"),
        "_get_stopping_criteria": ("generation_config",),
        "_has_unfinished_sequences": ("this_peer_finished",),
    }

    def __init__(self, model: Any, options: dict) -> None:
        super().__init__(model, options)
        self._noise_scale: float | None = None

    def stock_head(self) -> nn.Module:
        return self.model.flow_head

    def head_options(self) -> dict:
        config = self.model.config.flow_head_config
        return {"eps": config.layer_norm_eps, "time_eps": config.rms_norm_eps}

    def check_head(self) -> None:
        found = self.model.config.flow_head_config.hidden_act
        if found != "silu":
            raise ValueError(f"Pocket-TTS: expected a head with hidden_act=silu, got {found!r}")

    def evaluate_stock(self, x: Tensor, time: Tensor, c: Tensor) -> Tensor:
        start = time[:, None].to(x)
        embedded = len(self.stock_head().timestep_embeddings) > 0
        return self.stock_head()(x, c, times=[start, torch.ones_like(start)] if embedded else None)

    def evaluate_ours(self, head: Head, x: Tensor, time: Tensor, c: Tensor) -> Tensor:
        return -head(x, 1 - time, c, torch.zeros_like(time))

    def _get_stopping_criteria(self, generation_config: Any, *args, **kwargs) -> Any:
        """Called once per generation, before its first frame."""
        sampled = generation_config.do_sample
        self._noise_scale = math.sqrt(generation_config.temperature) if sampled else 0.0
        self._addresses = None
        self._generating = self._read = True
        stock = type(self.model)._get_stopping_criteria
        return stock(self.model, generation_config, *args, **kwargs)

    def sample_latent(self, condition: Tensor, noise: Tensor, num_flow_steps: int) -> Tensor:
        """`[B, width]` conditions and noise `[B, d]` -> latents `[B, d]` in its dtype."""
        self.refuse_gradients(condition, noise)
        if num_flow_steps < 1:
            raise ValueError(f"num_flow_steps must be 1 or more, got {num_flow_steps}")
        head = self.head()
        weight = head.model.cond_proj.weight
        timed = len(head.model.timestep_embeddings) > 0
        table = flow_table(num_flow_steps) if timed else _DRIFT
        stream = make_stream(None, len(noise), 0, weight.device)
        start, key = noise.to(weight.device, torch.float32), stream.new_zeros(1)
        if self.options["seed"] is not None and self._noise_scale is not None:
            if self._addresses is None:
                self.begin(len(noise), weight.device)
            key, stream = self._addresses.key, self._addresses.take()
            counter = counter_word(0, Purpose.INITIAL_STATE)
            normal = ops.philox_normal(key, counter, stream, noise.shape[1])
            start = normal * self._noise_scale
        latent = denoise_token(
            head, condition.to(weight), table, key, 0, stream, start=start,
        )  # fmt: skip
        return latent.to(noise)


@lru_cache(maxsize=32)
def flow_table(steps: int) -> StepTable:
    """`steps` equal Euler steps from noise to data, on our times, which run from 1 to 0."""
    grid = [1 - k / steps for k in range(steps)]
    return make_table("flow-euler", path="flow", prediction="flow", steps=steps, grid=grid)


def _drift() -> StepTable:
    """One call, whose output (ours has the other sign) is the latent."""
    builder = TableBuilder("flow", "flow", "drifting")
    builder.add("diffusion", 1.0, p_o=-1.0, x_0=1.0)
    return builder.finish(init_scale=1.0)


_DRIFT = _drift()


def accelerate(
    model: Any,
    *,
    weights: str | None = None,
    seed: int | None = None,
    sample_ids: Sequence[int] | Tensor | None = None,
    batch_invariant: bool = False,
) -> PocketTTSAccelerator:
    """Runs the flow head of `model` on the head engine, within `generate` as it is.

    The latents are those of the stock head on the same noise, by Lagrangian self-distillation
    (`num_flow_steps`) or, of a ``drifting`` head, in one call.

    Args:
        model: `PocketTTSForConditionalGeneration` of transformers 5.21 or later. Its parameters are
            used where they are, and followed when they change; the packed weights take memory
            beside them.
        weights: ``float32``, ``bfloat16`` or ``int8``, those of the blocks as they are packed; None
            for the head's own dtype (float16: float32). Sums are float32.
        seed: address the noise of `generate` instead, of its own temperature: a frame's noise is
            then a function of seed, sample id and the number of the frame, whatever the batch.
        sample_ids: integers in [0, 2^43), one per sample of `generate`; default 0 up. They can be
            changed between calls: ``handle.sample_ids = [7]``.
        batch_invariant: a row's bits do not depend on the others, given equal conditions.

    Returns:
        A handle; the same one if `model` has been accelerated with equal options.

    Raises:
        ImportError: transformers is absent or too old.
        TypeError: a model of another class.
        RuntimeError: a version of transformers that is not known, or a model that is accelerated
            with other options already.
        ValueError: options or a head that do not fit.
    """
    options = {"weights": weights, "seed": seed, "sample_ids": sample_ids}
    options["batch_invariant"] = batch_invariant
    return install(PocketTTSAccelerator, model, options)


def restore(model: Any) -> None:
    """Undoes :func:`accelerate`; does nothing to a model that is not accelerated."""
    uninstall(PocketTTSAccelerator, model)
