"""VibeVoice of transformers (5.19 and later): the loop of the diffusion head at each audio token.

Stock evaluates the whole head at every step, on the conditional and the unconditional rows, and
builds its scheduler's steps anew for each token. Here everything that depends on level and
condition alone is computed once per token, and a step is one `head_step` and one `diffusion_step`.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..heads.base import Head
from ..heads.token import denoise_token
from ..loop.lookahead import check_lookahead
from ..noise import make_key, make_stream
from ..solvers import solver as make_table
from ..solvers import solver_options
from ..tables.diffusers_schedules import DiscretePath, dpmpp_table
from ..tables.table import StepTable
from ._accelerator import Accelerator
from ._replace import install, uninstall

__all__ = ["VibeVoiceAccelerator", "accelerate", "restore"]

_SCHEDULERS = ("DPMSolverMultistepScheduler", "FusedDPMSolverMultistepScheduler")
_GRID = ("grid", "ratio_max", "ratio_min", "rho", "shift", "denoise_last")
_KEPT = 32  # tables; the least recently used goes first

_tables: OrderedDict[tuple, StepTable] = OrderedDict()


class _Ahead(NamedTuple):
    """As `denoise_token` takes it."""

    lookahead: int | str
    mode: str | None
    tolerance: float | None


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
        "_has_unfinished_sequences": ("this_peer_finished",),
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
        speaking, self._speaking = self._speaking, None
        if self._addresses is not None:
            key, stream, start = self._addresses.key, self._addresses.take(speaking), None
        else:
            stream = make_stream(None, count, 0, weight.device)
            # As stock draws it, on the CPU and for both halves, of which it uses the first.
            size = head.model.noisy_images_proj.in_features
            start = torch.randn(2 * count, size).to(weight.device, dtype)[:count].float()
            key = make_key(None, weight.device) if table.draws else stream.new_zeros(1)
        guided = guidance_scale != 1
        ahead = self.options["lookahead"]
        latent = denoise_token(
            head, positive_condition.to(weight), table, key, 0, stream, start=start,
            uncond=negative_condition.to(weight) if guided else None,
            guidance=guidance_scale if guided else None, **(ahead._asdict() if ahead else {}),
        )  # fmt: skip
        return latent.to(dtype).unsqueeze(1)

    def table(self, scheduler: Any, steps: int) -> StepTable:
        """The rows of `steps` calls on the scheduler's schedule; levels as the model is given them,
        rounded to its dtype.

        Raises:
            ValueError: a scheduler whose steps are not known.
        """
        dtype = self.stock_head().cond_proj.weight.dtype
        own = (steps, dtype, *(self.options[name] for name in ("solver", "table", "options")))
        key = (_config(scheduler), *own)
        if key not in _tables:
            given = self.options["table"]
            _check_scheduler(scheduler, given.solver if given else self.options["solver"])
            table = self._make(scheduler, steps)
            level = torch.tensor(table.level).to(dtype).double().numpy()
            _tables[key] = replace(table, level=level)
            if len(_tables) > _KEPT:
                _tables.popitem(last=False)
        _tables.move_to_end(key)
        return _tables[key]

    def _make(self, scheduler: Any, steps: int) -> StepTable:
        config, name = scheduler.config, self.options["solver"]
        prediction = config["prediction_type"].replace("flow_prediction", "flow")
        if name is not None or self.options["table"] is not None:
            path = DiscretePath(np.asarray(scheduler.alphas_cumprod, np.float64))
            if self.options["table"] is not None:
                self.options["table"].check_model(path, prediction)
                return self.options["table"]
            options = dict(self.options["options"])
            if "dim" in solver_options(name):
                options.setdefault("dim", self.stock_head().noisy_images_proj.in_features)
            return make_table(name, path=path, prediction=prediction, steps=steps, **options)
        scheduler.set_timesteps(num_inference_steps=steps)
        return dpmpp_table(
            np.asarray(scheduler.sigmas),
            scheduler.timesteps.tolist(),
            prediction=prediction,
            algorithm=config["algorithm_type"],
            order=config["solver_order"],
            solver=config["solver_type"],
            lower_order_final=config["lower_order_final"],
            euler_at_final=config["euler_at_final"],
            final_sigmas_type=config["final_sigmas_type"],
            flow=config["use_flow_sigmas"],
        )


def _config(scheduler: Any) -> tuple:
    """Class, configuration and schedule by value, as all of them may be changed between tokens;
    empty for what is no scheduler of diffusers' form."""
    if not (hasattr(scheduler, "to_json_string") and hasattr(scheduler, "config")):
        return ()
    schedule = getattr(scheduler, "alphas_cumprod", None)
    values = schedule.cpu().numpy().tobytes() if isinstance(schedule, Tensor) else b""
    return type(scheduler).__name__, pickle.dumps(vars(scheduler.config)), values


