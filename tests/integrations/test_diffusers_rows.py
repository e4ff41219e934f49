"""The contract of the Euler, DDIM, LCM, UniPC and flow matching schedulers; their loops are in
test_diffusers_equal_rows."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
import subprocess
import sys
import textwrap

import diffusers
import pytest
import torch

from ardiff.integrations import diffusers as ours
from tests.integrations._support.diffusers_cases import (
    IN_ROWS,
    KARRAS,
    SHAPE,
    STEPPED,
    Ops,
    model,
    start,
)

DDIM, ANCESTRAL, EULER, LCM, UNIPC, FLOW = IN_ROWS
DRAWS = {DDIM: ({}, {"eta": 1.0}), ANCESTRAL: ({}, {}), LCM: ({}, {})}
DRAWS[FLOW] = ({"stochastic_sampling": True}, {})
every = pytest.mark.parametrize("kind", IN_ROWS, ids=lambda kind: kind.__name__)
karras = pytest.mark.parametrize("kind", KARRAS, ids=lambda kind: kind.__name__)
drawing = pytest.mark.parametrize("kind", DRAWS, ids=lambda kind: kind.__name__)


def run(scheduler, x=None, steps: int = 6, **options) -> torch.Tensor:
    """A pipeline's loop from N(0, 1)."""
    scheduler.set_timesteps(steps)
    x = start(1)[0] if x is None else x
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(scaled, t), t, x, **options).prev_sample
    return x


@every
def test_is_a_scheduler(kind):
    scheduler = kind()
    assert isinstance(scheduler, diffusers.SchedulerMixin) and scheduler.order == 1
    assert scheduler.num_inference_steps is None and scheduler.step_index is None
    assert len(scheduler) == 1000 and kind.config_name == "scheduler_config.json"
    step = list(inspect.signature(kind.step).parameters)
    assert step[:4] == ["self", "model_output", "timestep", "sample"]
    assert {"generator", "return_dict", "sample_ids"} < set(step)
    theirs = getattr(diffusers, kind.__name__.removeprefix("Fused"))
    given = list(inspect.signature(kind.set_timesteps).parameters)
    assert given == list(inspect.signature(theirs.set_timesteps).parameters)
    with pytest.raises(ValueError, match="there is no schedule yet: call set_timesteps first"):
        scheduler.step(torch.zeros(SHAPE), scheduler.timesteps[0], torch.zeros(SHAPE))


@every
def test_step_output(kind):
    """Named and plain; the arguments are left as they are; a run ends."""
    named, plain, (x, _) = kind(), kind(), start(1)
    for scheduler in (named, plain):
        scheduler.set_timesteps(5)
        scheduler.seed = 1
    for t in named.timesteps:
        out = model(x, t)
        kept = x.clone(), out.clone()
        found = named.step(out, t, x)
        values = plain.step(out, t.clone(), x, return_dict=False)
        assert torch.equal(x, kept[0]) and torch.equal(out, kept[1])
        assert isinstance(values, tuple) and len(values) == len(found.to_tuple())
        for one, other in zip(values, found.to_tuple(), strict=True):
            assert torch.equal(one, other) and one.shape == x.shape and one.dtype == x.dtype
        assert list(found)[0] == "prev_sample" and type(found)(*found.to_tuple()).keys()
        x = found.prev_sample
    if kind is not DDIM:  # whose steps are taken in any order
        with pytest.raises(ValueError, match="all 5 steps are done: call set_timesteps first"):
            named.step(x, named.timesteps[0], x)


@every
def test_save_and_load(kind, tmp_path):
    scheduler = kind(num_train_timesteps=500)
    scheduler.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    expected = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    assert {k: v for k, v in loaded.config.items() if k in expected} == expected
    scheduler.seed = loaded.seed = 3
    assert torch.equal(run(loaded), run(scheduler))


@karras
def test_compatibles(kind):
    """From ours and some of diffusers' classes and back; the contract's tests take all of those."""
    scheduler = kind()
    classes = scheduler.compatibles
    assert {*STEPPED, *KARRAS, diffusers.EulerDiscreteScheduler} <= set(classes)
    theirs = diffusers.EulerDiscreteScheduler, diffusers.PNDMScheduler, diffusers.DDIMScheduler
    for other in (c for c in classes if c.__module__ == ours.__name__ or c in theirs):
        back = kind.from_config(other.from_config(scheduler.config).config)
        assert {k: v for k, v in back.config.items() if k in scheduler.config} == scheduler.config
    spaced = kind.from_config(ours.TableScheduler(timestep_spacing="log_snr").config)
    assert spaced.config.timestep_spacing == kind().config.timestep_spacing  # not log_snr
    assert run(spaced).isfinite().all()


