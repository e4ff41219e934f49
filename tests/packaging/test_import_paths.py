"""Every import path that README.md, docs/ and examples/ showed before modules were moved works, and
an old path is the new module itself, not a copy of it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.machinery import SourceFileLoader

import pytest

from ardiff import _moved

# Modules and names as those pages wrote them, and the old path of every module that has one.
SHOWN = {
    "ardiff": (
        *("ARSampler", "adapted_solver", "clear_graphs", "get_path", "load", "paths", "sample"),
        *("AREngine", "RaggedTable", "StepTable", "solver"),
    ),
    "ardiff.data.sun_shadow_metrics": ("metrics",),
    "ardiff.adapt_tau": ("adapted_solver",),
    "ardiff.denoise": ("denoise_token",),
    "ardiff.engine": ("AREngine",),
    "ardiff.files": ("replacing", "write_json"),
    "ardiff.graphs": ("clear_graphs",),
    "ardiff.image_grid": ("image_grid", "side_by_side"),
    "ardiff.integrations": (),
    "ardiff.integrations.fid": ("frechet_distance", "save_images"),
    "ardiff.integrations.kdiffusion": (
        *("SAMPLERS", "sample_dpmpp_2m_sde_fused", "sample_rtk_uld"),
        *("sample_rtk_mala", "sample_ddpm_fused"),
    ),
    "ardiff.integrations.mar": ("accelerate", "load_checkpoint", "restore"),
    "ardiff.integrations.nextstep": ("accelerate", "restore"),
    "ardiff.models": ("ARModel", "CheckpointError", "ModelConfig", "load_model", "save_model"),
    "ardiff.models.encoder": ("CausalEncoder", "EncoderConfig"),
    "ardiff.models.head": ("DiffusionHead",),
    "ardiff.models.head_loading": ("load_head",),
    "ardiff.models.patch_model": ("PatchModel",),
    "ardiff.models.transformers_context": ("encoder_of",),
    "ardiff.paths": ("get_path", "time_grid"),
    "ardiff.run": ("HoistableModel", "run"),
    "ardiff.sampler": ("ARSampler", "load"),
    "ardiff.sampling": ("make_key", "make_stream", "sample"),
    "ardiff.schedule": ("RaggedTable",),
    "ardiff.solvers": ("solver", "solver_options"),
    "ardiff.step_size": ("adapted_solver",),
    "ardiff.table": ("StepTable", "TableBuilder"),
    "ardiff_kernels": ("backend", "ops"),
    "ardiff_kernels.host": ("uld_coefficients",),
    "ardiff_kernels.ops": ("diffusion_step", "philox_normal", "uld_step"),
}
WITH_EXTRAS = {
    "ardiff.integrations.diffusers": (
        "diffusers",
        ("FusedDDPMScheduler", "RTKMALAScheduler", "RTKULDScheduler"),
    ),
    "ardiff.integrations.pocket_tts": ("transformers", ("accelerate", "restore")),
    "ardiff.integrations.vibevoice": ("transformers", ("accelerate", "restore")),
}


@pytest.mark.parametrize("path", SHOWN)
def test_a_path_that_was_shown_works(path):
    module = importlib.import_module(path)
    assert not [name for name in SHOWN[path] if not hasattr(module, name)]


@pytest.mark.parametrize("path", WITH_EXTRAS)
def test_a_path_that_needs_an_extra_works(path):
    extra, names = WITH_EXTRAS[path]
    pytest.importorskip(extra)
    module = importlib.import_module(path)
    assert not [name for name in names if not hasattr(module, name)]


def test_every_old_path_is_listed():
    assert set(_moved.MOVED) <= set(SHOWN)


@pytest.mark.parametrize("old", _moved.MOVED)
def test_an_old_path_is_the_new_module(old):
    """The same object, which keeps its own name and where it was found."""
    new = _moved.MOVED[old]
    assert importlib.import_module(old) is importlib.import_module(new) is sys.modules[new]
    module = sys.modules[old]
    assert module.__name__ == module.__spec__.name == new
    assert isinstance(module.__loader__, SourceFileLoader)


def test_the_order_of_imports_does_not_matter():
    """In a process of its own: an old path first, `from`, `as` and an attribute of the package."""
    code = (
        "import ardiff.run as old\n"
        "from ardiff.table import StepTable as one\n"
        "import ardiff.engine\n"
        "from ardiff import denoise\n"
        "import ardiff.loop.run as new, ardiff.heads.token, ardiff.ar.engine\n"
        "from ardiff.tables.table import StepTable as other\n"
        "assert old is new and one is other and denoise is ardiff.heads.token\n"
        "assert ardiff.engine is ardiff.ar.engine\n"
        "import pickle\n"
        "assert pickle.loads(pickle.dumps(one)) is other\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for wrong in ("ardiff.runs", "ardiff.models.heads"):
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{wrong}'"):
            importlib.import_module(wrong)
