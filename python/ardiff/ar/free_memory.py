"""How much memory a device has left, within the limits of a container."""

from __future__ import annotations

from pathlib import Path

import torch

_GROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60  # cgroup v1 says "none" by a number near 2^63


def available_bytes(device: torch.device | str) -> int | None:
    """Memory that a new tensor on `device` can take; None where the system does not say.

    On a CPU what the machine has, and no more than the control groups of this process leave, which
    is how containers and job schedulers limit it. On a GPU what the driver has, and what PyTorch
    holds of it without using it.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    known = [n for n in (_of_machine(), *_of_groups()) if n is not None]
    return min(known, default=None)


def _of_machine(path: Path = Path("/proc/meminfo")) -> int | None:
    for line in _lines(path):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_groups(
    membership: Path = Path("/proc/self/cgroup"), groups: Path = _GROUPS
) -> list[int | None]:
    """What the groups of this process and those around them leave, version 2 and version 1."""
    found = []
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names, root = ("memory.max", "memory.current", "inactive_file"), groups
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = groups / "memory"
        else:
            continue
        # In a container the path may be that of the host, which is not mounted: its root is then
        # the container's own group.
        own = root / path.strip("/")
        while True:
            found.append(_left(own, *names))
            if own == root:
                break
            own = own.parent
    return found


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """The limit of a group less what it uses; the page cache of files is given back on demand."""
    most, used = _number(group / limit), _number(group / usage)
    if most is None or used is None or most >= _UNLIMITED:
        return None
    cached = [
        line.split()[1] for line in _lines(group / "memory.stat") if line.split()[0] == reclaimable
    ]
    return max(0, most - used + sum(map(int, cached)))


def _number(path: Path) -> int | None:
    """The number that a file holds; None for a file that is missing and for "max"."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
