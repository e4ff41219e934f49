"""What compiled NVIDIA kernels use, read from the machine code by cuobjdump."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

WIDTHS = (8, 16, 32, 64, 128)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\w+)((?:\.\w+)*)", re.M)
_RESOURCES = re.compile(
    r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE
)
_LOADS, _STORES, _COPY = ("LDG", "LD"), ("STG", "ST"), "LDGSTS"
_MATRIX = {"HMMA": "matrix", "HGMMA": "warpgroup_matrix"}


def find_cuobjdump() -> str | None:
    """The one that comes with triton, else the toolkit's."""
    spec = find_spec("triton")
    if spec and spec.origin:
        path = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        if path.exists():
            return str(path)
    return shutil.which("cuobjdump")


def width_of(modifiers: str) -> int:
    """Bits that one lane moves in a load or store with these modifiers, such as ".E.128"."""
    names = modifiers.split(".")
    for name, bits in (("U8", 8), ("S8", 8), ("U16", 16), ("S16", 16), ("64", 64), ("128", 128)):
        if name in names:
            return bits
    return 32


def counts(code: str) -> dict[str, int]:
    """Instructions of one kernel: all, barriers, accesses of local memory (a spill is such a one),
    those of the matrix units (of a warp, and of a warpgroup), global loads, stores and copies to
    shared memory of each width in bits."""
    found = {"instructions": 0, "local_instructions": 0, "barriers": 0, "stores": 0}
    found |= dict.fromkeys(_MATRIX.values(), 0)
    found |= {f"{kind}_{bits}": 0 for kind in ("load", "store", "copy") for bits in WIDTHS}
    for opcode, modifiers in _INSTRUCTION.findall(code):
        found["instructions"] += 1
        if opcode in ("LDL", "STL"):
            found["local_instructions"] += 1
        elif opcode == "BAR":
            found["barriers"] += 1
        elif opcode in _MATRIX:
            found[_MATRIX[opcode]] += 1
        elif opcode in _LOADS:
            found[f"load_{width_of(modifiers)}"] += 1
        elif opcode == _COPY:
            found[f"copy_{width_of(modifiers)}"] += 1
        elif opcode in _STORES:
            found["stores"] += 1
            found[f"store_{width_of(modifiers)}"] += 1
    return found


def usage_of(dump: str) -> dict[tuple[str, str], dict[str, int]]:
    """By target and kernel: registers, bytes of static shared and of local memory, and `counts`.
    `dump` is what `cuobjdump --dump-resource-usage -sass` says of an object or a cubin."""
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for part in dump.split("Fatbin elf code:"):  # an object has one for each target, a cubin none
        if not (code_for := re.search(r"code for (sm_\d+)", part)):
            continue
        target = code_for[1]
        for name, registers, stack, shared, local in _RESOURCES.findall(part):
            row = {"registers": int(registers), "local_bytes": int(stack) + int(local)}
            rows.setdefault((target, name), {}).update(row, static_shared_bytes=int(shared))
        for name, code in re.findall(r"Function : (\S+)\n(.*?)(?=Function :|\Z)", part, re.DOTALL):
            rows.setdefault((target, name), {}).update(counts(code))
    return rows


def usage(path: Path) -> dict[tuple[str, str], dict[str, int]]:
    """`usage_of` a file; RuntimeError without cuobjdump."""
    tool = find_cuobjdump()
    if tool is None:
        raise RuntimeError("cuobjdump was not found; install triton or the CUDA toolkit")
    run = [tool, "--dump-resource-usage", "-sass", str(path)]
    done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(run)} failed: {done.stderr.strip()}")
    return usage_of(done.stdout)
