"""Train a Sun/Shadow model; an interrupted run goes on with --resume to the same bits."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..training.config import TrainConfig

    for entry in fields(TrainConfig):
        option = f"--{entry.name.replace('_', '-')}"
        if entry.name == "seed":
            continue
        if isinstance(entry.default, bool):
            parser.add_argument(option, action="store_true")
        else:
            help_text = f"default {entry.default}"
            parser.add_argument(
                option, type=type(entry.default), default=entry.default, help=help_text
            )


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
    print(f"{report.steps} steps, loss {report.loss:.4f}, {report.seconds:.0f} s: {report.folder}")
    return {**asdict(report), "folder": str(report.folder), "config": asdict(config)}, 0
