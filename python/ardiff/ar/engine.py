"""AREngine: draws sequences of patches for requests that come and go, all in the same calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from os import PathLike

import torch
from torch import Tensor

import ardiff_kernels

from ..batch_invariant import batch_invariant as batch_invariant_mode
from ..loop.lookahead import check_lookahead
from ..noise import make_key
from ..solvers import default_solver
from ..tables.table import StepTable
from .admission import Prompts
from .kv_cache import KVCache
from .patch_model import Sampled, sampled_model
from .request_queue import RequestQueue
from .requests import Finished, MadePatch, Request, check_room, forks_of, make_request
from .step import PatchSolver, contexts

_log = logging.getLogger(__name__)


class AREngine:
    """Continuous batching: requests of their own lengths, prompts, steps, guidance and seeds.

    A step takes the newest tokens of all running requests into the cache in one call of the
    encoder, hoists their conditions once and runs one solver for all of them; the unconditional
    streams of guidance are rows of the same call. A request's noise is addressed by its seed,
    sample id and places, so its patches do not depend on what else runs, but for the rounding of
    matrix products; with `batch_invariant` not even for that, to the bit.

    Requests are admitted in the order they came, each when cache rows for its streams and blocks
    for its whole length are free, so that a running request never waits for memory. Blocks that it
    shares are counted once: a prompt that a running request has too is taken from the cache, and
    :meth:`fork` makes continuations that share the patches made so far.

    Example:
        >>> import ardiff
        >>> engine = ardiff.AREngine(
        ...     ardiff.load("sun-shadow"), "ddim", steps=4, rows=2, capacity=4
        ... )
        >>> ids = [engine.submit(None, patches=4, seed=seed) for seed in range(3)]
        >>> while engine.step():
        ...     for found in engine.collect():
        ...         print(found.request, found.patches.shape)
        0 torch.Size([4, 768])
        1 torch.Size([4, 768])
        2 torch.Size([4, 768])

        Four more images that begin with the two patches of one:

        >>> first = engine.submit(None, patches=4, seed=0)
        >>> made = engine.step() + engine.step()
        >>> engine.fork(first, 4)
        [4, 5, 6, 7]
        >>> while engine.step():
        ...     pass
        >>> images = {found.request: found.patches for found in engine.collect()}
        >>> [bool((images[4][k] == images[first][k]).all()) for k in range(4)]
        [True, True, False, False]

    Args:
        model: a `PatchModel`, float32 or bfloat16; or an `ARModel`, such as `ardiff.load` returns.
            Patches and the solver's state are float32 whatever the model's dtype. Patches of an
            `ARModel` are given back as pixels in [-1, 1], those of a `PatchModel` as they are.
        solver: a name of `ardiff.solvers`, which all requests share; None takes
            `ardiff.default_solver` of `steps`.
        steps: bound on the model calls for each patch, for requests that do not say; None for 48.
        table: a table for all patches, or the name of its file, in place of `solver`, `steps` and
            `options`; for the model's path and prediction.
        rows: streams in the cache at a time.
        capacity: tokens that a stream can hold: prompt, start tokens and patches.
        block_size, blocks, limit: of the cache, as `CausalEncoder.plan_cache` and `KVCache` take
            them.
        cache_dtype: float32, bfloat16, int8 or float8_e4m3fn; None for the encoder's.
        share_prompts: take a prompt that equals one of a running request from the cache; False
            takes in each one anew, and shares only what forks have in common.
        batch_invariant: compute each request as if it were alone, to the bit; slower.
        backend: forces a backend of `ardiff_kernels`; None takes the best.
        weights: of the head's blocks, `float32`, `bfloat16` or `int8`.
        lookahead, mode, tolerance: as of :func:`ardiff.sample`, of each patch's run.
        options: the solver's own and the time grid, by default the model's.

    Attributes:
        plan: what the cache takes, logged before it is allocated.

    Raises:
        TypeError, ValueError: a wrong model, an unknown solver or option.
        MemoryError: a cache that does not fit.
    """

    def __init__(
        self,
        model: Sampled,
        solver: str | None = None,
        steps: int | None = None,
        *,
        table: StepTable | str | PathLike | None = None,
        rows: int = 16,
        capacity: int = 1024,
        block_size: int | None = None,
        blocks: int | None = None,
        cache_dtype: torch.dtype | None = None,
        limit: int | None = None,
        share_prompts: bool = True,
        batch_invariant: bool = False,
        backend: str | None = None,
        weights: str = "float32",
        lookahead: int | str | None = None,
        mode: str | None = None,
        tolerance: float | None = None,
        **options,
    ) -> None:
        model = sampled_model(model)
        if table is not None:
            table = StepTable.alone(table, solver=solver, steps=steps, **options)
            solver, steps = table, table.calls
        steps = 48 if steps is None else steps
        self.model, self.steps, self.backend = model, steps, backend
        self.batch_invariant = batch_invariant
        solver = default_solver(steps) if solver is None else solver
        ahead = check_lookahead(lookahead, mode, tolerance)
        self._solver = PatchSolver(model, solver, options, weights, lookahead=ahead)
        self._solver.table(steps)
        self.plan = model.encoder.plan_cache(
            rows, capacity, block_size=block_size, blocks=blocks,
            dtype=cache_dtype or model.encoder.dtype,
        )  # fmt: skip
        _log.info("KV cache: %s takes %d bytes", self.plan, self.plan.memory_bytes)
        self._cache = KVCache(self.plan, model.start.device, limit)
        self._queue = RequestQueue(model, self._cache)
        self._prompts = Prompts() if share_prompts else None
        self._finished: list[Finished] = []
        self._next_id = 0
        self._drawn_seed: int | None = None
        self._stepping = False

    @property
    def waiting(self) -> int:
        """Requests that have not been admitted yet."""
        return len(self._queue.waiting)

    @property
    def running(self) -> int:
        """Requests that hold cache rows."""
        return len(self._queue.running)

    @property
    def free_rows(self) -> int:
        return len(self._queue.free_rows)

    @property
    def free_blocks(self) -> int:
        return self._cache.free_blocks

    def submit(
        self,
        prompt: Tensor | None,
        patches: int,
        *,
        seed: int | None = None,
        sample_id: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_schedule: str = "constant",
        uncond: Tensor | None = None,
        guidance2: float | None = None,
        uncond2: Tensor | None = None,
        temperature: float = 1.0,
        order: Sequence[int] | None = None,
        stop: Callable[[MadePatch], bool] | None = None,
        on_patch: Callable[[MadePatch], object] | None = None,
    ) -> int:
        """Queues a request; the next :meth:`step` admits it if there is room.

        Args:
            prompt: the condition, tokens `[n, width]` with any n; None for none.
            patches: how many to make at most.
            seed, sample_id: address the noise; `sample_id` is by default the request's id. `seed`
                None is one key for all such requests of this engine, drawn from torch's generator
                at the first of them: their ids make their noise differ.
            steps: bound on the model calls for each patch; None for the engine's.
            guidance: scale w of u + w (c - u); None is plain conditional sampling.
            guidance_schedule: ``constant``, or ``linear`` from none to `guidance`.
            uncond: prompt of the unconditional stream; by default the model's null context, or an
                empty prompt where it has none.
            guidance2, uncond2: three-way guidance u2 + w2 (u - u2) + w (c - u), w2 = `guidance2` on
                the same schedule, u2 by a third stream with the prompt `uncond2`, whose default is
                that of `uncond`; one of the two prompts must be given.
            temperature: factor on the step noise.
            order: places in the order to make them; default 0, 1, 2, ...
            stop: called with each patch; True ends the request with it.
            on_patch: called with each patch as soon as it is made.

        Returns:
            The request's id, 0 up.

        Raises:
            TypeError, ValueError: an argument out of range, a request that this engine could never
                admit.
        """
        steps = self.steps if steps is None else steps
        if seed is None:
            if self._drawn_seed is None:
                self._drawn_seed = int(make_key(None, "cpu"))
            seed = self._drawn_seed
        request = make_request(
            self.model, self._next_id, prompt, patches, seed=seed, sample_id=sample_id, steps=steps,
            guidance=guidance, guidance_schedule=guidance_schedule, uncond=uncond,
            guidance2=guidance2, uncond2=uncond2, temperature=temperature, order=order, stop=stop,
            on_patch=on_patch,
        )  # fmt: skip
        check_room(request, self.model, self.plan)
        self._solver.table(steps)
        if self._prompts is not None:
            request.prompts = [self._prompts.one(prompt) for prompt in request.prompts]
        self._next_id += 1
        self._queue.add([request])
        return request.id

    def fork(
        self,
        request: int,
        n: int = 1,
        *,
        seed: int | None = None,
        sample_ids: Sequence[int] | None = None,
    ) -> list[int]:
        """Queues n continuations of a request: requests of their own that go on from its patches.

        All else they have from the request, its callbacks too, whose patches name the continuation.
        While the request or another continuation runs, they share the cache blocks of its prompt
        and of the patches made; if none does when they are admitted, these are taken in again. Of a
        request that waits all patches are still to be made: it and its n forks are n + 1 samples of
        one prompt.

        Args:
            request: the id of one that waits or runs.
            n: how many.
            seed, sample_ids: address the noise of the patches to come; by default the request's
                seed and the new ids.

        Returns:
            Their ids. `Finished` of each holds all patches, those made before the fork too.

        Raises:
            KeyError: an id that no request has.
            TypeError, ValueError: a request that is done, an argument out of range, sample ids that
                would give the same patches twice.
        """
        found = self._find(request)
        if found is None or found.done:
            raise ValueError(
                f"request {request} is done or was cancelled: fork one that waits or runs"
            )
        forks = forks_of(found, n, self._next_id, seed, sample_ids)
        self._next_id += len(forks)
        self._queue.add(forks)
        return [fork.id for fork in forks]

    def step(self) -> int:
        """One autoregressive step of every running request, after admitting those that fit.

        An exception of the model leaves the requests where they were. One raised by a callback
        cancels its request and is raised again when all patches of the step are delivered.
        Callbacks may submit, fork and cancel, but not step.

        Returns:
            Patches made; 0 when there is nothing to do.
        """
        if self._stepping:
            raise RuntimeError("a callback may submit, fork and cancel, but not step")
        self._stepping = True
        try:
            return self._step()
        finally:
            self._stepping = False

    def _step(self) -> int:
        with ExitStack() as modes:
            modes.enter_context(torch.no_grad())
            if self.backend:
                modes.enter_context(ardiff_kernels.backend(self.backend))
            if self.batch_invariant:
                modes.enter_context(batch_invariant_mode())
            self._queue.admit()
            running = sorted(self._queue.running, key=lambda request: request.seed)
            if not running:
                return 0
            held = [(row, self._cache.lengths[row]) for r in running for row in r.rows]
            try:
                made = self._solver.draw(running, contexts(self.model, self._cache, running))
            except BaseException:
                for row, length in held:
                    self._cache.lengths[row] = length
                raise
        self._deliver(running, made)
        return len(made)

    def collect(self) -> list[Finished]:
        """The requests that have finished since the last call."""
        found, self._finished = self._finished, []
        return found

    def cancel(self, request: int) -> bool:
        """Drops a request, whose rows are free at once. False if it is done or was cancelled.

        Raises:
            KeyError: an id that no request has.
        """
        found = self._find(request)
        if found is not None:
            self._queue.release(found)
        return found is not None

    def _find(self, id: int) -> Request | None:
        """The waiting or running request of that id; None for one that is done or was cancelled."""
        if not 0 <= id < self._next_id:
            raise KeyError(f"no request {id}; ids go from 0 to {self._next_id - 1}")
        return self._queue.find(id)

    def _deliver(self, running: list[Request], made: Tensor) -> None:
        """Gives each request its patches `[B, d]`, calls back, and ends those that are done."""
        counts = [len(request.target(self.model.block)) for request in running]
        failure: BaseException | None = None
        places = [place for request in running for place in request.target(self.model.block)]
        values = self.model.finished(made, torch.tensor(places, device=made.device)).flatten(1)
        blocks = [
            request.take(patches, given)
            for request, patches, given in zip(
                running, made.split(counts), values.split(counts), strict=True
            )
        ]
        for request, patches in zip(running, blocks, strict=True):
            try:
                self._call_back(request, patches)
            except BaseException as error:
                failure = failure or error
                self._queue.release(request)
        if failure is not None:
            raise failure

    def _call_back(self, request: Request, patches: list[MadePatch]) -> None:
        for patch in patches:
            if not request.rows:  # a callback cancelled it
                return
            if request.on_patch is not None:
                request.on_patch(patch)
            if request.stop is not None and request.stop(patch):
                request.stop_after(patch.index)
                break
        if request.rows and request.done:
            stopped = len(request.made) < len(request.order)
            places = request.order[: len(request.made)]
            done = Finished(request.id, torch.stack(request.made), places, stopped)
            self._queue.release(request)
            self._finished.append(done)
