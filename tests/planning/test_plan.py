"""A plan puts together what the theory, the checks and the measurements say, each for itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from ardiff._files import finite
from ardiff.ar.sampler import ARSampler
from ardiff.models.checkpoint import save_model
from ardiff.planning import plan as plan_module
from ardiff.planning import problem as problem_module
from ardiff.planning import recommend as recommend_module
from ardiff.planning.kl_bound import kl_bound
from ardiff.planning.plan import make_plan
from ardiff.planning.recommend import Choice, recommend
from ardiff.planning.stability import CHECKED, check_step
from ardiff.planning.theory import Setting, methods
from ardiff.planning.timing import Timing, measure
from tests._support.small_models import small_model

PROBLEM = {"path": "edm", "dim": 64, "lipschitz": 2.0}


def test_the_theory_of_a_plan_is_that_of_its_problem() -> None:
    made = make_plan(**PROBLEM, patches=4, accuracy=0.2, calls=16, score_error=0.3)
    setting = Setting(64, 2.0, 0.2, patches=4, score_error=0.3)
    horizon = 0.5 * math.log1p(40.0**2)
    assert made.setting == setting and made.horizon == pytest.approx(horizon)
    assert list(made.methods) == methods(setting, made.horizon)
    assert made.bounds["16 calls"] == kl_bound(setting, made.horizon, 16)
    assert made.kernel == pytest.approx((2.0, 6.0)) and made.condition == pytest.approx(3.0)
    about = {"dim": 16, "smallest": 0.5**0.5, "batch": 128}
    assert made.recommendation == recommend(16, score="learned", **about)


def test_steps_are_checked_on_the_kernels_of_the_plan() -> None:
    """The theory's on [L, 3 L]; those of the solvers in units of the envelope, where no curvature
    is above 1 and none below that of the cleanest stage."""
    made = make_plan(**PROBLEM, calls=16)
    assert [check.solver for check in made.checks] == list(CHECKED)
    uld = next(m for m in made.methods if m.name == "rtk-uld")
    for check in made.checks:
        tau = uld.tau**2 / 2 if check.solver in ("rtk-ula", "rtk-mala") else uld.tau
        again = check_step(check.solver, *made.kernel, tau=tau, gamma=uld.gamma)
        assert check == again and check.stable
    (low,) = {check.low for check in made.defaults}
    variance = 0.002**2 / (1 + 0.002**2)  # sigma^2 on the OU path at the clean end of the grid
    assert low == pytest.approx(2.0 / (4.0 + 1 / variance))
    assert all(check.stable and check.high == 1 for check in made.defaults)


def test_a_plan_says_what_is_exact_and_what_is_a_rate() -> None:
    text = str(make_plan(**PROBLEM, patches=2, calls=16))
    assert "rates, whose constants are unknown" in text.replace("\n", " ")
    assert "Exact: eta and stages of the RTK solvers" in text
    assert "its source has no rate for K patches" in text
    assert "A sum above 2 says nothing" in text
    assert max(len(line) for line in text.splitlines()) <= 110
    assert "its source has no rate" not in str(make_plan(**PROBLEM, calls=16))


def test_all_figures_are_json() -> None:
    made = make_plan(**PROBLEM, accuracy=0.01, score="exact")
    found = json.loads(json.dumps(finite(made.as_dict()), allow_nan=False))
    assert found["sample"]["solver"] == made.recommendation.solver
    assert found["methods"]["rtk-uld"]["calls"] == pytest.approx(4 * 8 / 0.01)
    assert {"exact", "rates", "kl_bound", "inner_steps", "budget"} <= set(found)


def pretend(monkeypatch, evidence: dict) -> None:
    """Has `evidence` measured."""
    for module in (plan_module, recommend_module):
        monkeypatch.setattr(module, "evidence", lambda: evidence)


def test_lengths_are_those_of_the_problem(monkeypatch) -> None:
    choice = Choice("ddim", {"ratio_min": {"smallest": 0.1}}, 0.1)
    pretend(monkeypatch, {"learned": {8: (0.1, (choice, Choice("ddim", {}, 0.2)))}})
    made = make_plan(**PROBLEM, calls=8)
    assert made.sample.options == {"ratio_min": pytest.approx(0.1 / 2**0.5)}


@pytest.mark.parametrize("problem", [PROBLEM, {"model": "sun-shadow", "lipschitz": 2.0}])
def test_a_plan_that_cannot_run_is_refused(monkeypatch, problem) -> None:
    choices = (0.1, (Choice("rtk-uld", {}, 0.1),))
    pretend(monkeypatch, {"learned": {5: choices}, "image": {5: choices}})
    assert make_plan(**problem, calls=7).sample.solver == "rtk-uld"
    with pytest.raises(ValueError, match="rtk-uld needs two stages or more"):
        make_plan(**problem, calls=6)


def test_an_accuracy_is_the_fewest_calls_that_were_measured_to_reach_it(monkeypatch) -> None:
    """The first choice needs the scale of the data, and is measured only where that is given."""
    errors = {8: 0.5, 16: 0.12, 24: 0.1}
    measured = {
        calls: (0.1, (Choice("ddim", {"ratio_max": {"scale": 9}}, 0.1), Choice("ddim", {}, error)))
        for calls, error in errors.items()
    }
    pretend(monkeypatch, {"exact": measured})
    problem = {**PROBLEM, "score": "exact"}
    for accuracy, calls in ((0.45, 8), (0.3, 16), (0.015, 24)):
        made = make_plan(**problem, accuracy=accuracy)
        assert (made.sample.steps, made.sample.options) == (calls, {})
        assert f"{calls} calls are the fewest measured" in made.budget
    made = make_plan(**problem, accuracy=0.015, scale=2.0)
    assert (made.sample.steps, made.sample.options) == (8, {"ratio_max": 18.0})
    measured |= {calls: (0.1, (Choice("ddim", {}, 0.5),)) for calls in errors}
    made = make_plan(**problem, accuracy=0.01)
    assert made.recommendation.steps == 24 and "no measured number of calls" in made.budget


def test_a_time_is_turned_into_calls() -> None:
    timing = Timing(per_call=0.01, overhead=0.5, batch=32, patches=4)
    assert timing.seconds(10) == pytest.approx(0.9)
    assert [timing.calls(seconds) for seconds in (0.541, 0.91, 0.93, 1e9)] == [1, 10, 10, 1000]
    with pytest.raises(ValueError, match="32 images takes 0.54 s on this machine with one model"):
        timing.calls(0.53)


@pytest.mark.parametrize(
    ("of_call", "beside", "found"), [(1.0, 2.0, (1.0, 2.0)), (-0.1, 9.0, (4.2 / 48, 0.0))]
)
def test_what_is_measured_adds_up(monkeypatch, of_call, beside, found) -> None:
    """With a clock that runs by calls, the first round and the one after it slower; and with one
    so rough that more steps take less."""
    sample, rounds = ARSampler.sample, iter((5, 5, 3, 3, 1, 1, 2, 2))

    def timed(self, n, **options):
        drawn = sample(self, n, **options)
        seconds = next(rounds) * (beside + of_call * self.calls)
        object.__setattr__(drawn.stats, "seconds", seconds)
        return drawn

    monkeypatch.setattr(ARSampler, "sample", timed)
    timing = measure(small_model(), 3)
    assert (timing.per_call, timing.overhead) == pytest.approx(found)
    assert (timing.batch, timing.patches) == (3, 4)


def test_a_plan_of_a_model_is_measured_and_runs(tmp_path) -> None:
    save_model(small_model(), tmp_path / "small")
    made = make_plan(model=tmp_path / "small", seconds=60.0, batch=4)
    config = small_model().config
    assert made.setting.dim == config.patches * config.patch_dim
    assert (made.setting.patches, made.path) == (4, "vp-cosine")
    assert made.setting.lipschitz >= made.curvature.lipschitz
    assert made.sample.model == str((tmp_path / "small").resolve())
    assert made.timing.calls(60.0) == made.recommendation.steps
    assert "fit into 60 s for a batch of 4 images on this machine" in made.budget
    assert str(made.curvature) in str(made) and "(measured)" in str(made)
    shipped = make_plan(model="sun-shadow", lipschitz=3.0, calls=8)
    assert shipped.sample.model == "sun-shadow" and "L = 3 (given)" in str(shipped)


def test_a_guided_model_has_a_plan_of_its_own(tmp_path, monkeypatch) -> None:
    """The curvature is that of the guided score, at contexts that do not depend on it here."""
    contexts = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(problem_module, "contexts_of", lambda *_: contexts)
    save_model(small_model(replace(small_model().config, null_context=True)), tmp_path / "small")
    about = {"model": tmp_path / "small", "calls": 6}
    plain, guided = make_plan(**about), make_plan(**about, score="guided", guidance=3.0)
    assert guided.sample.guidance == 3.0 and plain.sample.guidance is None
    assert guided.setting.lipschitz != plain.setting.lipschitz
    assert "at most 48 model calls for a sample" in str(guided)
    assert "at most 24 model calls for a sample" in str(plain)


MODEL = {"model": "sun-shadow", "calls": 8, "path": None, "dim": None, "lipschitz": None}
BAD = {
    "no budget": ({}, "a plan needs a budget: give calls, seconds or accuracy"),
    "two budgets": ({"calls": 8, "seconds": 1.0}, "both a budget: give one"),
    "time without a model": ({"seconds": 1.0}, "measured with the model: give model too"),
    "no time": ({"seconds": 0.0, "model": "sun-shadow"}, "seconds must be positive"),
    "no path": ({"calls": 8, "path": None}, "path is missing"),
    "no dim": ({"calls": 8, "dim": None}, "dim is missing"),
    "unknown path": ({"calls": 8, "path": "ve"}, "unknown path 've'"),
    "dim of a model": ({"calls": 8, "model": "sun-shadow", "path": None}, "dim is the model's own"),
    "no calls": ({"calls": 0}, "must be an integer of 1 or more, got 0"),
    "no batch": ({"calls": 8, "batch": 0}, "batch must be an integer of 1 or more, got 0"),
    "no patches": ({"calls": 8, "patches": 0}, "patches must be an integer of 1 or more, got 0"),
    "L of a model": ({**MODEL, "lipschitz": 0.0}, "lipschitz must be positive and finite, got 0.0"),
    "no name": ({**MODEL, "model": 3}, "model must be a shipped name or a folder, got 3"),
    "time of a kind": (
        {**MODEL, "calls": None, "seconds": "3"}, "seconds must be positive and finite, got '3'",
    ),
    "unknown score": ({"calls": 8, "score": "good"}, "score must be one of exact, learned"),
    "no length": ({"calls": 8, "scale": -1.0}, "scale must be positive and finite, got -1.0"),
    "no L": ({"calls": 8, "lipschitz": None}, "lipschitz is missing"),
    "guidance of no model": ({"calls": 8, "guidance": 2.0}, "that of a model: give model too"),
    "guidance without its score": (
        {**MODEL, "guidance": 2.0}, "give both or neither, got guidance 2.0 and score learned",
    ),
    "its score without guidance": ({**MODEL, "score": "guided"}, "give both or neither"),
    "guidance of no null": (
        {**MODEL, "score": "guided", "guidance": 2.0}, "trained without context dropout",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    change, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        make_plan(**{**PROBLEM, **change})
