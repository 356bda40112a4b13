#!/usr/bin/env python3
"""Runs everything that needs a GPU, step by step; continues after a step that fails, and lists the failures.

    python -m benchmarks.gpu_check
    python -m benchmarks.gpu_check --steps build tests --python /usr/bin/python3
    python -m benchmarks.gpu_check --steps baseline --baseline torch_ms_deform_attn-0.1.1.tar.gz

Steps: build (the CUDA library, for the GPUs that are visible), baseline (builds torch-ms-deform-attn, if
--baseline names its source archive or its requirement), tests (those marked gpu), memcheck, racecheck,
initcheck and synccheck (compute-sanitizer, if it is installed), bench (results/<gpu>.json and .md) and
train_step (results/<gpu>_train_step.json). The summary is printed and written to results/<gpu>_check.json.
The exit status is 1 if a step failed.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import slug

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
STEPS = ("build", "baseline", "tests", *SANITIZERS, "bench", "train_step")
LOOK = (
    "import torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
    "print(torch.cuda.get_device_name() if n else ''); "
    "print(';'.join(sorted({'%d.%d' % torch.cuda.get_device_capability(i) for i in range(n)})))"
)


@dataclasses.dataclass(frozen=True)
class Step:
    """A command with additional environment variables; skip: the reason why it does not run."""

    name: str
    command: list[str] = dataclasses.field(default_factory=list)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    skip: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a step."""

    step: str
    result: str
    """"passed", "failed: why", or "skipped: why"."""
    seconds: float


def main() -> int:
    """Runs the steps; returns the exit status."""
    args = parse_arguments()
    gpu, capabilities = look_for_gpu(args.python)
    args.out.mkdir(parents=True, exist_ok=True)
    outcomes = [run_step(step, args.timeout) for step in plan(args, gpu, capabilities)]
    lines = [f"{outcome.step:10} {outcome.seconds:6.0f} s  {outcome.result}" for outcome in outcomes]
    print("\n".join([f"\n{gpu}", *lines]))
    report = {"gpu": gpu, "steps": [dataclasses.asdict(outcome) for outcome in outcomes]}
    (args.out / f"{slug(gpu)}_check.json").write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(outcome.result.startswith("failed") for outcome in outcomes) else 0


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--python", default=sys.executable, help="one that has torch, pytest and hypothesis")
    parser.add_argument("--baseline", help="what pip installs torch-ms-deform-attn from")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="where the marked tests are looked for")
    parser.add_argument("--families", nargs="+", default=[], help="of bench.py; default: all")
    parser.add_argument("--timeout", type=float, help="seconds after which a step has failed")
    parser.add_argument("--out", type=Path, default=FOLDER / "results", help="folder of the results")
    return parser.parse_args()


def look_for_gpu(python: str) -> tuple[str, str]:
    """Returns the name of torch's first GPU and the compute capabilities of all; exits if there is none."""
    done = subprocess.run([python, "-c", LOOK], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"gpu_check: {python} cannot import torch: {done.stderr.strip().splitlines()[-1]}")
    name, capabilities = done.stdout.split("\n")[:2]
    if not name:
        sys.exit(
            f"gpu_check: the torch of {python} sees no GPU here. Run it on a machine with an NVIDIA GPU, its "
            "driver and a torch that is built for CUDA; checks without a GPU are `make cuda` and "
            "`make test`."
        )
    return name, capabilities


def plan(args: argparse.Namespace, gpu: str, capabilities: str) -> list[Step]:
    """Returns the requested steps, in order."""
    python, sanitizer = args.python, find_sanitizer()
    step_file = ["--size", "tiny", "--out", str(args.out / f"{slug(gpu)}_train_step.json")]
    once = [python, "-m", "benchmarks.run_once", "--device", "cuda", "--tests"]
    families = ["--families", *args.families] if args.families else []
    cuda = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", capabilities)}
    bench = [python, "-m", "benchmarks.bench", "--device", "cuda", "--out", str(args.out)]
    marked = [python, "-m", "pytest", "-m", "gpu"]
    pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", str(args.baseline)]
    steps = [
        Step("build", [python, "setup.py", "build_ext", "--inplace"], cuda),
        Step("baseline", pip, cuda, skip="" if args.baseline else "--baseline is not given"),
        Step("tests", [*marked, "--continue-on-collection-errors", "-rs", *args.tests]),
        # Without the caching allocator every tensor is a separate allocation, whose bounds are checked.
        *(
            Step(
                tool,
                [sanitizer, "--tool", tool, "--error-exitcode", "1", *once, *families],
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                skip="" if sanitizer else "there is no compute-sanitizer on PATH or in CUDA_HOME",
            )
            for tool in SANITIZERS
        ),
        Step("bench", [*bench, *families]),
        Step("train_step", [python, "-m", "benchmarks.bench_train_step", *step_file, "MODEL.DEVICE", "cuda"]),
    ]
    return [step for step in steps if step.name in args.steps]


def find_sanitizer() -> str:
    """Returns the path of compute-sanitizer in PATH, CUDA_HOME or the usual folder; "" if there is none."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    beside = [home / "bin" / "compute-sanitizer", home / "compute-sanitizer" / "compute-sanitizer"]
    found = [str(path) for path in beside if path.exists()]
    return shutil.which("compute-sanitizer") or (found[0] if found else "")


def run_step(step: Step, timeout: float | None) -> Outcome:
    """Runs a step; its output goes to the output of this script."""
    if step.skip:
        return Outcome(step.name, f"skipped: {step.skip}", 0.0)
    print(f"\n=== {step.name}: {' '.join(step.command)}", flush=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **step.environment, "PYTHONPATH": path}
    begin = time.monotonic()
    try:
        code = subprocess.run(
            step.command, cwd=ROOT, env=environment, timeout=timeout, check=False
        ).returncode
        result = "passed" if code == 0 else f"failed: exit code {code}"
    except subprocess.TimeoutExpired:
        result = f"failed: it ran longer than {timeout:g} s"
    return Outcome(step.name, result, time.monotonic() - begin)


if __name__ == "__main__":
    sys.exit(main())
