"""`cuda_graph=True`: one recording for all calls of a kind. Where there is no GPU, graph_on_cpu
records the loop in place of a CUDA graph; tests/gpu captures it for real."""

from __future__ import annotations

import pytest
import torch

import ardiff
from ardiff.data.mixture import GaussianMixture
from ardiff.loop import cuda_graphs as graphs
from ardiff.solvers import SOLVERS
from ardiff.tables.ragged import RaggedTable
from tests._support import graph_on_cpu

D = 6
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.2, 0.5, 0, 0, 1], [1.0, 0.7, -0.3, 1, 0, 0]]),
    torch.tensor([[0.04, 0.09, 0.02, 0.1, 0.2, 0.1], [0.03, 0.02, 0.02, 0.2, 0.1, 0.1]]),
)
WEIGHT = torch.linspace(-1, 1, D * D).view(D, D)
OPTIONS = {"path": "vp-cosine", "prediction": "v_prediction"}
ARGUMENTS = ("vp-cosine", "v_prediction")


def model(x, level, condition):
    """Row by row, without a matrix product: bits do not depend on the batch."""
    shift = 0.0 if condition is None else condition["shift"] * condition["scale"]
    return torch.tanh((x[:, None, :] * WEIGHT).sum(2) + 0.001 * level[:, None] + shift)


@pytest.fixture
def recordings(monkeypatch):
    """Counts the recordings of a test, which begins without any."""
    made = []

    def record(function):
        made.append(function)
        return graph_on_cpu.record(function)

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr("ardiff.sampling.check_graph", lambda *_: None)
    graphs.clear_graphs()
    yield made
    graphs.clear_graphs()


def both(batch=4, arguments=ARGUMENTS, cuda_graph=True, **options):
    """Samples by a replay and by the loop."""
    options = {"steps": 13, "seed": 0, **options}
    if "table" in options:
        arguments = ()
        del options["steps"]
    shape = (batch, D)
    replayed = ardiff.sample(model, shape, *arguments, cuda_graph=cuda_graph, **options)
    return replayed, ardiff.sample(model, shape, *arguments, **options)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_replay_is_the_loop(recordings, solver):
    """With other keys, ids, conditions, patches, guidance and temperature, to the bit."""
    for i in range(3):
        condition = {"shift": torch.full((4, 1), 0.1 * i), "scale": 2.0}
        found, expected = both(
            solver=solver, seed=i, sample_ids=[i, 7, 3, 2**40], patch=i, condition=condition,
            uncond={"shift": torch.zeros(4, 1), "scale": 2.0}, guidance=1.0 + i,
            temperature=0.9 - 0.1 * i,
        )  # fmt: skip
        assert torch.equal(found, expected)
    assert len(recordings) == 1


def test_noise_repeats_only_with_the_seed(recordings):
    def draw(seed, generator=None):
        return ardiff.sample(
            model, (4, D), *ARGUMENTS, "rtk-uld", 13, seed=seed, cuda_graph=True,
            generator=generator,
        )  # fmt: skip

    torch.manual_seed(5)
    drawn = [draw(None) for _ in range(3)]
    assert not any(torch.equal(a, b) for a, b in zip(drawn, drawn[1:] + drawn[:1], strict=True))
    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))
    assert len(recordings) == 1


def test_results_are_the_callers_own(recordings):
    """A later replay does not overwrite them, and they may require grad."""
    (first, _), (second, _) = both(solver="ddpm", seed=1), both(solver="ddpm", seed=2)
    assert not torch.equal(first, second) and torch.equal(first, both(solver="ddpm", seed=1)[1])
    assert not first.is_inference()


@pytest.mark.parametrize("solver", ["ddpm", "rtk-uld", "rtk-mala"])
def test_other_tables_of_the_same_ops(recordings, solver):
    """Coefficients and levels are inputs."""
    for ratio_min in (0.05, 0.1):
        found, expected = both(solver=solver, ratio_min=ratio_min)
        assert torch.equal(found, expected)
    assert len(recordings) == 1
    found, expected = both(solver=solver, steps=19)
    assert torch.equal(found, expected) and len(recordings) == 2


def test_other_solvers_of_the_same_ops(recordings):
    for solver in ("ddpm", "ddim", "heun", "dpmpp-2m-sde"):
        found, expected = both(solver=solver)
        assert torch.equal(found, expected)
    assert len(recordings) == 1


@pytest.mark.parametrize("solver", ["ddpm", "rtk-uld", "rtk-mala"])
def test_other_rows(recordings, solver):
    """Samples take other tables of their own: the rows are inputs."""
    tables = [ardiff.solver(solver, steps=n, **OPTIONS) for n in (13, 19, 25)]
    for index in ([0, 1, 2, 2], [2, 1, 0, 1], [1, 2, 0, 0]):
        found, expected = both(table=RaggedTable(tables, index))
        assert torch.equal(found, expected)
    assert len(recordings) < 3


def test_batches_of_one_bucket_share_a_recording(recordings):
    """Padded samples change nothing; statistics do not count them."""
    for batch in (5, 6, 8, 7):
        condition = {"shift": torch.linspace(0, 1, batch)[:, None], "scale": torch.ones(())}
        options = dict(solver="rtk-mala", condition=condition, guidance=torch.ones(batch))
        options |= dict(uncond={"shift": torch.zeros(batch, 1), "scale": torch.ones(())})
        found, expected = both(batch, return_stats=True, **options)
        assert torch.equal(found[0], expected[0])
        for name in ("calls", "rejected_nonfinite"):
            assert getattr(found[1], name) == getattr(expected[1], name)
        for name in ("acceptance", "log_alpha_histogram", "decisions"):
            assert torch.equal(getattr(found[1], name), getattr(expected[1], name))
    assert len(recordings) == 2  # of 6 and of 8
    for batch in (1, 3, 9):
        found, expected = both(batch, cuda_graph=[10], solver="ddpm")
        assert torch.equal(found, expected)
    assert len(recordings) == 3


