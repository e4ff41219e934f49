"""`TableScheduler`: every solver call by call, the bits of `ardiff.loop.run`, and its contract."""

from __future__ import annotations

import copy
import math
import pickle
import tempfile

import diffusers
import numpy as np
import pytest
import torch
from scipy.special import ndtr

import ardiff
from ardiff.integrations import diffusers as ours
from ardiff.integrations.diffusers import TableScheduler
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.solvers import SOLVERS, solver_options
from ardiff.tables.diffusers_schedules import DiscretePath
from ardiff.tables.paths import FlowPath
from tests.integrations._support.diffusers_cases import model

SHAPE, DIM = (3, 2, 2, 3), 12
LEVELS = [900, 700, 520, 360, 210, 90, 10]
ADJUSTED = [name for name in SOLVERS if "accept" in solver_options(name)]
VARIANTS = [
    *((name, {}) for name in SOLVERS),
    *((name, {"accept": "simpson"}) for name in ADJUSTED),
]
IDS = ["-".join([name, *own.values()]) for name, own in VARIANTS]
every = pytest.mark.parametrize(("name", "own"), VARIANTS, ids=IDS)


def make(name: str, own: dict, **config) -> TableScheduler:
    own = own | ({"dim": DIM} if "dim" in solver_options(name) else {})
    scheduler = TableScheduler(solver=name, solver_options=own, **config)
    scheduler.seed, scheduler.sample_ids = 11, [4, 0, 9]
    return scheduler


def table_of(scheduler: TableScheduler, levels: list[float]):
    """What `ardiff.solver` makes of the levels, with the calls that these take."""
    config, flow = scheduler.config, scheduler.config.prediction_type == "flow_prediction"
    path = FlowPath() if flow else DiscretePath(scheduler.alphas_cumprod.numpy())
    prediction = "flow" if flow else config.prediction_type
    for steps in range(1, 80):
        try:
            return ardiff.solver(
                config.solver, path=path, prediction=prediction, steps=steps, grid=levels,
                **config.solver_options,
            )  # fmt: skip
        except ValueError as error:
            refused = error
    raise refused


def start(table) -> torch.Tensor:
    where = make_key(11, "cpu"), make_stream([4, 0, 9], 3, 0, "cpu")
    return initial_state(table, *where, DIM).view(SHAPE) * 1.0


def loop(scheduler, x, first: int = 0, change=lambda x: x) -> torch.Tensor:
    for t in scheduler.timesteps[first:]:
        x = scheduler.step(model(x, t), t, change(x)).prev_sample
    return x


# solvers whose calls go back to a noisier level: a step of theirs begins at some calls alone
LOOKS_AHEAD = ("heunpp2", "restart")


def expected(scheduler, table, x) -> torch.Tensor:
    scale = 1000 if scheduler.config.prediction_type == "flow_prediction" else 1

    def call(x, level, condition):
        return model(x.view(SHAPE), level[0] * scale).flatten(1)

    where = {"key": make_key(11, "cpu"), "stream": make_stream([4, 0, 9], 3, 0, "cpu")}
    return run(table, call, x.flatten(1), **where).view(SHAPE)


@every
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_is_the_run_of_ardiff(name, own, prediction):
    """To the bit, and a level is named once for each call at it."""
    scheduler = make(name, own, prediction_type=prediction)
    scheduler.set_timesteps(timesteps=LEVELS)
    flow = prediction == "flow_prediction"
    table = table_of(scheduler, [level / 1000 for level in LEVELS] if flow else LEVELS)
    levels = table.level[table.calls_model] * (1000 if flow else 1)
    assert scheduler.timesteps.tolist() == pytest.approx(levels.tolist())
    assert scheduler.num_inference_steps == table.calls == len(scheduler.timesteps)
    x = start(table)
    wanted = expected(scheduler, table, x)
    steps = scheduler.timesteps.tolist()
    between = any(min(abs(t - level) for level in LEVELS) > 1e-3 for t in steps)

    def equal(found):
        # timesteps between are 1000 levels rounded once, a flow's levels in `expected` twice
        near = flow and between and (found - wanted).abs().max() < 1e-4
        return near or torch.equal(found, wanted)

    assert equal(loop(scheduler, x))
    # its calls may be given as they are, where they are the levels of its steps alone
    given = LEVELS if between or name in LOOKS_AHEAD else steps
    scheduler.set_timesteps(timesteps=given)
    # a pipeline may hand each step a tensor of its own
    assert equal(loop(scheduler, x, change=torch.clone))


