"""Schedulers for diffusers pipelines whose `step` is one fused op: `pipe.scheduler = ...`.

Pipelines saved with one of them name this module, so import it before they are loaded back.
"""

from __future__ import annotations

try:
    from diffusers import SchedulerMixin  # diffusers looks it up here when it loads a pipeline
except ImportError as error:
    raise ImportError(
        "ardiff.integrations.diffusers needs diffusers: pip install 'diffusers>=0.36'"
    ) from error

from .ddpm import FusedDDPMScheduler
from .dpm_solver import FusedDPMSolverMultistepScheduler
from .rtk import RTKMALAScheduler, RTKULDScheduler
from .table import TableScheduler

__all__ = [
    "FusedDDPMScheduler",
    "FusedDPMSolverMultistepScheduler",
    "RTKMALAScheduler",
    "RTKULDScheduler",
    "SchedulerMixin",
    "TableScheduler",
]
