"""NextStep's flow head: the engine's tokens are those of a loop written from the definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ardiff.integrations import nextstep  # noqa: E402
from benchmarks.reference_nextstep import FlowHead  # noqa: E402
from tests._support.head_cases import relative_rms, rows
from tests._support.small_models import randomise

DIM, CONTEXT, N = 6, 24, 5


def head(**options) -> FlowHead:
    return randomise(FlowHead(DIM, CONTEXT, 40, 3, **options)).eval()


WAYS = {
    "one": ({}, 1),
    "text": ({"cfg": 7.5}, 2),
    "image": ({"cfg2": 2.0}, 2),
    "weak-text": ({"cfg": 0.5, "cfg2": 2.0}, 2),
    "both": ({"cfg": 7.5, "cfg2": 1.5}, 3),
}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("case", WAYS)
def test_the_same_noise_gives_the_same_tokens(case, shift):
    options, ways = WAYS[case]
    own, c, noise = head(), rows(ways * N, CONTEXT), rows(20, N, DIM, seed=1)
    options = {**options, "timesteps_shift": shift, "noise": noise}
    expected = own.sample(c, **options)
    nextstep.accelerate(own)
    found = own.sample(c, **options)
    assert found.shape == (N, DIM) and relative_rms(found, expected) < 1e-5
    assert not found.is_inference()
    still = own.sample(c, **options | {"noise": torch.cat([noise[:1], 0 * noise[1:]])})
    assert relative_rms(still, found) > 0.1
    plain = own.sample(c[:N], timesteps_shift=shift, noise=noise)
    assert (relative_rms(plain, found) > 1e-2) == (options.get("cfg", 1) != 1)


@pytest.mark.parametrize(("steps", "last"), [(2, 0.04), (7, 0.3), (50, 0.01)])
def test_other_steps(steps, last):
    own, c, noise = head(), rows(N, CONTEXT), rows(steps, N, DIM)
    arguments = (c, 1.0, 1.0, 2.0, steps, last)
    expected = own.sample(*arguments, noise=noise)
    nextstep.accelerate(own)
    assert relative_rms(own.sample(*arguments, noise=noise), expected) < 1e-5


def test_the_shifted_times():
    """Even without a shift; with one, odds t / (1 - t) divided by it; the last step reaches 1."""
    even = nextstep.shifted_times(25)
    assert even == pytest.approx([0.96 * k / 24 for k in range(25)], abs=1e-15)
    moved = nextstep.shifted_times(25, 3.0)
    assert moved / (1 - moved) == pytest.approx(even / (1 - even) / 3, rel=1e-12)
    table = nextstep.velocity_table(25, 3.0)
    assert table.level == pytest.approx(moved) and table.calls == 25
    assert (table.column("x_n") > 0).tolist() == [True] * 24 + [False]
    assert even[-1] + table.column("x_0")[-1] == pytest.approx(1)


def test_a_head_in_bfloat16_gets_times_in_bfloat16():
    own, c, noise = head().bfloat16(), rows(N, CONTEXT).bfloat16(), rows(20, N, DIM)
    options = {"timesteps_shift": 2.0, "noise": noise}
    expected = own.sample(c, **options).float()
    handle = nextstep.accelerate(own)
    found = own.sample(c, **options)
    assert found.dtype == torch.bfloat16 and handle.head().weights == "bfloat16"
    assert relative_rms(found.float(), expected) < 0.02
    levels = nextstep._rounded(20, 2.0, 0.04, torch.bfloat16).level
    assert torch.equal(torch.tensor(levels).bfloat16().double(), torch.tensor(levels))


def test_rows_share_noise_as_in_the_original():
    own, c = head(), rows(1, CONTEXT).expand(6, -1)
    nextstep.accelerate(own)
    torch.manual_seed(2)
    one, three = own.sample(c), own.sample(c, noise_repeat=3)
    torch.testing.assert_close(one, one[:1].expand(6, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(three[:3], three[3:], atol=1e-5, rtol=1e-5)
    assert relative_rms(three[:1], three[1:2]) > 0.1
    torch.manual_seed(2)
    assert torch.equal(own.sample(c), one) and not torch.equal(own.sample(c), one)


def test_the_generator_is_drawn_from_only_where_noise_is_used():
    own, c = head(), rows(N, CONTEXT)
    nextstep.accelerate(own)
    before = torch.get_rng_state()
    own.sample(c, num_sampling_steps=4, noise=rows(4, N, DIM))
    assert own.sample(c[:0]).shape == (0, DIM)
    assert torch.equal(torch.get_rng_state(), before)
    own.sample(c)
    assert not torch.equal(torch.get_rng_state(), before)


# A mean of 4,000 differs from another by 9 standard errors with a probability of 2e-19; drift
# without the score, the wrong equation, must fail.
def test_the_law_is_that_of_its_own_loop():
    own, c = head(), rows(1, CONTEXT).expand(4000, -1)
    torch.manual_seed(0)
    expected = own.sample(c, noise_repeat=4000)
    nextstep.accelerate(own)
    found = own.sample(c, noise_repeat=4000)
    still = torch.zeros(20, 4000, DIM)
    still[0] = rows(4000, DIM)

    def far(a, b):
        moments = [torch.cat([x, x * x, x * x.roll(1, 1)], 1).double() for x in (a, b)]
        error = sum(m.var(0) / len(m) for m in moments).sqrt()
        return float(((moments[0].mean(0) - moments[1].mean(0)) / error).abs().max())

    assert far(found, expected) < 9 < far(own.sample(c, noise=still), expected)


def test_restore():
    model = nn.Module()
    model.image_head = head()
    handle = nextstep.accelerate(model)
    assert nextstep.accelerate(model.image_head) is handle
    assert nextstep.accelerate(model) is handle
    with pytest.raises(RuntimeError, match="accelerated already"):
        nextstep.accelerate(model, weights="int8")
    nextstep.restore(model)
    nextstep.restore(model)
    assert "sample" not in vars(model.image_head)


class Renamed(FlowHead):
    def sample(self, c, cfg=1.0, cfg_img=1.0):
        return c


def used(*args, **options):
    def call():
        own = head()
        nextstep.accelerate(own)
        own.sample(*args, **options)

    return call


C = rows(4, CONTEXT)
BAD = {
    "model": (
        lambda: nextstep.accelerate(nn.Linear(2, 2)), TypeError, "image_head.net .* got Linear",
    ),
    "signature": (
        lambda: nextstep.accelerate(Renamed(DIM, CONTEXT, 40, 3)), RuntimeError,
        r"takes \(c, cfg, cfg_img\), expec",
    ),
    "outputs": (
        lambda: nextstep.accelerate(head(out=12)), ValueError, "as many outputs .* got 12 and 6",
    ),
    "c": (used(rows(4, 3)), ValueError, r"c must be \[1 B, 24\] .* got \[4, 3\]"),
    "ways": (
        used(C, 2.0, 2.0), ValueError, r"\[3 B, 24\] \(cfg 2.0, cfg2 2.0: 3 conditions per token\)",
    ),
    "repeat": (used(C, noise_repeat=3), ValueError, "must divide the 4 tokens, got 3"),
    "steps": (used(C, num_sampling_steps=1), ValueError, "must be an integer of 2 or more"),
    "shift": (used(C, timesteps_shift=0.0), ValueError, "shift must be positive, got 0.0"),
    "last": (used(C, last_step_size=1.0), ValueError, r"last_step_size must be within \(0, 1\)"),
    "noise": (used(C, noise=rows(19, 4, DIM)), ValueError, r"noise must have shape \[20, 4, 6\]"),
    "nan": (used(C, cfg=math.inf), ValueError, "cfg must be finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
