"""Jobs in processes: what they return and raise, and that no process is left behind."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from multiprocessing import active_children

import pytest

from ardiff.study.workers import run_jobs

LONG = 300.0  # seconds that nobody waits for


def test_results_have_their_keys():
    """A process's own Ctrl-C is blocked, so that the one that started it alone answers."""
    told, blocked = [], partial(signal.pthread_sigmask, signal.SIG_BLOCK, ())
    jobs = {"pid": os.getpid, 3: blocked}
    found = run_jobs(jobs, processes=1, progress=lambda *at: told.append(at))
    assert found["pid"] != os.getpid()
    assert signal.SIGINT in found[3] and signal.SIGINT not in blocked()
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
