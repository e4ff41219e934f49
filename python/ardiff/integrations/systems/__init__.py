"""Whole models: `accelerate` replaces what it knows of a model, `restore` undoes it."""

from __future__ import annotations

from .entry import accelerate, restore
from .report import Report

__all__ = ["Report", "accelerate", "restore"]
