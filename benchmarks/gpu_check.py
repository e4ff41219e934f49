"""Everything that needs a GPU, in one command without network: build, test, measure, one JSON.

Every step runs even where an earlier one failed; the exit status is 0 only if all succeeded and at
least one GPU test ran. Uses the Python that runs it, with its own torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITE = "bandwidth"
# Suite and tokens of a case of its own process.
TOKENS = (("head", 1), ("head", 16), ("head", 256), ("lookahead", 1), ("lookahead", 16))
TESTS = ("tests/gpu", "tests/kernels")


@dataclass(frozen=True)
class Step:
    """One finished command: `tail` is the end of its output."""

    name: str
    command: str
    status: int
    seconds: float
    tail: str


def run_step(name: str, command: Sequence[str], log: Path) -> Step:
    """Run a command in the repository, its output shown and kept in `log`."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")]),
        "ARDIFF_BUILD_CUDA": "1",
        "ARDIFF_REQUIRE_BUILD": "1",
    }
    start = time.perf_counter()
    with log.open("w") as file:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            ).returncode
        except OSError as error:
            file.write(str(error))
            status = 127
    seconds = time.perf_counter() - start
    tail = log.read_text(errors="replace")[-4000:]
    print(tail, f"== {name}: status {status}, {seconds:.0f} s", sep="\n", flush=True)
    return Step(name, " ".join(command), status, seconds, tail)


def counts(junit: Path) -> dict[str, int]:
    """tests, failures, errors, skipped and passed of a junit file; all 0 where there is none."""
    names = ("tests", "failures", "errors", "skipped")
    if not junit.exists():
        return dict.fromkeys((*names, "passed"), 0)
    suites = ElementTree.parse(junit).getroot().iter("testsuite")
    found = [{name: int(suite.get(name, 0)) for name in names} for suite in suites]
    total = {name: sum(suite[name] for suite in found) for name in names}
    return {**total, "passed": total["tests"] - sum(total[name] for name in names[1:])}


def load(path: Path) -> dict:
    """A JSON object from a file, NaN and infinities as None; empty where there is none."""
    text = path.read_text() if path.exists() else "{}"
    return json.loads(text, parse_constant=lambda _: None)


def save(path: Path, report: dict) -> None:
    """Write JSON under another name, then rename it, so that half a report is never seen."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps and write `gpu-check.json`. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu")
    parser.add_argument("--device", default="cuda", help="cpu only to try the steps themselves")
    out = (args := parser.parse_args(argv)).out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    junit, bench, doctor = (out / name for name in ("junit.xml", "bench.json", "doctor.json"))
    for stale in (junit, bench, doctor):
        stale.unlink(missing_ok=True)
    python = sys.executable
    commands = {
        "build": [python, "setup.py", "build_ext", "--inplace"],
        "doctor": [python, "-m", "ardiff", "doctor", "--json", str(doctor)],
        "tests": [
            *(python, "-m", "pytest", *TESTS, "-m", "gpu", "-q", "-rs"),
            f"--junitxml={junit}",
        ],
        "benchmarks": [
            *(python, "-m", "ardiff", "bench", SUITE),
            *("--device", args.device, "--json", str(bench)),
        ],
    }
    of_tokens = [out / f"bench-{suite}-{n}.json" for suite, n in TOKENS]
    for (suite, n), path in zip(TOKENS, of_tokens, strict=True):
        path.unlink(missing_ok=True)
        commands[f"{suite} N={n}"] = [
            *(python, "-m", "ardiff", "bench", suite, "--case", f"mar-b/N={n}/bfloat16"),
            *("--device", args.device, "--json", str(path)),
        ]
    steps = [run_step(name, command, out / f"{name}.log") for name, command in commands.items()]
    tests = counts(junit)
    passed = all(step.status == 0 for step in steps) and tests["passed"] > 0
    report = {
        "passed": passed,
        "environment": load(doctor),
        "steps": [asdict(step) for step in steps],
        "tests": tests,
        "rows": [row for path in (bench, *of_tokens) for row in load(path).get("rows", [])],
    }
    target = out / "gpu-check.json"
    save(target, report)
    print(
        f"{'passed' if passed else 'FAILED'}: {tests['passed']} GPU tests passed, "
        f"{tests['failures'] + tests['errors']} failed, {tests['skipped']} skipped; {target}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
