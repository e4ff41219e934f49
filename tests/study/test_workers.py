"""Jobs in processes: what they return and raise, and that no process is left behind."""

from __future__ import annotations

import os
import time
from functools import partial
from multiprocessing import active_children

import pytest

from ardiff.study.workers import run_jobs

LONG = 300.0  # seconds that nobody waits for


def test_results_have_their_keys():
    told = []
    jobs = {"pid": os.getpid, 3: partial(divmod, 7, 2)}
    found = run_jobs(jobs, processes=1, progress=lambda *at: told.append(at))
    assert found[3] == (3, 1) and found["pid"] != os.getpid()
    assert list(found) == ["pid", 3] and told == [(1, 2), (2, 2)]
    assert run_jobs({}) == {}


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        (partial(int, "x"), ValueError, "invalid literal"),
        (partial(os._exit, 3), ChildProcessError, "ended before its work was done: it was killed"),
    ],
)
def test_a_job_that_fails_ends_all_others(job, error, message):
    """At once: the other one would take minutes. One more is not begun."""
    jobs = {"long": partial(time.sleep, LONG), "fails": job, "next": partial(time.sleep, LONG)}
    with pytest.raises(error, match=message):
        run_jobs(jobs, processes=2)
    assert not active_children()
