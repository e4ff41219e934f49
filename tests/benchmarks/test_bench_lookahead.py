"""The benchmark of tokens in rounds on a tiny head."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks import _harness, bench_lookahead

QUICK = _harness.Settings(rounds=2, seconds=1e-4)


def test_a_case_has_its_rows():
    rows = _harness.gated(bench_lookahead.run("tiny/N=3/float32", QUICK))
    assert not _harness.failures([asdict(row) for row in rows])
    names = [f"ardiff-lookahead-{n}" for n in bench_lookahead.LOOKAHEADS]
    expected = {(n, m) for n in names for m in (_harness.CORRECTNESS, "gain-over-ardiff")}
    expected |= {(n, "time_of_a_token") for n in (*names, "ardiff")}
    assert {(row.rival, row.metric) for row in rows} == expected


def test_a_wrong_token_withholds_the_times(monkeypatch):
    ours = bench_lookahead.token("tiny/N=3/float32", QUICK).ours.__func__

    def wrong(self, *args, lookahead=None, **options):
        given = {} if lookahead is None else {"lookahead": lookahead}
        return ours(self, *args, **given, **options) * (1 if lookahead is None else 1.001)

    monkeypatch.setattr("benchmarks.bench_head.Token.ours", wrong)
    rows = _harness.gated(bench_lookahead.run("tiny/N=3/float32", QUICK))
    assert [row.metric for row in rows] == [_harness.CORRECTNESS]
