"""The prediction without the condition, which the CFG++ samplers step along, out of ComfyUI."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Unconditional:
    """Catches it where guidance is made, by a post-CFG function, as ComfyUI's own samplers do.

    Args:
        extra_args: of the sampler, whose ``model_options`` the model hands to its guidance.

    Attributes:
        extra_args: with the function in ``model_options``, for the model's calls.

    Raises:
        ValueError: without ``model_options``, and from :meth:`take` where the model has not called
            the function.
    """

    def __init__(self, extra_args: dict[str, Any] | None) -> None:
        if "model_options" not in (extra_args or {}):
            raise ValueError(
                "cfg_pp needs the prediction without the condition, which a model gives to the "
                'functions in extra_args["model_options"]["sampler_post_cfg_function"]; '
                "extra_args has no model_options: leave cfg_pp out"
            )
        options = dict(extra_args["model_options"])
        functions = [*options.get("sampler_post_cfg_function", []), self._keep]
        options |= {"sampler_post_cfg_function": functions, "disable_cfg1_optimization": True}
        self.extra_args = extra_args | {"model_options": options}
        self._found: Tensor | None = None

    def _keep(self, args: dict[str, Any]) -> Tensor:
        self._found = args["uncond_denoised"]
        return args["denoised"]

    def take(self) -> Tensor:
        """The prediction at the last call."""
        found, self._found = self._found, None
        if found is None:
            raise ValueError(
                "cfg_pp needs the prediction without the condition, but the model made none: it "
                'has not called the functions in model_options["sampler_post_cfg_function"], or '
                "has no negative condition"
            )
        return found
