"""The example of docs/integrations/diffusers.md runs, and prints what the page says."""

from __future__ import annotations

import re

from tests import ROOT

PAGE = ROOT / "docs/integrations/diffusers.md"


def test_example(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(example, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "torch.Size([2, 3, 8, 8])" in printed
    levels = names["pipeline"].scheduler.timesteps.tolist()
    assert len(set(levels)) == 9 and levels == sorted(levels, reverse=True)
