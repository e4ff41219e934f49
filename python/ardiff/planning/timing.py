"""How long a model call takes on this machine, and how many calls fit into a time.

What else runs on the machine only adds to a time, so that the shortest of some rounds counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ar.sampler import ARSampler
from ..models.image_model import ARModel

FEW, MANY, ROUNDS = 4, 12, 3  # steps of the two runs that are compared, and how often
MOST = 1000  # calls per patch: what a path is trained on, and more than any measurement asks for
SOLVER = "ddpm"  # one call and one row a step, as in most solvers


@dataclass(frozen=True)
class Timing:
    """Seconds that a batch of images takes: `overhead` + steps x patches x `per_call`.

    Attributes:
        per_call: of a model call for the whole batch with the solver's row, guidance included.
        overhead: of contexts and what else does not depend on the steps.
        batch, patches: images drawn together, and the patches of each.
    """

    per_call: float
    overhead: float
    batch: int
    patches: int

    def seconds(self, calls: int) -> float:
        """Of a batch, with so many calls for each patch."""
        return self.overhead + calls * self.patches * self.per_call

    def calls(self, seconds: float) -> int:
        """The most calls per patch, up to :data:`MOST`, with which a batch takes no longer than
        `seconds`.

        Raises:
            ValueError: not even one fits.
        """
        found = int(min((seconds - self.overhead) / (self.patches * self.per_call), MOST))
        if found < 1:
            raise ValueError(
                f"seconds: a batch of {self.batch} images takes {self.seconds(1):.3g} s on this "
                f"machine with one model call per patch, more than {seconds:g}: give more time or "
                "a smaller batch"
            )
        return found


def measure(model: ARModel, batch: int, *, guidance: float | None = None, seed: int = 0) -> Timing:
    """Draws batches with few and with many steps, and compares them.

    Where so short a run tells no difference all of its time counts as that of calls, which is the
    careful guess.

    Args:
        model: on the device that is meant.
        batch: images drawn together.
        guidance: as of :class:`ardiff.ARSampler`.

    Raises:
        ValueError: a batch below 1, or guidance that the model was not trained for.
    """
    samplers = {
        steps: ARSampler(model, SOLVER, steps, guidance=guidance, batch=batch)
        for steps in (FEW, MANY)
    }
    took: dict[int, list[float]] = {FEW: [], MANY: []}
    for turn in range(ROUNDS + 1):
        for steps, sampler in samplers.items():
            seconds = sampler.sample(batch, seed=seed, nonfinite="ignore").stats.seconds
            took[steps] += [seconds] if turn else []  # the first is a warm-up
    few, many = (min(took[steps]) for steps in (FEW, MANY))
    patches = model.config.patches
    per_call = (many - few) / ((MANY - FEW) * patches)
    overhead = few - FEW * patches * per_call
    if per_call <= 0 or overhead < 0:
        per_call, overhead = many / (MANY * patches), 0.0
    return Timing(per_call, overhead, batch, patches)