def _check_scheduler(scheduler: Any, solver: str | None) -> None:
    found = type(scheduler).__name__
    advice = "pass such a noise_scheduler to generate, or restore(model) to run yours"
    if solver is not None:
        schedule = getattr(scheduler, "alphas_cumprod", None)
        if not (_config(scheduler) and isinstance(schedule, Tensor)):
            raise ValueError(
                f"VibeVoice: solver {solver!r} needs a noise_scheduler of diffusers with "
                f"alphas_cumprod, the schedule that the head was trained on, got {found}: {advice}"
            )
        if scheduler.config.get("use_flow_sigmas"):
            raise ValueError(
                f"VibeVoice: solver {solver!r} runs on the schedule of alphas_cumprod, but this "
                f"{found} has use_flow_sigmas=True; leave solver out"
            )
        return
    if found not in _SCHEDULERS:
        raise ValueError(
            f"VibeVoice: the steps of {found} are not known to accelerate; expected "
            f"{' or '.join(_SCHEDULERS)}: {advice}"
        )
    known = {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "thresholding": (False,)}
    for name, values in known.items():
        if scheduler.config[name] not in values:
            raise ValueError(
                f"VibeVoice: {found} has {name}={scheduler.config[name]!r}, expected "
                f"{' or '.join(map(repr, values))}: {advice}"
            )


def accelerate(
    model: Any,
    *,
    solver: str | None = None,
    table: StepTable | str | PathLike | None = None,
    weights: str | None = None,
    seed: int | None = None,
    sample_ids: Sequence[int] | Tensor | None = None,
    batch_invariant: bool = False,
    lookahead: int | str | None = None,
    mode: str | None = None,
    tolerance: float | None = None,
    **options: Any,
) -> VibeVoiceAccelerator:
    """Runs the diffusion head of `model` on the head engine, within `generate` as it is.

    The audio latents are those of the stock loop on the same noise, which is drawn from torch's
    global generator as stock draws it. With guidance_scale 1 the unconditional rows are left out.

    Args:
        model: `VibeVoiceForConditionalGeneration` of transformers 5.19 or later. Its parameters are
            used where they are, and followed when they change; the packed weights take memory
            beside them.
        solver: None for the steps of the noise scheduler in use (DPM-Solver++); or a name of
            :func:`ardiff.solver`, such as ``rtk-uld``, which runs on its schedule with
            `num_diffusion_steps` calls. Solvers that add noise address it by `seed`, or by a key
            drawn from the global generator at each token.
        table: a table on its schedule, for its prediction type, or the name of a file of one, in
            place of `solver` and `options`; `num_diffusion_steps` has no say then.
        weights: ``float32``, ``bfloat16`` or ``int8``, those of the blocks as they are packed; None
            for the head's own dtype (float16: float32). Sums are float32.
        seed: address all noise instead: a latent is then a function of seed, sample id, the number
            of the sample's token, and the conditions, whatever the batch.
        sample_ids: integers in [0, 2^43), one per sample of `generate`; default 0 up. They can be
            changed between calls: ``handle.sample_ids = [7]``.
        batch_invariant: a row's bits do not depend on the others, given equal conditions.
        lookahead, mode, tolerance: as of :func:`ardiff.sample`, of each token's run.
        options: the solver's own, as ``stages`` and ``inner``.

    Returns:
        A handle; the same one if `model` has been accelerated with equal options.

    Raises:
        ImportError: transformers is absent or too old.
        TypeError: a model of another class.
        RuntimeError: a version of transformers that is not known, or a model that is accelerated
            with other options already.
        ValueError: options, a solver or a head that do not fit. A noise scheduler that does not is
            refused by `generate`.
    """
    ahead = None
    if check_lookahead(lookahead, mode, tolerance) is not None:
        ahead = _Ahead(lookahead, mode, tolerance)
    if table is not None:
        table = StepTable.alone(table, solver=solver, **options)
    elif solver is not None:
        unknown = sorted(set(options) - {*solver_options(solver), *_GRID})
        if unknown:
            known = ", ".join((*solver_options(solver), *_GRID))
            raise ValueError(f"solver {solver} does not take {unknown[0]!r}; it takes: {known}")
    elif options:
        raise ValueError(f"{min(options)!r} is an option of a solver: pass solver too")
    return install(
        VibeVoiceAccelerator, model,
        {
            "solver": solver, "table": table, "weights": weights, "seed": seed,
            "sample_ids": sample_ids, "batch_invariant": batch_invariant, "lookahead": ahead,
            "options": tuple((k, _hashable(v)) for k, v in sorted(options.items())),
        },
    )  # fmt: skip


def _hashable(value: Any) -> Any:
    return tuple(map(float, value)) if isinstance(value, (list, np.ndarray)) else value


def restore(model: Any) -> None:
    """Undoes :func:`accelerate`; does nothing to a model that is not accelerated."""
    uninstall(VibeVoiceAccelerator, model)
