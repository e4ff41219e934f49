"""The ComfyUI folder against stand-ins of the places where ComfyUI takes samplers."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import subprocess
import sys
import types

import pytest
import torch

from ardiff.solvers import SOLVERS, solver_options
from tests import ROOT

FOLDER = ROOT / "python/ardiff/integrations/_comfyui_node"
FIRST = ("rtk_uld", "rtk_mala", "ddpm_fused", "dpmpp_2m_sde_fused")
EVERY = [name.replace("-", "_") + ("" if name.startswith("rtk-") else "_fused") for name in SOLVERS]
NAMES = (*FIRST, *(name for name in EVERY if name not in FIRST))
DETERMINISTIC = (
    "ddim_fused", "deis_fused", "dpmpp_2m_fused", "dpmpp_3m_fused", "euler_fused",
    "flow_euler_fused", "gradient_estimation_fused", "heun_fused", "heunpp2_fused", "ipndm_fused",
    "learned_fused", "lms_fused", "res_2s_fused", "res_multistep_fused", "unipc_fused",
)  # fmt: skip
WINDOW = {"rtk_hybrid": {"window_high": 0.7}}  # its own holds none of the sigmas here
NOT_FROM_NOISE = (
    "ddpm_ei_fused",
    "dpum_fused",
    "heun_fused",
    "restart_fused",
)  # which cannot begin at alpha = 0
SIGMAS = torch.tensor([10.0, 4.0, 1.5, 0.4, 0.0])


class CONST:
    """Marks rectified-flow models, as comfy.model_sampling.CONST does."""


class EPS:
    """Marks epsilon models."""


class KSAMPLER:
    """A SAMPLER: ComfyUI's calls the function in this way, with the seed in extra_args."""

    def __init__(self, sampler_function, extra_options=None, inpaint_options=None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, denoise_mask=None):
        extra_args["denoise_mask"] = denoise_mask
        k_callback = lambda x: callback(x["i"], x["denoised"], x["x"], len(sigmas) - 1)  # noqa: E731
        return self.sampler_function(
            model_wrap, noise, sigmas, extra_args=extra_args, callback=k_callback, disable=True,
            **self.extra_options,
        )  # fmt: skip


class Model:
    """KSamplerX0Inpaint around a guider around a model; the data are N(0, 1/4)."""

    def __init__(self, kind: type) -> None:
        sampling = types.SimpleNamespace(model_sampling=kind())
        self.inner_model = types.SimpleNamespace(inner_model=sampling)
        self.flow, self.seeds = kind is CONST, set()

    def __call__(self, x, sigma, denoise_mask, model_options=None, seed=None):
        self.seeds.add(seed)
        s = sigma.view(-1, 1, 1, 1)
        alpha = 1 - s if self.flow else torch.ones_like(s)
        return alpha * x / (alpha**2 + 4 * s**2)


