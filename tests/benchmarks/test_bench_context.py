"""The context benchmark on a tiny model, and its plot."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict

import pytest
import torch

from benchmarks import _harness, bench_context, plot_context  # noqa: E402

QUICK = _harness.Settings(rounds=2, seconds=1e-4)


def test_a_curve_and_its_plot(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_context, "LONGEST_ANEW", 64)
    monkeypatch.setattr(bench_context, "STEPS", 3)
    rows = _harness.gated(bench_context.run("tiny/K=128/float32", QUICK))
    errors = [row for row in rows if row.metric == _harness.CORRECTNESS]
    assert [row.rival for row in errors] == ["ardiff", "sdpa"] and not _harness.failures(
        [asdict(row) for row in rows]
    )
    found = {(row.case.split("/")[1], row.rival, row.metric) for row in rows}
    assert ("K=64", "reference-ddpm", "speedup") in found
    assert ("K=128", "reference-ddpm", "speedup") not in found
    assert {m for k, _, m in found if k == "K=128"} > {"encoder-growth", "sampling-growth"}
    drawing = plot_context.svg([asdict(row) for row in rows])
    lines = [e for e in ElementTree.fromstring(drawing) if e.tag.endswith("polyline")]
    assert len(lines) == 4
    xs = [float(p.split(",")[0]) for p in lines[-1].get("points").split()]
    assert len(xs) == 4 and xs == sorted(xs)
    check_table(plot_context.table([asdict(row) for row in rows]), rows)
    check_command([asdict(row) for row in rows], drawing, tmp_path, capsys)


def check_command(rows: list[dict], drawing: str, folder, capsys) -> None:
    """`python -m benchmarks.plot_context`, as the README has it."""
    report, out = folder / "report.json", folder / "cost.svg"
    report.write_text(json.dumps({"rows": rows}))
    plot_context.main([str(report), str(out)])
    assert out.read_text() == drawing
    assert capsys.readouterr().out.strip() == plot_context.table(rows)
    report.write_text(json.dumps({"rows": []}))
    for arguments, message in (
        ([], "the following arguments are required: report, out"),
        ([folder / "none.json", out], "none.json: [Errno 2]"),
        ([report, out], "no rows in ms/patch: expected the report of `ardiff bench context`"),
    ):
        with pytest.raises(SystemExit) as ended:
            plot_context.main([str(argument) for argument in arguments])
        assert ended.value.code == 2 and message in capsys.readouterr().err
    assert out.read_text() == drawing


def test_rows_of_the_suites_other_cases_are_left_out():
    row = asdict(
        _harness.Row("context", "tiny/K=64/float32", "ardiff", "encoder-time", 2.0, "ms/patch")
    )
    other = asdict(
        _harness.Row(
            "context", "fork/tiny/prompt=9/copies=2/float32", "ardiff", "memory", 2.0, "MiB"
        )
    )
    assert plot_context.table([row, other]) == plot_context.table([row])
    assert plot_context.svg([row, other]) == plot_context.svg([row])


def check_table(text: str, rows: list) -> None:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    head, times = cells[0], cells[2]
    assert head == ["K", "16", "32", "64", "128"]
    assert [line[0] for line in cells[2:]] == [label for *_, label in plot_context.LINES]
    found = {(row.case, row.rival, row.metric): row.value for row in rows}
    keys = [(f"tiny/K={k}/float32", "ardiff", "encoder-time") for k in head[1:]]
    assert times[1:] == [f"{found[key]:.0f}" for key in keys]
    given = [[("x (" in cell) or cell for cell in line[1:]] for line in cells[3:]]
    assert given[0] == given[3] == ["", "", "", True]
    assert given[1] == [True] * 4 and given[2] == [True] * 3 + [""]


def test_the_lengths_of_the_whole_curve():
    assert bench_context.CASES == ("mar-b/K=1024/float32",)
    lengths = [16, 32, 64, 128, 256, 512, 1024]
    assert bench_context.parse(bench_context.CASES[0]) == ("mar-b", lengths)


def test_a_wrong_cache_withholds_the_figures(monkeypatch):
    cached = bench_context._Contexts.cached
    monkeypatch.setattr(
        bench_context._Contexts, "cached", lambda self, k: cached(self, max(k - 1, 1))
    )
    rows = _harness.gated(bench_context.run("tiny/K=16/float32", QUICK))
    assert len(rows) == 1 and rows[0].value > 1


@pytest.mark.parametrize(
    "case", ["mar-b", "mar-x/K=64/float32", "mar-b/K=48/float32", "mar-b/K=64/half"]
)
def test_cases_of_another_form_are_named(case):
    with pytest.raises(
        ValueError, match="expected <model>/K=<longest>/float32 with a model of mar-b"
    ):
        bench_context.parse(case)


def test_a_report_without_times_has_no_plot():
    with pytest.raises(ValueError, match="no rows in ms/patch: expected the report of"):
        plot_context.svg([])


def test_the_rival_reads_its_own_cache_at_any_length():
    """Length by length the same contexts, whichever was asked for before."""
    torch.manual_seed(0)
    model = bench_context.ARModel(
        bench_context.ModelConfig(
            image_size=64, patch_size=2, channels=4, **bench_context.MODELS["tiny"]
        )
    )
    contexts = bench_context._Contexts(model.requires_grad_(False), torch.randn(8, 8, 16))
    with torch.inference_mode():
        first = contexts.incremental(8)
        assert torch.equal(contexts.sliced(5), first["sdpa"][:, 4])
        assert torch.equal(contexts.cached(5), first["ardiff"][:, 4])
        assert torch.allclose(contexts.anew(5), first["ardiff"][:, 4], atol=1e-5)
