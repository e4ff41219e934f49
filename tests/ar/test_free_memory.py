"""Free memory: of the machine, of a control group of either version, of a GPU and PyTorch on it."""

from __future__ import annotations

from pathlib import Path

import torch

from ardiff.ar import free_memory as memory

MIB = 2**20
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def write_group(folder: Path, names: tuple, limit: str, used: int = 0, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {files}\nactive_file 7\n")


def left(tmp_path: Path, membership: str) -> int | None:
    (tmp_path / "cgroup").write_text(membership)
    found = memory._of_groups(tmp_path / "cgroup", tmp_path / "fs")
    return min((n for n in found if n is not None), default=None)


def test_the_tightest_group_counts(tmp_path):
    """Of one's own and those around it; the page cache can be given back."""
    write_group(tmp_path / "fs/a", V2, str(100 * MIB), used=80 * MIB, files=30 * MIB)
    write_group(tmp_path / "fs/a/b", V2, "max", used=10 * MIB)
    write_group(tmp_path / "fs/a/b/c", V2, str(90 * MIB), used=10 * MIB)
    assert left(tmp_path, "0::/a/b/c\n") == 50 * MIB
    assert left(tmp_path, "0::/a/b\n") == 50 * MIB
    assert left(tmp_path, "0::/\n") is None
    write_group(tmp_path / "fs/a/b/c", V2, str(60 * MIB), used=59 * MIB)
    assert left(tmp_path, "0::/a/b/c\n") == MIB
    write_group(tmp_path / "fs/a/b/c", V2, str(60 * MIB), used=61 * MIB)
    assert left(tmp_path, "0::/a/b/c\n") == 0


def test_a_group_seen_from_within_a_container(tmp_path):
    """The path is the host's; what is mounted is the container's own group."""
    write_group(tmp_path / "fs", V2, str(64 * MIB), used=4 * MIB)
    assert left(tmp_path, "0::/docker/0123abcd\n") == 60 * MIB


def test_groups_of_version_1(tmp_path):
    """Beside other controllers, the memory one; 2^63 less a page is no limit."""
    membership = "12:cpu,cpuacct:/x\n4:memory,hugetlb:/jobs/7\n1:name=systemd:/x\n0::/x\n"
    write_group(tmp_path / "fs/memory/jobs/7", V1, str(32 * MIB), used=12 * MIB, files=2 * MIB)
    write_group(tmp_path / "fs/memory", V1, "9223372036854771712", used=2**40)
    assert left(tmp_path, membership) == 22 * MIB
    write_group(tmp_path / "fs/memory/jobs", V1, str(16 * MIB), used=12 * MIB)
    assert left(tmp_path, membership) == 4 * MIB
    assert left(tmp_path, "4:memory:/\n") is None


def test_the_machine_or_the_group_whichever_leaves_less(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   4096 kB\nCached: 1 kB\n")
    assert memory._of_machine(tmp_path / "meminfo") == 4 * MIB
    for machine, groups, expected in (
        (9 * MIB, [None, 5 * MIB], 5 * MIB),
        (2 * MIB, [5 * MIB], 2 * MIB),
        (None, [5 * MIB], 5 * MIB),
        (3 * MIB, [], 3 * MIB),
        (None, [None], None),
    ):
        monkeypatch.setattr(memory, "_of_machine", lambda n=machine: n)
        monkeypatch.setattr(memory, "_of_groups", lambda n=groups: n)
        assert memory.available_bytes("cpu") == expected


def test_a_system_that_says_nothing(monkeypatch, tmp_path):
    assert memory._of_machine(tmp_path / "none") is None
    assert memory._of_groups(tmp_path / "none", tmp_path) == []
    assert left(tmp_path, "0::/a\n") is None
    assert memory.available_bytes("meta") is None


def test_this_machine():
    free = memory.available_bytes("cpu")
    assert free is None or MIB < free < 2**50


def test_a_gpu_has_what_pytorch_holds_and_does_not_use(monkeypatch):
    given = []

    def says(value):
        return lambda device: given.append(device) or value

    monkeypatch.setattr(torch.cuda, "mem_get_info", says((3 * MIB, 80 * MIB)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", says(20 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", says(15 * MIB))
    assert memory.available_bytes("cuda:1") == 8 * MIB
    assert given == [torch.device("cuda:1")] * 3