@pytest.fixture
def comfy(monkeypatch):
    """ComfyUI's packages, without our module's memory of another one."""
    modules = {name: types.ModuleType(name) for name in ("comfy", "comfy.k_diffusion")}
    for name in ("comfy.k_diffusion.sampling", "comfy.samplers", "comfy.model_sampling"):
        modules[name] = types.ModuleType(name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    samplers = modules["comfy.samplers"]
    samplers.SAMPLER_NAMES = ["euler", "uni_pc_bh2"]
    samplers.KSampler = type("KSampler", (), {"SAMPLERS": samplers.SAMPLER_NAMES})
    samplers.KSAMPLER = KSAMPLER
    modules["comfy.model_sampling"].CONST = CONST
    monkeypatch.delitem(sys.modules, "ardiff.integrations.comfyui", raising=False)
    yield modules["comfy"]
    sys.modules.pop("ardiff.integrations.comfyui", None)


def load_folder():
    """As ComfyUI loads a custom node: by the path of its folder."""
    spec = importlib.util.spec_from_file_location("ardiff_sampler", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(comfy, name: str, kind: type = EPS, seed: int = 3, **options):
    """A KSampler's run of a registered sampler by name."""
    function = getattr(comfy.k_diffusion.sampling, f"sample_{name}")
    model, seen = Model(kind), []
    sigmas = SIGMAS if kind is EPS else torch.tensor([1.0, 0.7, 0.3, 0.0])
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * sigmas[0]
    sampler = comfy.samplers.KSAMPLER(function, options)
    args = {"model_options": {}, "seed": seed}
    out = sampler.sample(model, sigmas, args, lambda *info: seen.append(info), noise)
    assert model.seeds == {seed}
    steps = len(sigmas) - 1
    assert [(i, total) for i, _, _, total in seen] == [(i, steps) for i in range(steps)]
    return out


def test_the_folder_registers_the_samplers_once(comfy):
    for _ in range(2):
        module = load_folder()
    assert comfy.samplers.SAMPLER_NAMES == ["euler", "uni_pc_bh2", *NAMES]
    assert comfy.samplers.KSampler.SAMPLERS == comfy.samplers.SAMPLER_NAMES
    assert set(module.NODE_CLASS_MAPPINGS) == set(module.NODE_DISPLAY_NAME_MAPPINGS)
    assert len(module.NODE_CLASS_MAPPINGS) == len(NAMES)
    comfy.samplers.KSampler.SAMPLERS = ["a copy"]  # of some versions
    load_folder()
    assert comfy.samplers.KSampler.SAMPLERS == ["a copy", *NAMES]


@pytest.mark.parametrize("kind", [EPS, CONST])
@pytest.mark.parametrize("name", NAMES)
def test_registered_samplers_run_as_comfyui_runs_them(comfy, name, kind):
    """Progress in the steps that the user asked for; the seed makes the picture."""
    load_folder()
    if kind is CONST and name in NOT_FROM_NOISE:
        with pytest.raises(ValueError, match="cannot start at alpha = 0"):
            drawn(comfy, name, kind)
        return
    run = functools.partial(drawn, comfy, name, kind, **WINDOW.get(name, {}))
    first = run()
    assert torch.equal(first, run())
    assert torch.equal(first, run(s_noise=0.5)) == (name in DETERMINISTIC)
    assert torch.equal(first, run(seed=2**64 - 1)) == (name in DETERMINISTIC)
    if name in ("ddpm_ei_fused", "dpum_fused"):  # which has too large an error in so few steps
        assert first.isfinite().all()
        return
    # data of deviation 1/2: read on the other path, as sigmas alone, flow's would not be
    assert 0.2 < float(first.std()) < 0.8


@pytest.mark.parametrize("name", NAMES)
def test_a_node_can_set_what_the_sampler_takes(comfy, name):
    from ardiff.integrations import kdiffusion

    module = load_folder()
    sample = getattr(kdiffusion, f"sample_{name}", None)
    sample = sample or getattr(kdiffusion, f"sample_{name.removesuffix('_fused')}")
    asked = module.NODE_CLASS_MAPPINGS[f"ArdiffSampler_{name}"].INPUT_TYPES()["required"]
    parameters = inspect.signature(sample).parameters
    assert set(asked) <= set(parameters)
    own = {k for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    ahead = {"lookahead", "mode", "tolerance"}  # refused beside the callback that ComfyUI gives
    assert own - {"path", "seed", "sample_ids", "noise", "dim"} - ahead <= set(asked)
    module = importlib.import_module("ardiff.integrations.comfyui")
    assert ("noise" in asked) == (name in module.BY_PATH)


def test_rectified_flow_is_recognised(comfy):
    from ardiff.integrations import kdiffusion

    module = importlib.import_module("ardiff.integrations.comfyui")
    assert module.path_of(Model(CONST)) == "flow" and module.path_of(Model(EPS)) == "edm"
    load_folder()
    found = drawn(comfy, "ddpm_fused", CONST)
    sigmas = torch.tensor([1.0, 0.7, 0.3, 0.0])
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def model(x, sigma):
        return Model(CONST)(x, sigma, None)

    direct = {"disable": True, "seed": 3, "noise": "path"}
    wanted = kdiffusion.sample_ddpm_fused(model, noise, sigmas, path="flow", **direct)
    assert torch.equal(found, wanted)
    other = kdiffusion.sample_ddpm_fused(model, noise, sigmas, **direct)
    assert (found - other).abs().max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_node_gives_a_sampler_with_its_options(comfy, name):
    """Every option of the node is one of the sampler's, and its default is the sampler's."""
    module = load_folder()
    node = module.NODE_CLASS_MAPPINGS[f"ArdiffSampler_{name}"]
    assert node.RETURN_TYPES == ("SAMPLER",) and hasattr(node, node.FUNCTION)
    inputs = node.INPUT_TYPES()["required"]
    defaults = {
        key: kind[0] if isinstance(kind, list) else rest[0]["default"]
        for key, (kind, *rest) in inputs.items()
    }
    (sampler,) = getattr(node(), node.FUNCTION)(**defaults)
    assert isinstance(sampler, KSAMPLER)
    assert sampler.extra_options.get("stages") is None
    by_node = sampler.extra_options
    assert torch.equal(drawn(comfy, name), drawn(comfy, name, **by_node))
    changed = dict(by_node)
    if name in DETERMINISTIC and "eta" not in changed:
        solver = name.removesuffix("_fused").replace("_", "-")
        assert set(changed) - set(solver_options(solver)) == {"s_noise"}
        return
    changed |= WINDOW.get(name, {})
    changed |= {"s_noise": 0.5} if "tau" not in changed else {"tau": 0.1}
    changed |= {"eta": 0.5} if name in DETERMINISTIC else {}
    changed |= {"inner": 3} if name in FIRST and "inner" in changed else {}
    assert not torch.equal(drawn(comfy, name), drawn(comfy, name, **changed))


def test_a_name_taken_by_another_extension_is_an_error(comfy):
    comfy.k_diffusion.sampling.sample_rtk_mala = lambda: None
    with pytest.raises(RuntimeError, match="already has a sampler 'rtk_mala', of .*test_comfyui"):
        load_folder()
    assert comfy.samplers.SAMPLER_NAMES == ["euler", "uni_pc_bh2"]
    assert not hasattr(comfy.k_diffusion.sampling, "sample_rtk_uld")


def test_outside_comfyui_the_error_says_what_to_do():
    code = f"import runpy; runpy.run_path({str(FOLDER / '__init__.py')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ardiff.integrations.comfyui works inside ComfyUI")
    assert "install ardiff-kernels into ComfyUI's Python" in last and "ardiff comfyui" in last