@every
def test_a_number_of_calls(name, own):
    for calls in (17, 20):
        scheduler = make(name, own)
        scheduler.set_timesteps(calls)
        count = len(scheduler.timesteps)
        assert calls - 8 < count <= calls and scheduler.num_inference_steps == count
        steps = scheduler.timesteps.tolist()
        assert steps[0] == 999
        assert (steps == sorted(steps, reverse=True)) == (name not in LOOKS_AHEAD)
        table = scheduler._made.table
        x = start(table)
        assert torch.equal(loop(scheduler, x), expected(scheduler, table, x))


@every
def test_a_model_may_answer_in_the_same_memory_and_tensors_stay(name, own):
    scheduler, buffer, kept = make(name, own), torch.empty(SHAPE), []
    scheduler.set_timesteps(timesteps=LEVELS)
    x = start(scheduler._made.table)
    wanted = loop(scheduler, x)
    scheduler.set_timesteps(timesteps=LEVELS)
    for t in scheduler.timesteps:
        kept.append((x, x.clone()))
        x = scheduler.step(buffer.copy_(model(x, t)), t, x).prev_sample
    assert torch.equal(x, wanted)
    assert all(torch.equal(now, then) for now, then in kept)


@every
def test_a_run_may_begin_at_any_call(name, own):
    """It is the solver's run from the level on; calls before the last at a level change nothing."""
    whole = make(name, own)
    whole.set_timesteps(timesteps=LEVELS)
    steps = whole.timesteps.tolist()
    for first in range(1, len(steps)):
        level = steps[first]
        rest = [t for t in LEVELS if t <= level]
        scheduler = make(name, own)
        scheduler.set_timesteps(timesteps=LEVELS)
        scheduler.set_begin_index(first)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
        try:
            table = table_of(scheduler, rest)
        except ValueError:
            table = None
        if len(rest) == 1:
            table = ardiff.solver(
                "ddpm", path=DiscretePath(scheduler.alphas_cumprod.numpy()), prediction="epsilon",
                steps=1, grid=rest,
            )  # fmt: skip
        if table is None:
            with pytest.raises(ValueError, match="cannot run on 2 given levels: .*two stages"):
                loop(scheduler, x, first)
            continue
        if name in LOOKS_AHEAD and table.calls != len(steps) - first:
            continue  # the calls from here on are no run of their own
        assert torch.equal(loop(scheduler, x, first), expected(scheduler, table, x))


@pytest.mark.parametrize("name", SOLVERS)
def test_configuration(name):
    """Saved, loaded, copied in the middle of a run, and exchanged with compatible classes."""
    scheduler = make(name, {}, clip_sample=True)
    with tempfile.TemporaryDirectory() as folder:
        scheduler.save_pretrained(folder)
        loaded = TableScheduler.from_pretrained(folder)
    given = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    assert {k: v for k, v in loaded.config.items() if k in given} == given
    back = TableScheduler.from_config(ours.RTKULDScheduler.from_config(loaded.config).config)
    assert back.config.solver == name and back.config.solver_options == loaded.config.solver_options
    scheduler.set_timesteps(timesteps=LEVELS)
    x = start(scheduler._made.table)
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(model(x, t), t, x).prev_sample
    ends = []
    for each in (scheduler, copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        each.sample_ids, each.seed = scheduler.sample_ids, scheduler.seed
        ends.append(loop(each, x, 3))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
    assert ends[0].abs().max() <= 1


def test_compatibles():
    scheduler = TableScheduler(solver="heun")
    kinds = scheduler.compatibles
    assert {TableScheduler, ours.RTKULDScheduler, ours.FusedDDPMScheduler} <= set(kinds)
    assert TableScheduler in ours.RTKMALAScheduler().compatibles
    for other in kinds:
        back = TableScheduler.from_config(other.from_config(scheduler.config).config)
        assert {k: back.config[k] for k in scheduler.config} == dict(scheduler.config)
    theirs = diffusers.DDPMScheduler(beta_schedule="scaled_linear").config
    assert TableScheduler.from_config(theirs, solver="ddim").config.beta_schedule == "scaled_linear"


@pytest.mark.parametrize("name", ["rtk-ula", "dpmpp-2m-sde", "rtk-hmc"])
def test_a_row_does_not_depend_on_its_batch(name):
    scheduler, x = make(name, {}), torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    scheduler.seed = scheduler.sample_ids = None

    def drawn(x, seeds):
        scheduler.set_timesteps(timesteps=LEVELS)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t), t, x, generator=generators).prev_sample
        return x

    whole = drawn(x, (3, 1, 4))
    assert torch.equal(drawn(x[1:2], (1,)), whole[1:2])
    assert not torch.equal(drawn(x[1:2], (5,)), whole[1:2])


