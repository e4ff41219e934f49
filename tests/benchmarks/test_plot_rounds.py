"""The rounds benchmark on a mixture, and the plots of rounds and of kept rows."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict

import numpy as np
import pytest

from ardiff.loop.lookahead import Rounds
from benchmarks import _harness, bench_rounds, plot_kept, plot_rounds

QUICK = _harness.Settings(rounds=2, seconds=1e-4)


def _polylines(drawing: str) -> list[list[tuple[float, float]]]:
    lines = [e for e in ElementTree.fromstring(drawing) if e.tag.endswith("polyline")]
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in lines
    ]


def test_a_case_its_plot_and_its_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(bench_rounds.SAMPLES, "mixture", 8)
    found = []
    for rows in (4, 8):
        found += _harness.gated(bench_rounds.run(f"mixture-2/ddpm/steps=100/L={rows}", QUICK))
    rows = [asdict(row) for row in found]
    assert not _harness.failures(rows)
    value = {(row.case[-1], row.rival, row.metric): row.value for row in found}
    for ahead in "48":
        rounds = value[ahead, "ardiff", "rounds"]
        assert value[ahead, "ardiff", "fewer"] == pytest.approx(100 / rounds)
        assert rounds < value[ahead, "frozen", "rounds"]
    ours, frozen = _polylines(plot_rounds.svg(rows))
    assert [len(ours), len(frozen)] == [3, 3]
    assert all(a[1] < b[1] for a, b in zip(ours[1:], frozen[1:], strict=True))  # y grows downwards
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"rows": rows}))
    plot_rounds.main([str(report), str(tmp_path / "rounds.svg")])
    assert capsys.readouterr().out.count("| `mixture-2/ddpm/steps=100/L=") == 2
    report.write_text(json.dumps({"rows": []}))
    with pytest.raises(SystemExit):
        plot_rounds.main([str(report), str(tmp_path / "none.svg")])
    assert "no rounds of ddpm/steps=100" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["mixture-2/ddpm/steps=8", "mixture-2/ddpm/steps=8/L=many"])
def test_a_case_of_another_form(case):
    with pytest.raises(ValueError, match="expected <model>/<solver>/steps=<n>/L=<rows>"):
        bench_rounds.parse(case)


def test_kept_rows_by_first_row():
    windows = np.array([[0, 0, 16, 3], [1, 0, 16, 5], [0, 4, 16, 16], [1, 60, 16, 8]], np.int32)
    rounds = Rounds(windows, np.array([2, 2]), 64)
    found = plot_kept.kept(rounds, 100)
    assert found[0] == pytest.approx(8.0)  # rows 0 to 4: 3, 5 and 16
    assert found[12] == 8.0
    assert np.isnan(np.delete(found, [0, 12])).all()
    ((first, second),) = _polylines(plot_kept.svg([rounds], 100))
    assert first[0] < second[0] and first[1] == second[1]
