"""`import ardiff`, and everything it exports, imports none of the packages it integrates with."""

from __future__ import annotations

import json
import os
import subprocess
import sys

OTHERS = {"diffusers", "transformers", "comfy", "k_diffusion", "torchsde"}
SCRIPT = """
import json, sys

def loaded():
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))

import ardiff, ardiff_kernels
for name in ardiff.__all__:
    getattr(ardiff, name)
import ardiff.integrations.kdiffusion
loaded()
import k_diffusion
loaded()
"""


def test_import_ardiff_imports_no_package_that_it_integrates_with(tmp_path):
    """The second look, after an import of k_diffusion (here an empty file), is the control."""
    (tmp_path / "k_diffusion.py").touch()
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = (set(json.loads(line)) for line in done.stdout.splitlines()[-2:])
    assert {"torch", "ardiff"} <= first and not first & OTHERS
    assert second & OTHERS == {"k_diffusion"}
