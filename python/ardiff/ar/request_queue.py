"""The requests of an engine: those that wait, and those that run and have rows of its cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .admission import Beginning, beginning_of, take_in
from .kv_cache import KVCache
from .patch_model import Sampled
from .requests import Request


class RequestQueue:
    """Requests in the order they came, each admitted when the cache has room for all of it.

    Attributes:
        waiting: requests without rows.
        running: those with a cache row for each stream, and blocks for their whole length.
        free_rows: of the cache.
    """

    def __init__(self, model: Sampled, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self.free_rows = list(range(cache.plan.rows))[::-1]
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, requests: Iterable[Request]) -> None:
        self.waiting += requests

    def find(self, id: int) -> Request | None:
        """The request of that id, if it waits or runs."""
        return next((r for r in (*self.waiting, *self.running) if r.id == id), None)

    def admit(self) -> None:
        """Gives waiting requests rows, first come, first served, and takes in what they begin with;
        none of them if the model raises."""
        begun: list[Beginning] = []
        admitted: list[Request] = []
        free = self._cache.free_blocks
        while self.waiting:
            request, others = self.waiting[0], (*self.running, *admitted)
            beginning = beginning_of(request, others, self._cache.plan, self._model.block)
            if len(request.prompts) > len(self.free_rows) or beginning.blocks > free:
                break
            free -= beginning.blocks
            request.rows = [self.free_rows.pop() for _ in request.prompts]
            admitted.append(self.waiting.popleft())
            begun.append(beginning)
        try:
            take_in(self._model, self._cache, begun)
        except BaseException:
            for request in reversed(admitted):
                self._take_back(request)
                self.waiting.appendleft(request)
            raise
        self.running += admitted

    def release(self, request: Request) -> None:
        """Forgets a request, whose rows are free at once."""
        if request.rows:
            self.running.remove(request)
            self._take_back(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def _take_back(self, request: Request) -> None:
        self._cache.reset(request.rows)
        self.free_rows += request.rows
        request.rows = []
