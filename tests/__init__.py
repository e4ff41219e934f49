"""The tests, in the folders of what they test; `_support` holds what several of them use."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