def test_flow_configurations_there_and_back(caplog, monkeypatch):
    """Between schedulers of flow models, without a warning; the shift has two names."""
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    caplog.set_level(logging.WARNING, "diffusers")
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1)
    mine = FLOW.from_config(stock.config)
    assert mine.config.shift == 3.0 and mine.config.shift_terminal == 0.1
    assert diffusers.FlowMatchEulerDiscreteScheduler.from_config(mine.config).config.shift == 3.0
    for other in (ours.TableScheduler, UNIPC, ours.FusedDPMSolverMultistepScheduler):
        there = other.from_config(mine.config)
        assert there.config.prediction_type == "flow_prediction" and there.config.flow_shift == 3.0
        assert FLOW.from_config(there.config).config.shift == 3.0
        own = other(prediction_type="flow_prediction", flow_shift=2.0)
        assert FLOW.from_config(own.config).config.shift == 2.0
        changed = FLOW.from_config(there.config, shift=5.0)
        assert other.from_config(changed.config).config.flow_shift == 5.0
    assert "not expected" not in caplog.text
    with pytest.raises(ValueError, match="needs a flow model, this configuration has prediction"):
        FLOW.from_config(diffusers.DDPMScheduler().config)
    for kind in KARRAS:
        if kind is not UNIPC:
            with pytest.raises(ValueError, match="has prediction_type epsilon, "):
                kind.from_config(stock.config)


@drawing
def test_a_row_does_not_depend_on_its_batch(kind):
    """With a generator per row, and with ids and a seed; seeds are obeyed."""
    config, options = DRAWS[kind]
    scheduler, (x, _) = kind(**config), start(1)

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    batch = run(scheduler, x, generator=[seeded(s) for s in (3, 1, 4)], **options)
    for seed, row, alone in zip((3, 1, 4), batch, x.split(1), strict=True):
        assert torch.equal(run(scheduler, alone, generator=[seeded(seed)], **options)[0], row)
        assert not torch.equal(run(scheduler, alone, generator=seeded(7), **options)[0], row)
    scheduler.seed, scheduler.sample_ids = 7, [5, 9, 2]
    batch = run(scheduler, x, **options)
    scheduler.sample_ids = [9]
    assert torch.equal(run(scheduler, x[1:2], **options), batch[1:2])


@every
def test_at_most_three_ops_a_step(kind):
    """Counted in every step, the first of DDIM with another eta apart: it makes the table."""
    config, options = DRAWS.get(kind, ({}, {}))
    scheduler, (x, _) = kind(**config), start(1)
    for _ in range(2):
        scheduler.set_timesteps(6)
        for t in scheduler.timesteps:
            made = kind is DDIM and scheduler._kind != (1.0, False)
            with Ops() as ops:
                x = scheduler.step(0.5 * x, t, x, **options).prev_sample
            assert made or len(ops.names) - 1 <= 3, ops.names  # one of them is 0.5 x
            assert any("ardiff" in name for name in ops.names)


@every
def test_no_value_is_read_in_a_step(kind):
    """`.item()` of a device tensor waits for the device; on the meta device it would raise."""
    config, options = DRAWS.get(kind, ({}, {}))
    scheduler, x = kind(**config), torch.empty(SHAPE, device="meta")
    scheduler.set_timesteps(6, device="meta")
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            assert scheduler.scale_model_input(x, t).is_meta
        x = scheduler.step(torch.empty_like(x), t, x, **options).prev_sample
    assert x.is_meta and x.shape == SHAPE and scheduler.step_index == 6


@every
def test_copies_and_half_precision(kind):
    """Copied in the middle of a run, and float16, which is computed in float32."""
    scheduler, x = kind(), start(1)[0]
    scheduler.seed = 3
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(model(x, t), t, x).prev_sample
    ends = []
    for each in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler)), scheduler):
        y = x
        for t in each.timesteps[3:]:
            y = each.step(model(y, t), t, y).prev_sample
        ends.append(y)
    assert torch.equal(ends[0], ends[2]) and torch.equal(ends[1], ends[2])
    half, whole = run(scheduler, start(1)[0].half()), run(scheduler)
    assert half.dtype == torch.float16
    assert (half - whole).abs().max() < 1e-2 * whole.abs().max()


@karras
def test_a_changed_configuration_counts(kind):
    scheduler, x = kind(), start(1)[0]
    scheduler.seed = 3
    before = run(scheduler)
    scheduler.register_to_config(prediction_type="v_prediction")
    fresh = kind(prediction_type="v_prediction")
    fresh.seed = 3
    after = run(scheduler)
    assert torch.equal(after, run(fresh)) and not torch.equal(after, before)
    scheduler.set_timesteps(6)
    scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.register_to_config(prediction_type="epsilon")
    if kind is DDIM:  # whose steps do not depend on those before
        assert scheduler.step(x, scheduler.timesteps[1], x).prev_sample.isfinite().all()
    else:
        with pytest.raises(ValueError, match="was changed after set_timesteps: call set_timesteps"):
            scheduler.step(x, scheduler.timesteps[1], x)


