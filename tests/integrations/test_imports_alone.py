"""Each integration imports without the packages of all others; without its own package the error
says what to install.

One process has torch already and forks for each integration, which saves the seconds that torch
takes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import NamedTuple

import pytest

from tests import ROOT

FOLDER = ROOT / "python/ardiff/integrations"
NAMES = sorted(
    path.stem
    for path in FOLDER.iterdir()
    if not path.name.startswith("_") and (path.suffix == ".py" or path.is_dir())
)
PACKAGES = {
    "comfy", "diffusers", "k_diffusion", "pocket_tts", "torch_fidelity", "torchsde", "torchvision",
    "transformers",
}  # fmt: skip


class Needs(NamedTuple):
    """The packages that an integration works with, the extra that brings them, and the call that
    asks for them where the import does not."""

    packages: set[str] = frozenset()
    extra: str = ""
    call: str = ""


NEEDS = {
    "comfyui": Needs({"comfy"}),
    "diffusers": Needs({"diffusers"}, "diffusers"),
    "fid": Needs({"torch_fidelity"}, "fid", "frechet_distance('.', 'moments.npz')"),
    "pocket_tts": Needs({"transformers"}, "transformers"),
    "vibevoice": Needs({"transformers"}, "transformers"),
}

# ComfyUI is not installed: modules with what the integration looks for stand in for it.
COMFY = {
    "comfy/__init__.py": "",
    "comfy/k_diffusion/__init__.py": "",
    "comfy/k_diffusion/sampling.py": "",
    "comfy/model_sampling.py": "",
    "comfy/samplers.py": "",
}

# A blocked package is absent for `import` and for `importlib.util.find_spec`, by which packages
# look for others that they can do without.
SCRIPT = """
import importlib, json, os, sys, traceback
import numpy, PIL.Image, torch

class Without:
    def __init__(self, finder, blocked):
        self.finder, self.blocked = finder, blocked

    def __getattr__(self, name):  # such as find_distributions, which finds versions
        return getattr(self.finder, name)

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] not in self.blocked:
            return self.finder.find_spec(fullname, path, target)

def attempt(name, call, blocked):
    sys.meta_path[:] = [Without(finder, blocked) for finder in sys.meta_path]
    try:
        module = importlib.import_module(f"ardiff.integrations.{name}")
        if call:
            eval(f"module.{call}")
    except BaseException as error:
        return {"error": type(error).__name__, "says": str(error), "all": traceback.format_exc()}
    return {"loaded": sorted({name.split(".")[0] for name in sys.modules})}

for job in json.load(sys.stdin):
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        with open(write, "w") as answer:
            json.dump(attempt(*job), answer)
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        print(answer.read())
    os.wait()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[tuple[str, str], dict]:
    """By integration and what was blocked, ``others`` or ``own``: the packages that were loaded,
    or the error."""
    folder = tmp_path_factory.mktemp("stand_ins")
    for file, text in {**COMFY, "a.png": "", "b.png": "", "moments.npz": ""}.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    jobs = {}
    for name in NAMES:
        needs = NEEDS.get(name, Needs())
        jobs[name, "others"] = (name, "", sorted(PACKAGES - needs.packages))
        jobs[name, "own"] = (name, needs.call, sorted(needs.packages))
    paths = [str(ROOT), str(ROOT / "python"), str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([*jobs.values()]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(jobs, answers, strict=True))


def test_every_integration_was_found():
    assert {"comfyui", "diffusers", "fid", "kdiffusion", "mar", "nextstep"} <= set(NAMES)
    assert set(NEEDS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_imports_without_the_packages_of_the_others(found, name):
    own = NEEDS.get(name, Needs()).packages
    for package in own - {"comfy"}:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    answer = found[name, "others"]
    assert "error" not in answer, answer["all"]
    loaded = set(answer["loaded"])
    assert "ardiff" in loaded and loaded & PACKAGES <= own


@pytest.mark.parametrize("name", NEEDS)
def test_without_its_own_package_it_says_what_to_install(found, name):
    answer = found[name, "own"]
    assert answer.get("error") == "ImportError", answer.get("all", "no error")
    extras = (ROOT / "pyproject.toml").read_text()
    if extra := NEEDS[name].extra:
        (requirement,) = re.findall(rf'^{extra} = \["([^"]+)"\]', extras, re.MULTILINE)
        assert f"pip install '{requirement}'" in answer["says"]
    else:
        assert "install ardiff-kernels into ComfyUI's Python" in answer["says"]
