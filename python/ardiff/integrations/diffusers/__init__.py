"""Schedulers for diffusers pipelines whose `step` is one fused op: `pipe.scheduler = ...`.

Pipelines saved with one of them name this module. diffusers imports no module because a file names
it, so import it before they are loaded back; from the Hub, call :func:`register` too.
"""

from __future__ import annotations

try:
    from diffusers import SchedulerMixin  # diffusers looks it up here when it loads a pipeline
except ImportError as error:
    raise ImportError(
        "ardiff.integrations.diffusers needs diffusers: pip install 'diffusers>=0.36'"
    ) from error

from .ddim import FusedDDIMScheduler
from .ddpm import FusedDDPMScheduler
from .dpm_solver import FusedDPMSolverMultistepScheduler
from .euler import FusedEulerAncestralDiscreteScheduler, FusedEulerDiscreteScheduler
from .flow_match_euler import FusedFlowMatchEulerDiscreteScheduler
from .lcm import FusedLCMScheduler
from .rtk import RTKMALAScheduler, RTKULDScheduler
from .table import TableScheduler
from .unipc import FusedUniPCMultistepScheduler

__all__ = [
    "FusedDDIMScheduler",
    "FusedDDPMScheduler",
    "FusedDPMSolverMultistepScheduler",
    "FusedEulerAncestralDiscreteScheduler",
    "FusedEulerDiscreteScheduler",
    "FusedFlowMatchEulerDiscreteScheduler",
    "FusedLCMScheduler",
    "FusedUniPCMultistepScheduler",
    "RTKMALAScheduler",
    "RTKULDScheduler",
    "SchedulerMixin",
    "TableScheduler",
    "register",
]


def register() -> None:
    """Make this module one of the libraries that diffusers loads a pipeline's components from.

    For pipelines on the Hub: of those diffusers refuses every other library before it downloads
    anything. Saved pipelines on disk need the import of this module alone.
    """
    # imported here since it imports transformers, which takes seconds
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    LOADABLE_CLASSES[__name__] = {"SchedulerMixin": ["save_pretrained", "from_pretrained"]}
