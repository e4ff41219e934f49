"""Fair timing and one result format for every benchmark.

A `bench_*.py` module has SUITE, CASES (names) and `run(case, settings) -> Iterable[Row]`. It yields
its correctness rows first; when one fails the rest of the case is withheld. Competitors are timed
interleaved, in rotating order, and a speedup is the median of the ratios within the rounds.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType

import torch
from tqdm import tqdm

from ardiff_kernels import collect_env

OURS = "ardiff"
CORRECTNESS = "error_over_tolerance"
# Each also followed by a dtype, as `eager-bfloat16`.
RIVALS = (
    *("eager", "compile", "compile-frozen", "graphed-eager", "graphed-compile"),
    *("torchao", "compile-torchao", "compile-frozen-torchao"),
    *("graphed-torchao", "graphed-compile-torchao"),
    *("reference-ddpm", "diffusers", "sdpa"),
    "sequential",  # our own loop, row by row
    "separate",  # our own engine, without sharing
    *("two-pass", "quantize"),  # whole systems: without a pass that is of no use; their own int8
)
_DTYPES = re.compile("-(float32|bfloat16|int8)$")


def without_dtype(rival: str) -> str:
    """`eager` of `eager-bfloat16`."""
    return _DTYPES.sub("", rival)


@dataclass(frozen=True)
class Settings:
    """How to measure: `rounds` interleaved rounds of at least `seconds` a competitor."""

    device: str = "cpu"
    rounds: int = 9
    rivals: Sequence[str] | None = None
    seed: int = 0
    seconds: float = 0.03

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device: expected cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device cuda: torch {torch.__version__} sees no CUDA or ROCm device")

    def pick(self, rivals: dict[str, Callable]) -> dict[str, Callable]:
        """The rivals that were asked for; `eager` asks for it in every dtype.

        Raises:
            ValueError: one that this benchmark does not have.
        """
        if self.rivals is None:
            return rivals
        unknown = sorted(set(self.rivals) - set(rivals) - set(map(without_dtype, rivals)))
        if unknown:
            raise ValueError(f"unknown rival {unknown[0]!r}: expected one of {', '.join(rivals)}")
        asked = set(self.rivals)
        return {n: run for n, run in rivals.items() if asked & {n, without_dtype(n)}}


@dataclass(frozen=True)
class Row:
    """One figure. `low` and `high` are quartiles; both equal `value` where nothing was repeated."""

    suite: str
    case: str
    rival: str
    metric: str
    value: float
    unit: str = ""
    low: float = field(default=float("nan"))
    high: float = field(default=float("nan"))

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if getattr(self, name) != getattr(self, name):
                object.__setattr__(self, name, self.value)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def spread_row(
    suite: str, case: str, rival: str, metric: str, values: Sequence[float], unit: str
) -> Row:
    """A row of the median and quartiles of repeated measurements."""
    middle, low, high = quartiles(values)
    return Row(suite, case, rival, metric, middle, unit, low, high)


def error_row(suite: str, case: str, rival: str, found, expected, tolerance) -> Row:
    """A correctness row: the largest error over its tolerance (at most 1 passes; NaN fails)."""
    excess = ((found.double() - expected.double()).abs() / tolerance).nan_to_num(nan=float("inf"))
    worst = float(excess.max()) if excess.numel() else 0.0
    return Row(suite, case, rival, CORRECTNESS, worst)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Relative root mean square."""
    error = (found.double() - expected.double()).square().mean()
    return (error / expected.double().square().mean()).sqrt()


def failures(rows: Iterable[dict]) -> list[dict]:
    """The correctness rows that failed."""
    return [row for row in rows if row["metric"] == CORRECTNESS and not row["value"] <= 1]


def interleave(
    competitors: dict[str, Callable[[], object]], settings: Settings
) -> dict[str, list[float]]:
    """Seconds per call of each competitor, one value per round; their order rotates."""
    calls = {name: _calibrate(run, settings) for name, run in competitors.items()}
    names = list(competitors)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(settings.rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(_time(competitors[name], calls[name], settings.device))
    return seconds


def _calibrate(run: Callable[[], object], settings: Settings) -> int:
    run()
    once = _time(run, 1, settings.device)
    if once >= settings.seconds:
        return 1
    calls = max(1, min(20, int(settings.seconds / max(once, 1e-9))))
    once = _time(run, calls, settings.device)
    return max(1, int(settings.seconds / max(once, 1e-9)))


def _time(run: Callable[[], object], calls: int, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: str) -> None:
    """Wait for the device's queued work (nothing to wait for on a CPU)."""
    if device == "cuda":
        torch.cuda.synchronize()


def comparison(
    suite: str, case: str, seconds: dict[str, list[float]], elements: int, rivals: Sequence[str]
) -> list[Row]:
    """A time row (nanoseconds per element) for each competitor, a `speedup` row for each rival.

    Raises:
        ValueError: a rival that is none of :data:`RIVALS`.
    """
    rows = []
    for name, values in seconds.items():
        scaled = [value / elements * 1e9 for value in values]
        rows.append(spread_row(suite, case, name, "time", scaled, "ns/element"))
    return rows + [speedup_row(suite, case, name, seconds[name], seconds[OURS]) for name in rivals]


def speedup_row(
    suite: str,
    case: str,
    rival: str,
    theirs: Sequence[float],
    ours: Sequence[float],
    metric: str = "speedup",
) -> Row:
    """The rival's time over ours, median of the pairs of each round.

    Raises:
        ValueError: a rival that is none of :data:`RIVALS`.
    """
    if without_dtype(rival) not in RIVALS:
        raise ValueError(f"rival {rival!r}: a speedup is against one of {', '.join(RIVALS)}")
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return spread_row(suite, case, rival, metric, ratios, "x")


def run_suite(modules: Sequence[ModuleType], case: str | None, settings: Settings) -> dict:
    """Run the cases of a suite's modules (all, or one) and return the report.

    Raises:
        ValueError: a case that no module of the suite knows.
    """
    work = [(module, name) for module in modules for name in module.CASES]
    if case is not None:
        work = [
            (module, case)
            for module in modules
            if _subject(case) in {_subject(name) for name in module.CASES}
        ]
        if not work:
            known = ", ".join(name for module in modules for name in module.CASES)
            raise ValueError(f"unknown case {case!r}: expected one like {known}")
    rows: list[Row] = []
    progress = tqdm(work, unit="case", disable=None)
    for module, name in progress:
        progress.set_postfix_str(name)
        rows += gated(module.run(name, settings))
    return {"environment": collect_env.collect(), "rows": [asdict(row) for row in rows]}


def _subject(case: str) -> str:
    """The op or model of a case, without the width that may follow an op."""
    return re.sub(r"-d\d+$", "", case.split("/", 1)[0])


def gated(rows: Iterable[Row]) -> list[Row]:
    """The rows of one case, cut after a failed correctness row."""
    kept = []
    for row in rows:
        kept.append(row)
        if row.metric == CORRECTNESS and not row.value <= 1:
            break
    return kept


def table(rows: Sequence[dict]) -> str:
    """The rows as aligned text; a failed correctness row is marked."""
    head = ("case", "rival", "metric", "value", "low", "high", "unit")
    body = []
    for row in rows:
        mark = " FAILED" if failures([row]) else ""
        figures = (f"{row[k]:.4g}" for k in ("value", "low", "high"))
        body.append((row["case"], row["rival"], row["metric"], *figures, row["unit"] + mark))
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in [head, *body]
    ]
    return "\n".join(lines)
