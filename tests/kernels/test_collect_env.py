"""What `ardiff doctor` says of a broken nvcc and of installations inside other repositories."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ardiff_kernels import collect_env


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 1", "does not run"),
        ("true", "does not run"),
        ("echo first; echo Build 13.0", "Build 13.0"),
    ],
    ids=["fails", "silent", "works"],
)
def test_nvcc_is_named_with_what_it_says(tmp_path: Path, monkeypatch, script, said) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(collect_env.shutil, "which", lambda name: str(nvcc))
    assert collect_env._nvcc() == f"{said} ({nvcc})"


def test_a_repository_around_the_installation_is_not_ours(tmp_path: Path, monkeypatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git[:3], "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    installed = tmp_path / "lib" / "site-packages"
    installed.mkdir(parents=True)
    monkeypatch.setattr(collect_env, "_ROOT", installed)
    assert collect_env._git("rev-parse", "HEAD") == ""
    monkeypatch.setattr(collect_env, "_ROOT", tmp_path)
    assert len(collect_env._git("rev-parse", "HEAD")) == 40
