"""What importing the package says of the environment: one warning where no kernels were built, and
one line for a variable that names what cannot serve here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ardiff_kernels import _environment, testing
from ardiff_kernels.dispatch import backends, load
from tests import ROOT

needs_library = pytest.mark.skipif(not load.CPU.loaded, reason="the C++ CPU kernels are not built")
DOCTOR = "from ardiff.commands._parser import main; sys.exit(main(['doctor']))"
TWICE = f"import ardiff_kernels, ardiff, ardiff_kernels.host; {DOCTOR}"
SERVES = "import ardiff_kernels; print(ardiff_kernels.chosen_backend('uld_step', 'cpu'))"


class Job(NamedTuple):
    """Whether the libraries are there, the variables that are set, and the code to run."""

    libraries: bool
    variables: dict[str, str]
    code: str = DOCTOR


class Answer(NamedTuple):
    status: int
    stdout: str
    stderr: str


JOBS = {
    "nothing built": Job(False, {}, TWICE),
    "nothing built, reference": Job(False, {"ARDIFF_BACKEND": "reference"}, SERVES),
    "nothing built, cpu": Job(False, {"ARDIFF_BACKEND": "cpu"}),
    "no backend": Job(True, {"ARDIFF_BACKEND": "gpu"}),
    "a backend of a GPU": Job(True, {"ARDIFF_BACKEND": "cuda"}),
    "no instruction set": Job(True, {"ARDIFF_CPU_ISA": "sse"}),
    "reference": Job(True, {"ARDIFF_BACKEND": "reference"}),
}

# One process imports torch, which takes seconds, and forks for each job.
SCRIPT = """
import json, os, sys, torch
for path, variables, code in json.load(sys.stdin):
    pipes = [os.pipe() for _ in range(2)]
    child = os.fork()
    if child == 0:
        for number, (_, write) in enumerate(pipes, 1):
            os.dup2(write, number)
        os.environ.update(variables)
        sys.path[:0] = path
        exec(code)
        sys.exit()
    texts = []
    for read, write in pipes:
        os.close(write)
        texts.append(open(read).read())
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *texts]), flush=True)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, Answer]:
    """Of every job; where nothing is built, the build failed for want of a compiler."""
    bare = tmp_path_factory.mktemp("bare")
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    package = shutil.copytree(ROOT / "ardiff_kernels", bare / "ardiff_kernels", ignore=ignore)
    note = "the C++ kernels were not built: no C++ compiler was found (install g++ or set CXX)\n"
    (Path(package) / "_build_failure.txt").write_text(note)
    folders = {True: str(ROOT), False: str(bare)}
    python = str(ROOT / "python")
    jobs = [([folders[job.libraries], python], *job[1:]) for job in JOBS.values()]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ARDIFF_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(jobs),
        env=ours,
        cwd=bare.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [Answer(*json.loads(line)) for line in done.stdout.splitlines()]
    return dict(zip(JOBS, found, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton serves a GPU without libraries")
def test_an_installation_without_kernels_warns_once_and_fails_the_doctor(answers):
    status, stdout, stderr = answers["nothing built"]
    assert status == 1
    assert stderr.count("RuntimeWarning: ardiff_kernels: ") == stderr.count("Warning") == 1
    assert "plain PyTorch (the backend `reference`)" in stderr
    assert "no C++ compiler was found" in stderr and "ARDIFF_REQUIRE_BUILD=1" in stderr
    assert stdout.splitlines()[-1].startswith("FAULT: no compiled kernels can serve here")


def test_who_asks_for_the_reference_is_not_warned(answers):
    assert answers["nothing built, reference"] == (0, "reference\n", "")


@needs_library
def test_the_reference_beside_kernels_is_no_fault(answers, monkeypatch):
    status, stdout, stderr = answers["reference"]
    assert (status, stderr) == (0, "") and "FAULT" not in stdout
    assert not _environment.only_reference()
    monkeypatch.setattr(backends, "default_backend", lambda op, device: "reference")
    assert _environment.only_reference()


REFUSED = {
    "nothing built, cpu": "ARDIFF_BACKEND: backend 'cpu' cannot serve here (cpu: the C++ CPU ",
    "no backend": "ARDIFF_BACKEND: unknown backend 'gpu': expected one of reference, cpu, triton, "
    "cuda; set one that can serve here (reference, cpu",
    "a backend of a GPU": "ARDIFF_BACKEND: backend 'cuda' cannot serve here (",
    "no instruction set": f'ARDIFF_CPU_ISA is "sse", but this CPU can run '
    f"{', '.join(testing.cpu_isas())}; set one of these or ",
}


@needs_library
@pytest.mark.parametrize("job", REFUSED)
def test_a_command_refuses_a_variable_in_one_line(answers, job):
    if job == "a backend of a GPU" and load.CUDA.loaded and torch.cuda.is_available():
        pytest.skip("the CUDA kernels can serve here")
    status, stdout, stderr = answers[job]
    assert (status, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith(f"ardiff: {REFUSED[job]}") and line.endswith("unset it")
