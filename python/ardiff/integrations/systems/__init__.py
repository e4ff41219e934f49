"""Whole models: `accelerate` replaces what it knows of a model, `restore` undoes it."""
