"""The samplers of :mod:`ardiff.integrations.kdiffusion` in ComfyUI.

The folder ``integrations/comfyui/ardiff_sampler`` of the repository, copied to ComfyUI's
``custom_nodes``, imports this module and so adds `rtk_uld`, `rtk_mala`, `ddpm_fused` and
`dpmpp_2m_sde_fused` to the samplers of every KSampler node, and a node for each that sets its
options (SAMPLER, for SamplerCustom). Rectified-flow models are recognised: their sigmas are read as
x = (1 - sigma) x0 + sigma eps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .kdiffusion import SAMPLERS

try:
    import comfy.k_diffusion.sampling
    import comfy.model_sampling
    import comfy.samplers
except ImportError as error:
    raise ImportError(
        "ardiff.integrations.comfyui works inside ComfyUI, whose package comfy was not found: "
        "pip install 'ardiff-kernels[comfyui]' into ComfyUI's Python and copy "
        "integrations/comfyui/ardiff_sampler to ComfyUI/custom_nodes "
        "(docs/integrations/comfyui.md); elsewhere use ardiff.integrations.kdiffusion"
    ) from error


def path_of(model: Any) -> str:
    """``flow`` for rectified-flow models, else ``edm``; `model` is what ComfyUI gives a sampler."""
    flow = getattr(comfy.model_sampling, "CONST", ())
    return "flow" if isinstance(model.inner_model.inner_model.model_sampling, flow) else "edm"


def _in_comfyui(sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(sample)
    def inside(model: Any, x: Tensor, sigmas: Tensor, *args: Any, **options: Any) -> Tensor:
        options.setdefault("path", path_of(model))
        return sample(model, x, sigmas, *args, **options)

    inside.ardiff = True
    return inside


FUNCTIONS = {name: _in_comfyui(sample) for name, sample in SAMPLERS.items()}


def register() -> None:
    """Adds the samplers to ComfyUI's lists; a second time it changes nothing.

    Raises:
        RuntimeError: another extension has taken one of the names; nothing is registered then.
    """
    module = comfy.k_diffusion.sampling
    for name in FUNCTIONS:
        taken = getattr(module, f"sample_{name}", None)
        if taken is not None and not getattr(taken, "ardiff", False):
            raise RuntimeError(
                f"ComfyUI already has a sampler {name!r}, of {taken.__module__}: remove one of "
                "the two extensions"
            )
    for name, function in FUNCTIONS.items():
        setattr(module, f"sample_{name}", function)
        for names in (comfy.samplers.SAMPLER_NAMES, comfy.samplers.KSampler.SAMPLERS):
            if name not in names:
                names.append(name)


def _number(default: float, low: float, high: float) -> tuple:
    return ("FLOAT", {"default": default, "min": low, "max": high, "step": 0.01, "round": False})


_STAGES = {
    "inner": ("INT", {"default": 2, "min": 1, "max": 100}),
    "tau": _number(0.4, 0.01, 10.0),
    "stages": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "0: one per step"}),
    "s_noise": _number(1.0, 0.0, 100.0),
}
_ETA = {"eta": _number(1.0, 0.0, 100.0), "s_noise": _number(1.0, 0.0, 100.0)}
OPTIONS = {
    "rtk_uld": {**_STAGES, "gamma": _number(2.0, 0.01, 100.0)},
    "rtk_mala": {**_STAGES, "accept": (["trapezoid", "simpson"],)},
    "ddpm_fused": _ETA,
    "dpmpp_2m_sde_fused": {**_ETA, "solver_type": (["midpoint", "heun"],)},
}


class SamplerNode:
    """A node that gives a SAMPLER with options; subclasses name the sampler."""

    sampler = ""
    RETURN_TYPES = ("SAMPLER",)
    CATEGORY = "sampling/custom_sampling/samplers"
    FUNCTION = "get_sampler"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": dict(OPTIONS[cls.sampler])}

    def get_sampler(self, **options: Any) -> tuple:
        if "stages" in options:
            options["stages"] = options["stages"] or None
        return (comfy.samplers.KSAMPLER(FUNCTIONS[self.sampler], extra_options=options),)


TITLES = {
    "rtk_uld": "RTK-ULD", "rtk_mala": "RTK-MALA", "ddpm_fused": "DDPM (fused)",
    "dpmpp_2m_sde_fused": "DPM++ 2M SDE (fused)",
}  # fmt: skip
NODE_CLASS_MAPPINGS = {
    f"ArdiffSampler_{name}": type(f"ArdiffSampler_{name}", (SamplerNode,), {"sampler": name})
    for name in FUNCTIONS
}
NODE_DISPLAY_NAME_MAPPINGS = {
    f"ArdiffSampler_{name}": f"ardiff {title}" for name, title in TITLES.items()
}
