"""The benchmark of tokens in rounds on a tiny head."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from benchmarks import _harness, bench_lookahead

QUICK = _harness.Settings(rounds=2, seconds=1e-4, rivals=["eager"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_case_has_its_rows(dtype):
    rows = _harness.gated(bench_lookahead.run(f"tiny/N=3/{dtype}", QUICK))
    assert not _harness.failures([asdict(row) for row in rows])
    names = [f"ardiff-lookahead-{n}" for n in bench_lookahead.LOOKAHEADS]
    rivals = ["eager"] if dtype == "float32" else ["eager-float32", "eager-bfloat16"]
    expected = {(n, _harness.CORRECTNESS) for n in (*names, *rivals)}
    expected |= {(n, f"gain-over-{other}") for n in names for other in ("ardiff", *rivals)}
    expected |= {(n, "time_of_a_token") for n in (*names, "ardiff", *rivals)}
    expected |= {(n, "error") for n in rivals}
    assert {(row.rival, row.metric) for row in rows} == expected


def test_a_wrong_token_withholds_the_times(monkeypatch):
    ours = bench_lookahead.token("tiny/N=3/float32", QUICK).ours.__func__

    def wrong(self, *args, lookahead=None, **options):
        given = {} if lookahead is None else {"lookahead": lookahead}
        return ours(self, *args, **given, **options) * (1 if lookahead is None else 1.001)

    monkeypatch.setattr("benchmarks.bench_head.Token.ours", wrong)
    rows = _harness.gated(bench_lookahead.run("tiny/N=3/float32", QUICK))
    assert [row.metric for row in rows] == [_harness.CORRECTNESS]
