"""VibeVoice of transformers (5.19 and later): the loop of the diffusion head at each audio token.

Stock evaluates the whole head at every step, on the conditional and the unconditional rows, and
builds its scheduler's steps anew for each token. Here everything that depends on level and
condition alone is computed once a token, and a step is one `head_step` and one `diffusion_step`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from ardiff.denoise import denoise_token
from ardiff.discrete import dpmpp_table
from ardiff.models.head import Head
from ardiff.paths import VPPath
from ardiff.sampling import make_key
from ardiff.solvers import solver as make_table
from ardiff.solvers import solver_options
from ardiff.table import StepTable

from ._accelerator import Accelerator, install, uninstall

__all__ = ["VibeVoiceAccelerator", "accelerate", "restore"]

_SCHEDULERS = ("DPMSolverMultistepScheduler", "FusedDPMSolverMultistepScheduler")
_KEPT = 32  # tables; the least recently used goes first

_tables: OrderedDict[tuple, StepTable] = OrderedDict()
_configs: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_paths: dict[str, VPPath] = {}


class VibeVoiceAccelerator(Accelerator):
    """What :func:`accelerate` returns."""

    system = "VibeVoice"
    module = "transformers.models.vibevoice.modeling_vibevoice"
    model_class = "VibeVoiceForConditionalGeneration"
    since = "5.19"
    methods = {
        "_sample_audio_latent": (
            "positive_condition", "negative_condition", "noise_scheduler", "num_diffusion_steps",
            "guidance_scale",
        ),
        "_prepare_negative_generation": ("batch_size", "generation_config", "device"),
        "_step_negative_branch": ("diffusion_mask",),
    }  # fmt: skip

    def __init__(self, model: Any, options: dict) -> None:
        super().__init__(model, options)
        self._speaking: Tensor | None = None

    def stock_head(self) -> nn.Module:
        return self.model.model.diffusion_head

    def head_options(self) -> dict:
        return {"eps": self.model.config.diffusion_head_config.rms_norm_eps}

    def check_head(self) -> None:
        config = self.model.config.diffusion_head_config
        known = {"hidden_act": "silu", "mlp_bias": False, "diffusion_max_period": 10000}
        for name, value in known.items():
            found = getattr(config, name)
            if found != value:
                raise ValueError(f"VibeVoice: expected a head with {name}={value}, got {found!r}")

    def evaluate_stock(self, x: Tensor, time: Tensor, c: Tensor) -> Tensor:
        return self.stock_head()(x, 1024 * time.to(x), condition=c)

    def evaluate_ours(self, head: Head, x: Tensor, time: Tensor, c: Tensor) -> Tensor:
        return head(x, 1024 * time, c)

    def _prepare_negative_generation(
        self, batch_size: int, generation_config: Any, *args, **kwargs
    ) -> Any:
        device = self.stock_head().cond_proj.weight.device
        self.begin(batch_size, device)
        # Refused here, before the first token, rather than within the loop.
        self.table(generation_config.noise_scheduler, generation_config.num_diffusion_steps)
        stock = type(self.model)._prepare_negative_generation
        return stock(self.model, batch_size, generation_config, *args, **kwargs)

    def _step_negative_branch(self, diffusion_mask: Tensor, *args, **kwargs) -> Any:
        self._speaking = diffusion_mask
        stock = type(self.model)._step_negative_branch
        return stock(self.model, diffusion_mask, *args, **kwargs)

    def _sample_audio_latent(
        self,
        positive_condition: Tensor,
        negative_condition: Tensor,
        noise_scheduler: Any,
        num_diffusion_steps: int,
        guidance_scale: float,
    ) -> Tensor:
        """`[N, width]` conditions -> latents `[N, 1, d]` in their dtype."""
        self.refuse_gradients(positive_condition, negative_condition)
        head, table = self.head(), self.table(noise_scheduler, num_diffusion_steps)
        weight = head.model.cond_proj.weight
        dtype, count = positive_condition.dtype, len(positive_condition)
        # As stock draws it, on the CPU and for both halves, of which it uses the first.
        size = head.model.noisy_images_proj.in_features
        noise = torch.randn(2 * count, size).to(weight.device, dtype)[:count].float()
        speaking, self._speaking = self._speaking, None
        if self._addresses is not None:
            key, stream, start = self._addresses.key, self._addresses.take(speaking), None
        else:
            stream = torch.arange(count, device=weight.device) << 20
            start = noise
            key = make_key(None, weight.device) if _draws(table) else stream.new_zeros(1)
        guided = guidance_scale != 1
        latent = denoise_token(
            head.model, positive_condition.to(weight), table, key, 0, stream, start=start,
            uncond=negative_condition.to(weight) if guided else None,
            guidance=guidance_scale if guided else None, weights=head.weights,
            batch_invariant=self.options["batch_invariant"],
        )  # fmt: skip
        return latent.to(dtype).unsqueeze(1)

    def table(self, scheduler: Any, steps: int) -> StepTable:
        """The rows of `steps` calls on the scheduler's schedule; levels as the model is given them,
        rounded to its dtype.

        Raises:
            ValueError: a scheduler whose steps are not known.
        """
        dtype = self.stock_head().cond_proj.weight.dtype
        if scheduler not in _configs:
            _check_scheduler(scheduler, self.options["solver"])
            _configs[scheduler] = scheduler.to_json_string()
        key = (_configs[scheduler], steps, dtype, self.options["solver"], self.options["options"])
        if key not in _tables:
            table = self._make(scheduler, steps)
            level = torch.tensor(table.level).to(dtype).double().numpy()
            _tables[key] = replace(table, level=level)
            if len(_tables) > _KEPT:
                _tables.popitem(last=False)
        _tables.move_to_end(key)
        return _tables[key]

    def _make(self, scheduler: Any, steps: int) -> StepTable:
        raise NotImplementedError


def _draws(table: StepTable) -> bool:
    """Whether a row adds noise."""
    return any(table.column(name).any() for name in ("x_n", "z_1", "z_2", "v_1"))
