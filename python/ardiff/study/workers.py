"""Jobs spread over processes, none of which outlives the one that started them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process, resource_tracker
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
Progress = Callable[[int, int], None]


def run_jobs(
    jobs: Mapping[Key, Callable[[], Any]],
    processes: int | None = None,
    progress: Progress | None = None,
) -> dict[Key, Any]:
    """What each job returns, by its key. Each job has one thread.

    Args:
        jobs: picklable, begun in their order.
        processes: how many run at once, by default one for each CPU.
        progress: ``progress(done, total)`` after each job.

    Raises:
        ChildProcessError: a process ended before its job did, as where memory is short.
        Exception: what a job raised. All others are then ended, as they are by Ctrl-C.
    """
    others = active_children()
    count = max(1, min(processes or os.cpu_count() or 1, len(jobs)))
    pool = ProcessPoolExecutor(count, get_context("spawn"), _begin)
    finished = False
    try:
        with _interrupts_held():
            futures = {key: pool.submit(job) for key, job in jobs.items()}
        for done, future in enumerate(as_completed(futures.values()), start=1):
            future.result()
            if progress is not None:
                progress(done, len(jobs))
        finished = True
        return {key: future.result() for key, future in futures.items()}
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process ended before its work was done: it was killed, or memory was short; take "
            "fewer processes or samples"
        ) from error
    finally:
        if not finished:
            for child in set(active_children()) - set(others):
                child.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A terminal sends Ctrl-C to all its processes. Those started in this block never see it, for
    what blocks a signal is inherited; the one that started them does so at the block's end."""
    resource_tracker.ensure_running()  # else it is started in the block, and unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its processes: they watch it."""
    parent_process().join()
    os._exit(1)