def test_no_value_is_read_in_a_step():
    for name in SOLVERS:
        scheduler = make(name, {})
        scheduler.set_timesteps(17, device="meta")
        x = torch.empty(SHAPE, device="meta")
        for t in scheduler.timesteps:
            x = scheduler.step(torch.empty_like(x), t, x).prev_sample
        assert x.is_meta and x.shape == SHAPE


def test_half_precision_and_learned_variances():
    """The state is float32 between steps; of twice the channels the first half is taken."""
    for name in SOLVERS:
        scheduler = make(name, {})
        scheduler.set_timesteps(timesteps=LEVELS)
        x = start(scheduler._made.table).half()
        for t in scheduler.timesteps:
            out = model(x.float(), t, 2).half()
            x = scheduler.step(out, t, x).prev_sample
        assert x.dtype == torch.float16 and x.isfinite().all()


def distance(scheduler, calls: int) -> float:
    """Kolmogorov's, of 2^14 samples under the exact score of N(.4, .5^2) to that law."""
    scheduler.set_timesteps(calls)
    bars = scheduler.alphas_cumprod.double().numpy()
    generator = torch.Generator().manual_seed(5)
    x = torch.randn((2**10, 4, 2, 2), generator=generator)
    for t in scheduler.timesteps:
        ratio = np.exp(np.interp(float(t), np.arange(1000), 0.5 * np.log((1 - bars) / bars)))
        alpha = 1 / math.hypot(1, ratio)
        sigma = alpha * ratio
        out = sigma / (alpha**2 * 0.25 + sigma**2) * (x - alpha * 0.4)
        x = scheduler.step(out, t, x, generator=generator).prev_sample
    ordered = ndtr((np.sort(x.double().numpy().ravel()) - 0.4) / 0.5)
    n = len(ordered)
    return float(max((np.arange(1, n + 1) / n - ordered).max(), (ordered - np.arange(n) / n).max()))


def test_the_default_from_a_pipelines_configuration():
    """Stable Diffusion's: the law at 25 calls, where DDPM and its own `leading` levels miss it.

    By Massart's inequality the false-alarm rate of the bound for exact draws is below 1e-6; the
    bias of the default is less than half of it. `leading` is the control.
    """
    config = {
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
        "timestep_spacing": "leading", "steps_offset": 1,
    }  # fmt: skip
    theirs, bound = diffusers.PNDMScheduler(**config).config, 0.0211
    for config in (theirs, {**theirs, "_class_name": "PNDMScheduler"}):
        scheduler = TableScheduler.from_config(config)
        assert scheduler.config.timestep_spacing == "log_snr" and scheduler.config.solver is None
    assert distance(scheduler, 25) < bound
    assert scheduler._made.table.solver == "rtk-harmonic"
    assert distance(TableScheduler.from_config(theirs, timestep_spacing="leading"), 25) > 2 * bound
    ddpm = diffusers.DDPMScheduler.from_config(theirs, clip_sample=False)
    assert distance(ddpm, 25) > 1.5 * bound
    # a spacing that was chosen for one of these stays
    trailing = ours.RTKULDScheduler(timestep_spacing="trailing").config
    assert TableScheduler.from_config(trailing).config.timestep_spacing == "trailing"


def test_the_default_by_number_of_calls():
    for prediction, many in (("epsilon", "rtk-harmonic"), ("flow_prediction", "rtk-hybrid")):
        scheduler = TableScheduler(prediction_type=prediction)
        for calls in (1, 2, 3, 15, 16, 50):
            scheduler.set_timesteps(calls)
            assert len(scheduler.timesteps) == calls
            name = "unipc" if calls < 16 else many
            assert scheduler._made.solver == name
            levels = scheduler.timesteps.tolist()
            scheduler.set_timesteps(timesteps=levels)
            assert scheduler.timesteps.tolist() == levels and scheduler._made.solver == name
    with pytest.raises(ValueError, match="solver_options need their solver"):
        TableScheduler(solver_options={"tau": 0.3})