def test_ddim_in_any_order():
    """As DDIMScheduler: a step is a function of its timestep."""
    mine, theirs, (x, _) = DDIM(), diffusers.DDIMScheduler(), start(1)
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(10)
    for t in (500, 900, 0, 500):
        expected = theirs.step(0.3 * x, t, x).prev_sample
        assert torch.allclose(mine.step(0.3 * x, t, x).prev_sample, expected, atol=1e-6)
    assert mine.step(0.3 * x, 500, x, eta=0.5).prev_sample.ne(expected).any()
    assert torch.allclose(mine.step(0.3 * x, 500, x).prev_sample, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (UNIPC, {"predict_x0": False}, "has predict_x0=True and no solver_p"),
        (UNIPC, {"solver_order": 4}, "has solver_order 1, 2 and 3, got 4"),
        (UNIPC, {"prediction_type": "score"}, "got 'score'"),
        (UNIPC, {"lower_order_final": False}, "step 9 of order 2 goes from sigma"),
        (EULER, {"prediction_type": "flow_prediction"}, "for rectified flow use FusedFlowMatch"),
        (ANCESTRAL, {"prediction_type": "sample"}, "has prediction_type epsilon, v_prediction"),
        (DDIM, {"prediction_type": "flow_prediction"}, "for rectified flow use FusedFlowMatch"),
        (DDIM, {"timestep_spacing": "leading", "steps_offset": 999}, "begins at timestep"),
        (LCM, {"prediction_type": "flow_prediction"}, "got 'flow_prediction'"),
        (LCM, {"original_inference_steps": 5}, "is smaller than `num_inference_steps`"),
        (FLOW, {"use_dynamic_shifting": True}, "`mu` must be passed"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_refused(kind, config, message):
    with pytest.raises(ValueError, match=message):
        kind(**config).set_timesteps(10)


def test_arguments_of_a_step_that_are_refused():
    x = start(1)[0]
    for kind, options, message in (
        (EULER, {"s_churn": 1.0}, "has s_churn=0, got 1.0: use EulerDiscreteScheduler"),
        (FLOW, {"per_token_timesteps": x}, "has one level per step, got per_token_timesteps"),
        (DDIM, {"eta": 1.5}, r"eta must lie in \[0, 1\], from DDIM to DDPM, got 1.5"),
        (LCM, {"sample_ids": [1]}, "sample_ids must be 3 integers, got 1"),
    ):
        scheduler = kind()
        scheduler.set_timesteps(5)
        with pytest.raises(ValueError, match=message):
            scheduler.step(x, scheduler.timesteps[0], x, **options)
        with pytest.raises(ValueError, match=r"model_output must have the shape \[3, 2, 2, 3\]"):
            scheduler.step(x[:, :1], scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="pass num_inference_steps, sigmas or timesteps"):
        FLOW().set_timesteps()


def test_lcm_ends_without_noise():
    """Of given timesteps and a strength below 1 too, where diffusers adds noise after the last."""
    scheduler = LCM()
    scheduler.set_timesteps(timesteps=[999, 759, 499, 259], strength=0.5)
    assert scheduler.timesteps.tolist() == [499, 259]
    x = start(1)[0]
    for t in scheduler.timesteps:
        result = scheduler.step(model(x, t), t, x)
        x = result.prev_sample
    assert torch.equal(x, result.denoised)


def test_loading_in_a_new_process(tmp_path):
    """diffusers imports no module that a file names. From disk the import is enough, and for the
    Hub `register` puts the module among its libraries."""
    unet = diffusers.UNet2DModel(
        sample_size=8, layers_per_block=1, norm_num_groups=4, block_out_channels=(8,),
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet.eval(), ours.FusedDDIMScheduler()).save_pretrained(tmp_path)
    script = f"""
        import diffusers
        from diffusers.pipelines import pipeline_loading_utils as loading

        def refused(call, *args):
            try:
                call(*args)
            except ValueError as error:
                return str(error)

        load = diffusers.DDPMPipeline.from_pretrained
        said = refused(load, {str(tmp_path)!r})
        assert "import ardiff.integrations.diffusers before calling" in said, said
        import ardiff.integrations.diffusers as ours

        loaded = load({str(tmp_path)!r})
        assert type(loaded.scheduler) is ours.FusedDDIMScheduler
        hub = loading._get_custom_components_and_folders
        index = {{"scheduler": [ours.__name__, "FusedDDIMScheduler"]}}
        assert "does not exist in name" in refused(hub, "name", index, [])
        ours.register()
        assert hub("name", index, [])[0] == {{}}
        print("loaded")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "loaded"
