"""Train a model on Sun/Shadow or own images; --resume goes on with a run, to the same bits."""

from __future__ import annotations

import argparse
import inspect
import math
import re
import sys
from collections import defaultdict
from dataclasses import asdict, fields
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..training.config import TrainConfig

    said = _option_texts(TrainConfig)
    for entry in fields(TrainConfig):
        option = f"--{entry.name.replace('_', '-')}"
        if entry.name == "seed":
            continue
        if isinstance(entry.default, bool):
            parser.add_argument(option, action="store_true", help=said[entry.name])
        else:
            default = f" (default {entry.default})" if entry.default != "" else ""
            parser.add_argument(
                option,
                type=type(entry.default),
                default=entry.default,
                metavar=type(entry.default).__name__.upper(),
                help=f"{said[entry.name]}{default}".replace("%", "%%"),
            )


def _option_texts(documented: type) -> dict[str, str]:
    """What the docstring of a class says of each attribute, one `name: text` per entry."""
    lines = (inspect.getdoc(documented) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", lines, re.MULTILINE)
    found = {name: " ".join(text.replace("`", "").split()).rstrip(".") for name, text in entries}
    return defaultdict(str, found)  # without docstrings (python -OO) there is no text


def run(args: argparse.Namespace) -> tuple[dict, int]:
    from ..training.config import TrainConfig
    from ..training.trainer import CHECKPOINT, train

    config = TrainConfig(**{entry.name: getattr(args, entry.name) for entry in fields(TrainConfig)})
    if Path(config.out).is_file():
        raise ValueError(f"--out: {config.out} is a file, expected a folder")
    try:
        report = train(config)
    except KeyboardInterrupt:
        kept = Path(config.out) / CHECKPOINT
        said = f"--resume goes on from {kept}" if kept.exists() else "before the first checkpoint"
        raise KeyboardInterrupt(said) from None
    except FloatingPointError as error:
        print(f"ardiff train: {error}", file=sys.stderr)
        return {"error": str(error)}, 1
    did = f"loss {report.loss:.4f}, {report.seconds:.0f} s"
    if math.isnan(report.loss):
        did = "all done before; a larger --steps extends the run"
    print(f"{report.steps} steps, {did}: {report.folder}")
    return {**asdict(report), "folder": str(report.folder), "config": asdict(config)}, 0