REFUSED = {
    "unknown solver 'plms'": {"solver": "plms"},
    "solver heun does not take the option 'inner'": {
        "solver": "heun", "solver_options": {"inner": 2}
    },
    "takes no stages": {"solver": "rtk-ula", "solver_options": {"stages": 3}},
    "compares energies, which a scheduler": {
        "solver": "rtk-hmc", "solver_options": {"accept": "energy"}
    },
    "needs dim, the elements of a sample": {"solver": "rtk-mala-projected"},
    "tau must be positive and finite": {"solver": "rtk-uld", "solver_options": {"tau": -1.0}},
    "has no thresholding": {"thresholding": True},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_before_any_step(message):
    with pytest.raises(ValueError, match=message):
        TableScheduler(**REFUSED[message]).set_timesteps(20)


@pytest.mark.parametrize("solver", ["rtk-mala", "rtk-hmc"])
def test_the_first_step_says_how_many_elements_a_sample_has(solver):
    """The samples are those of the option `dim`, without which they are not."""
    drawn = {}
    for options in ({}, {"dim": 3 * 4 * 5}, {"dim": 1}):
        scheduler = TableScheduler(solver=solver, solver_options=options)
        scheduler.seed = 3
        scheduler.set_timesteps(19)
        x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
        drawn[str(options)] = loop(scheduler, x)
    own, same, other = drawn.values()
    assert torch.equal(own, same) and not torch.equal(own, other)


def test_timesteps_that_are_refused():
    scheduler = TableScheduler(solver="heun")
    with pytest.raises(ValueError, match="descending order"):
        scheduler.set_timesteps(timesteps=[300, 800])
    with pytest.raises(ValueError, match="the 3 levels of heun, or one for each of its 5 calls"):
        scheduler.set_timesteps(timesteps=[800, 800, 300, 100])
    with pytest.raises(ValueError, match="heun makes two model calls per step"):
        scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="call set_timesteps first"):
        TableScheduler().step(torch.zeros(SHAPE), 3, torch.zeros(SHAPE))


@pytest.mark.parametrize("prediction", ["epsilon", "flow_prediction"])
def test_a_table_file(prediction, tmp_path):
    """Its samples are those of the run of the table, moved to the schedule; it saves and loads."""
    path = str(tmp_path / "mine.table.json")
    ardiff.solver(
        "dpmpp-2m", path="edm", prediction="sample", steps=5, ratio_max=8.0, ratio_min=0.02
    ).save(path)
    scheduler = TableScheduler(table=path, prediction_type=prediction)
    scheduler.save_pretrained(tmp_path)
    scheduler = TableScheduler.from_pretrained(tmp_path)
    assert scheduler.config.table == path
    scheduler.set_timesteps(6)  # at least its calls
    assert len(scheduler.timesteps) == 5 == scheduler.num_inference_steps
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    found = loop(scheduler, x)
    kind, on = ("flow", FlowPath()) if "flow" in prediction else ("epsilon", scheduler._path)
    table = ardiff.StepTable.load(path).on(on, kind)
    scale = 1000 if "flow" in prediction else 1
    assert torch.allclose(
        scheduler.timesteps, torch.from_numpy(table.level * scale).float(), rtol=1e-6
    )

    def flat(z: torch.Tensor, t: float) -> torch.Tensor:
        return model(z.view(SHAPE), torch.tensor(float(t) * scale, dtype=torch.float32)).flatten(1)

    x = x.flatten(1)
    memory = torch.zeros_like(x)
    for row, level in zip(table.coefficients, table.level, strict=True):
        p_x, p_o, x_x, x_x_lo, x_0, x_m, x_d = row[:7]
        x0 = p_x * x + p_o * flat(x, level)
        x, memory = (x_x + x_x_lo) * x + x_0 * x0 + x_m * memory + x_d * (x - memory), x0
    torch.testing.assert_close(found.flatten(1), x, rtol=0, atol=1e-5)


def test_what_a_table_file_refuses(tmp_path):
    path = str(tmp_path / "mine.table.json")
    ardiff.solver("dpmpp-2m", path="edm", prediction="sample", steps=5, ratio_max=8.0).save(path)
    with pytest.raises(ValueError, match="pass a solver with its options or a table, not both"):
        TableScheduler(table=path, solver="ddim")
    with pytest.raises(OSError, match="nothing.table.json"):
        TableScheduler(table=str(tmp_path / "nothing.table.json"))
    scheduler = TableScheduler(table=path, prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="makes 5 calls: ask for as many steps, got 4"):
        scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="has levels of its own: pass num_inference_steps"):
        scheduler.set_timesteps(timesteps=[900, 500])
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="cannot begin at call 2"):
        scheduler.step(x, scheduler.timesteps[2], x)