def test_ragged_tables_are_padded(recordings):
    for steps in ([13, 19, 25, 13, 19], [19, 13, 25, 25, 13, 19]):
        found, expected = both(len(steps), solver="rtk-uld", steps=steps)
        assert torch.equal(found, expected)


def test_buckets():
    found = [graphs.bucket_of(n, True) for n in range(1, 18)]
    assert found == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16, 24]
    assert [graphs.bucket_of(n, (64, 8)) for n in (1, 8, 9)] == [8, 8, 64]


def test_other_kinds_are_recorded_anew(recordings):
    def draw(function=model, scale=2.0, **options):
        condition = {"shift": torch.ones(4, 1), "scale": scale}
        options = {"solver": "ddpm", "steps": 5, "condition": condition, **options}
        return ardiff.sample(function, (4, D), *ARGUMENTS, cuda_graph=True, **options, seed=0)

    draw()
    changes = (
        {"function": lambda *args: model(*args)}, {"scale": 3.0},
        {"dtype": torch.bfloat16}, {"solver": "rtk-ula", "steps": 7}, {"steps": 6},
    )  # fmt: skip
    for n, change in enumerate(changes):
        draw(**change)
        draw(**change)
        assert len(recordings) == n + 2, change
    with torch.autocast("cpu", torch.bfloat16):
        draw()
    assert len(recordings) == len(changes) + 2


def test_the_least_recently_used_recording_goes(recordings, monkeypatch):
    monkeypatch.setattr(graphs, "CAPACITY", 2)
    for steps in (5, 6, 5, 7, 5, 6):
        ardiff.sample(model, (4, D), *ARGUMENTS, "ddpm", steps, cuda_graph=True, seed=0)
    assert len(recordings) == 4  # 5, 6, 7, and 6 again


def test_parameters_may_change_in_place(recordings):
    layer = torch.nn.Linear(D, D)

    def draw(cuda_graph):
        function = lambda x, level, condition: layer(x)  # noqa: E731
        return ardiff.sample(function, (4, D), *ARGUMENTS, "ddpm", 5, cuda_graph=cuda_graph, seed=0)

    draw(True)
    with torch.no_grad():
        layer.weight.mul_(0.5)
    assert torch.equal(draw(True), draw(False))


class Hoisted:
    """A model that prepares levels and condition before the loop."""

    def hoist(self, levels, condition):
        scales = (1 + 0.001 * levels)[:, None, None] * condition
        return lambda row, x: torch.tanh(x * scales[row])


def test_hoisting_is_captured_too(recordings):
    hoisted = Hoisted()
    for shift in (0.5, 1.5):
        options = {"condition": torch.full((4, D), shift)}
        arguments = (hoisted, (4, D), *ARGUMENTS, "rtk-uld", 13)
        expected = ardiff.sample(*arguments, **options, seed=0)
        assert torch.equal(ardiff.sample(*arguments, cuda_graph=True, **options, seed=0), expected)
    assert len(recordings) == 1


def reads_back(x, level, condition):
    return x * float(x.abs().max())


def copies_from_host(x, level, condition):
    return x * torch.tensor(0.5)


@pytest.mark.parametrize("function", [reads_back, copies_from_host])
def test_a_model_that_cannot_be_captured(recordings, function):
    with pytest.raises(RuntimeError, match="^cuda_graph: the loop could not be captured: oper"):
        ardiff.sample(function, (4, D), *ARGUMENTS, "ddpm", 5, cuda_graph=True, seed=0)
    assert not graphs._captured


BAD = {
    "cpu": (dict(cuda_graph=True), ValueError, "needs a CUDA device, got cpu: pass device="),
    "number": (dict(cuda_graph=4, device="cuda"), TypeError, "a bool or a list of batch sizes"),
    "floats": (dict(cuda_graph=[4.0], device="cuda"), TypeError, "a bool or a list of batch sizes"),
    "too small": (dict(cuda_graph=[2, 3], device="cuda"), ValueError, "that hold 4 samples, got"),
    "none": (dict(cuda_graph=[], device="cuda"), ValueError, "that hold 4 samples, got"),
    "zero": (dict(cuda_graph=[0, 4], device="cuda"), ValueError, "positive batch sizes"),
    "adapt": (
        dict(cuda_graph=True, device="cuda", adapt="sample", solver="rtk-mala"), ValueError,
        "adapt and cuda_graph do not go together",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_invalid_calls(case):
    options, error, message = BAD[case]
    options = {"solver": "ddpm", **options}
    with pytest.raises(error, match=message):
        ardiff.sample(model, (4, D), *ARGUMENTS, steps=13, **options, seed=0)


def test_a_condition_that_cannot_be_told_apart(recordings):
    condition = {"shift": torch.zeros(4, 1), "scale": {1.0}}
    with pytest.raises(TypeError, match="^cuda_graph: .* must be hashable"):
        ardiff.sample(
            model, (4, D), *ARGUMENTS, "ddpm", 5, condition=condition, cuda_graph=True, seed=0
        )  # fmt: skip
