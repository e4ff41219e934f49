"""The command line `ardiff`: one module of `ardiff.commands` per command, discovered by name."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .. import commands
from .._files import check_writable, descriptor_of, write_json

STDOUT, STDOUT_DESCRIPTOR = Path("/dev/stdout"), 1

BAD_INPUT = (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def command_names() -> list[str]:
    """The modules of the package but private ones."""
    names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    return sorted(name for name in names if not name.startswith("_"))


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; each command module adds its own options."""
    parser = _Parser(prog="ardiff", description="Samplers for autoregressive diffusion models.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in command_names():
        module = importlib.import_module(f"{commands.__name__}.{name}")
        summary = module.__doc__.splitlines()[0]
        command = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.add_argument(
            "--json",
            type=lambda name: STDOUT if name == "-" else Path(name),
            metavar="FILE",
            help="write the results here; - is standard output, all else then goes to standard "
            "error",
        )
        seed = getattr(module, "DEFAULT_SEED", 0)
        known = "drawn, and printed" if seed is None else seed
        command.add_argument("--seed", type=int, default=seed, help=f"default {known}")
        command.set_defaults(run=module.run)
    return parser


def writable(path: Path | None, option: str, suffix: str = "") -> None:
    """Refuse an output path that could not be written, before any work is done.

    Missing parent folders are made; nothing that exists is touched. `suffix` is the file ending
    that is required, if any.

    Raises:
        ValueError: the path is a folder, lies below a file, has another ending or no permission.
    """
    if path is None:
        return
    if suffix and not path.is_dir() and path.suffix.lower() != suffix:
        raise ValueError(f"{option}: expected a name ending in {suffix}, got {path}")
    check_writable(path, option)


def select_device(device: str) -> str:
    """The type, cpu or cuda, of a torch device that exists here; makes it torch's current one.

    Raises ValueError for any other: the kernels serve CPUs and CUDA or ROCm devices alone.
    """
    import torch

    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, or cuda:1 and so on, got {device!r}")
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if found.type == "cuda" and (not count or not torch.cuda.is_available()):
        raise ValueError(
            f"--device {device}: torch {torch.__version__} sees no CUDA or ROCm device"
        )
    if (found.index or 0) >= count:
        raise ValueError(
            f"--device {device}: torch sees {count} of them here, numbered from {found.type}:0"
        )
    if found.type == "cuda" and found.index is not None:
        torch.cuda.set_device(found)
    return found.type


def check_backend(backend: str | None, device: str) -> None:
    """Refuse a kernel backend that cannot serve the device (ValueError with the reason)."""
    from ardiff_kernels import ops
    from ardiff_kernels.dispatch import backends

    if backend is None:
        return
    reasons = [backends.unusable(f"{op}_", backend, device) for op in ops.NAMES]
    if any(reasons):
        raise ValueError(f"--backend {backend}: {next(filter(None, reasons))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; whatever stops it is one line on standard error.

    Returns 0, 1 where a check failed or a file could not be written, 2 on bad input, 130 where
    Ctrl-C interrupted.
    """
    words = ["ardiff"]
    try:
        return _run(argv, words)
    except BAD_INPUT as error:
        said, code = str(error), 2
    except OSError as error:  # a full disk, a closed pipe
        said = ": ".join(filter(None, (error.filename, error.strerror or str(error))))
        code = 1
        _give_up_standard_output()
    except KeyboardInterrupt as error:
        said, code = ": ".join(["interrupted", *map(str, error.args)]), 130
    print(f"{' '.join(words)}: {' '.join(said.split())}", file=sys.stderr)
    return code


def _run(argv: Sequence[str] | None, words: list[str]) -> int:
    """Run one command, whose name is appended to `words` as soon as it is known."""
    try:
        importlib.import_module("ardiff_kernels")
    except RuntimeError as error:  # of ARDIFF_BACKEND or ARDIFF_CPU_ISA
        raise ValueError(error) from error
    args = build_parser().parse_args(argv)
    words.append(args.command)
    if args.seed is not None and not -(2**63) <= args.seed < 2**63:
        raise ValueError(f"--seed: the seed must fit in int64, got {args.seed}")
    writable(args.json, "--json")
    _check_apart(args.json, getattr(args, "out", None))
    apart = args.json is not None and descriptor_of(args.json) == STDOUT_DESCRIPTOR
    with contextlib.redirect_stdout(sys.stderr) if apart else contextlib.nullcontext():
        result, code = args.run(args)
    sys.stdout.flush()  # what was printed stands before what is written to the descriptor
    if args.json is not None:
        write_json(args.json, result)
    return code


def _check_apart(json: Path | None, out: Path | None) -> None:
    """ValueError where --json would overwrite what --out has written."""
    files = json is not None and out is not None and descriptor_of(json) is None
    if files and json.resolve() == Path(out).resolve():
        raise ValueError(f"--json: {json} is the file of --out, expected another")


def _give_up_standard_output() -> None:
    """Where standard output takes nothing more: else Python fails again when it flushes at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
