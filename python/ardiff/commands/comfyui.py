"""Add the node with ardiff's samplers to a ComfyUI folder."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

_NODE = Path(__file__).parents[1] / "integrations" / "_comfyui_node" / "__init__.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of ComfyUI: it has main.py")


def run(args: argparse.Namespace) -> tuple[dict, int]:
    nodes = args.folder / "custom_nodes"
    if not nodes.is_dir():
        raise FileNotFoundError(f"expected the folder of ComfyUI, with custom_nodes in it: {nodes}")
    target = nodes / "ardiff_sampler" / _NODE.name
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(_NODE, target)
    print(f"wrote {target}; restart ComfyUI, whose Python must have ardiff-kernels installed")
    return {"node": str(target)}, 0
