"""The samplers of :mod:`ardiff.integrations.kdiffusion` in ComfyUI.

The custom node that ``ardiff comfyui FOLDER`` copies to ComfyUI imports this module and so adds a
sampler for every solver of ardiff to those of every KSampler node, and a node for each that sets
its options (SAMPLER, for SamplerCustom). The
`rtk_` samplers keep their names; others end in `_fused`, as `heun_fused` does, since ComfyUI has
samplers of its own with their names. Rectified-flow models are recognised: their sigmas are read as
x = (1 - sigma) x0 + sigma eps.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .kdiffusion import SAMPLERS, SOLVER_SAMPLERS

try:
    import comfy.k_diffusion.sampling
    import comfy.model_sampling
    import comfy.samplers
except ImportError as error:
    raise ImportError(
        "ardiff.integrations.comfyui works inside ComfyUI, whose package comfy was not found: "
        "install ardiff-kernels into ComfyUI's Python and put the node into its custom_nodes by "
        "`ardiff comfyui FOLDER` (docs/integrations/comfyui.md); elsewhere use "
        "ardiff.integrations.kdiffusion"
    ) from error


def path_of(model: Any) -> str:
    """``flow`` for rectified-flow models, else ``edm``; `model` is what ComfyUI gives a sampler."""
    flow = getattr(comfy.model_sampling, "CONST", ())
    return "flow" if isinstance(model.inner_model.inner_model.model_sampling, flow) else "edm"


# Whose noise is by default that of a path, as ComfyUI's own samplers of this kind have it: an image
# keeps its composition when the number of steps changes.
BY_PATH = ("ddpm_fused", "ddim_fused", "ddpm_ei_fused", "dpmpp_2m_sde_fused", "flow_sde_fused")


def _in_comfyui(name: str, sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(sample)
    def inside(model: Any, x: Tensor, sigmas: Tensor, *args: Any, **options: Any) -> Tensor:
        options.setdefault("path", path_of(model))
        if name in BY_PATH:
            options.setdefault("noise", "path")
        return sample(model, x, sigmas, *args, **options)

    inside.ardiff = True
    return inside


def _name(solver: str) -> str:
    return solver if solver.startswith("rtk_") else f"{solver}_fused"


_ALL = {_name(solver): sample for solver, sample in SOLVER_SAMPLERS.items()}
_ALL = SAMPLERS | {name: sample for name, sample in _ALL.items() if name not in SAMPLERS}
FUNCTIONS = {name: _in_comfyui(name, sample) for name, sample in _ALL.items()}


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
_NOISE = {"noise": (["path", "step"], {"tooltip": "path: nearly the same image at any steps"})}
# of options that are names, by the default
_CHOICES = {"trapezoid": ["trapezoid", "simpson"], "midpoint": ["midpoint", "heun"]}
_CHOICES |= {"phi_1": ["phi_1", "phi_2"], "bh2": ["bh2", "bh1"], "log": ["log", "vp-time"]}
_SWITCH = {"auto": None, "on": True, "off": False}  # of lower_order_final
_OWN_DEFAULT = {"min": 0.0, "max": 10000.0, "step": 0.01, "round": False}
_OWN_DEFAULT |= {"default": 0.0, "tooltip": "0: the solver's own default"}
_NOT_ASKED = ("path", "seed", "sample_ids", "noise", "dim")


def _inputs(sample: Callable[..., Tensor]) -> dict[str, tuple]:
    """What a node asks for, from the sampler's signature; 0 stands for a default of None."""
    parameters = inspect.signature(sample).parameters
    own = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in _NOT_ASKED]
    eta = parameters["eta"].default
    found = {} if eta is None else {"eta": _number(eta, 0.0, 100.0)}
    found["s_noise"] = _number(1.0, 0.0, 100.0)
    for parameter in own:
        name, default = parameter.name, parameter.default
        if name == "lower_order_final":
            found[name] = (list(_SWITCH),)
        elif default in _CHOICES:
            found[name] = (_CHOICES[default],)
        elif isinstance(default, bool):
            found[name] = ("BOOLEAN", {"default": default})
        elif default is None:
            found[name] = ("FLOAT", _OWN_DEFAULT)
        elif isinstance(default, str):
            found[name] = ("STRING", {"default": default})
        elif isinstance(default, int):
            found[name] = ("INT", {"default": default, "min": 1, "max": 100})
        else:
            found[name] = _number(default, 0.0, 10000.0)
    return found


OPTIONS = {name: _inputs(sample) for name, sample in _ALL.items() if name not in SAMPLERS} | {
    "rtk_uld": {**_STAGES, "gamma": _number(2.0, 0.01, 100.0)},
    "rtk_mala": {**_STAGES, "tau": ("FLOAT", _OWN_DEFAULT), "accept": (["trapezoid", "simpson"],)},
    "ddpm_fused": _ETA,
    "dpmpp_2m_sde_fused": {**_ETA, "solver_type": (["midpoint", "heun"],)},
}


for _each in BY_PATH:
    OPTIONS[_each] = OPTIONS[_each] | _NOISE


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
        for name, (_, *more) in OPTIONS[self.sampler].items():
            if name in options and (name == "stages" or _OWN_DEFAULT in more):
                options[name] = options[name] or None
            elif name == "lower_order_final" and name in options:
                options[name] = _SWITCH[options[name]]
        return (comfy.samplers.KSAMPLER(FUNCTIONS[self.sampler], extra_options=options),)


TITLES = {
    "rtk_uld": "RTK-ULD", "rtk_mala": "RTK-MALA", "ddpm_fused": "DDPM (fused)",
    "dpmpp_2m_sde_fused": "DPM++ 2M SDE (fused)",
}  # fmt: skip


def _title(name: str) -> str:
    """``rtk_hmc`` as RTK-HMC, ``heun_fused`` as HEUN (fused)."""
    solver = name.removesuffix("_fused")
    return solver.upper().replace("_", "-") + (" (fused)" if solver != name else "")


NODE_CLASS_MAPPINGS = {
    f"ArdiffSampler_{name}": type(f"ArdiffSampler_{name}", (SamplerNode,), {"sampler": name})
    for name in FUNCTIONS
}
NODE_DISPLAY_NAME_MAPPINGS = {
    f"ArdiffSampler_{name}": f"ardiff {TITLES.get(name) or _title(name)}" for name in FUNCTIONS
}
