"""What this installation is and can do: the data behind `ardiff doctor` and every benchmark."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from . import __version__, _environment, host
from .dispatch import backends, cpu, load
from .ops._shared.arguments import dtype_name
from .ops.packed_linear import limits

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "triton", "numpy", "safetensors")


def collect() -> dict:
    """Versions, CPU, GPUs, compiled libraries and backends, as values that JSON can hold."""
    return {
        "ardiff": __version__,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": {
            "model": _cpu_model(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "isa": cpu.current_isa(),
            "products": cpu.current_dots(),
            "pytorch_products_from": {
                dtype_name(dtype): rows
                for dtype, rows in limits.PYTORCH_FROM.get(limits.way(), {}).items()
            },
            "features": [name for name, has in host.cpu_features().items() if has],
        },
        "cuda": {
            "torch_built_for": torch.version.cuda or torch.version.hip or "",
            "nvcc": _nvcc(),
            "driver": _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "devices": _gpus(),
        },
        "build": host.build_info(),
        "libraries": {
            library.path.name: library.reason or "loaded" for library in (load.CPU, load.CUDA)
        },
        "environment": {n: v for n, v in sorted(os.environ.items()) if n.startswith("ARDIFF_")},
        "backends": backends.status(),
        "only_reference": _environment.only_reference(),
    }


def describe(found: dict) -> str:
    """The findings of `collect` as text; each backend that is not usable is followed by why."""
    processor, cuda = found["cpu"], found["cuda"]
    lines = [
        f"ardiff       {found['ardiff']}" + (f", commit {found['commit']}" * bool(found["commit"])),
        f"python       {found['python']} on {found['platform']}",
        "packages     " + ", ".join(f"{n} {v or 'missing'}" for n, v in found["packages"].items()),
        f"cpu          {processor['model']}, {processor['cores']} cores, "
        f"{processor['torch_threads']} torch threads",
        f"cpu features {', '.join(processor['features'])}; {_loops(processor)}",
        f"products     by PyTorch where it was measured faster: {_products(processor)}",
        f"nvcc         {cuda['nvcc'] or 'not found'}",
        f"gpus         {'; '.join(g['name'] for g in cuda['devices']) or 'none that torch sees'}",
        "build        " + ", ".join(f"{n} {v}" for n, v in found["build"].items()),
        *(f"library      {name}: {state}" for name, state in found["libraries"].items()),
        *(f"environment  {name}={value}" for name, value in found["environment"].items()),
    ]
    lines += ["backends, by device (* serves the op)", *_describe_backends(found["backends"])]
    if found["only_reference"]:
        lines.append(f"FAULT: {_environment.ONLY_REFERENCE}. {_environment.REMEDY}.")
    return "\n".join(lines)


def _loops(processor: dict) -> str:
    if not processor["isa"]:
        return "C++ loops use nothing"
    return f"C++ loops use {processor['isa']}, products of packed weights {processor['products']}"


def _products(processor: dict) -> str:
    found = processor["pytorch_products_from"].items()
    return ", ".join(f"{dtype} from {rows} rows on" for dtype, rows in found) or "at no rows"


def _describe_backends(rows: list[dict[str, str]]) -> list[str]:
    """A line for each device, backend and reason, naming its ops where they are not all."""
    everything = list(dict.fromkeys(row["op"] for row in rows))
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        about = (row["device"], row["backend"], row["chosen"], row["reason"])
        groups.setdefault(about, []).append(row["op"])
    lines = []
    for (device, backend, chosen, reason), ops in groups.items():
        state = f"not usable: {reason}" if reason else "usable"
        which = "all ops" if ops == everything else ", ".join(ops)
        lines.append(f"{'*' if chosen else ' '} {device:<5} {backend:<10} {which}: {state}")
    return lines


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _git(*arguments: str) -> str:
    """Of this project's own checkout; empty where installed, be it inside another repository."""
    return _run("git", "-C", str(_ROOT), *arguments) if (_ROOT / ".git").exists() else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")


def _nvcc() -> str:
    path = shutil.which("nvcc")
    if not path:
        return ""
    said = _run(path, "--version").splitlines()
    return f"{said[-1] if said else 'does not run'} ({path})"


def _gpus() -> list[dict]:
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "memory_gib": round(p.total_memory / 2**30, 1),
            "multiprocessors": p.multi_processor_count,
        }
        for p in found
    ]
