#!/usr/bin/env python3
"""Runs everything that needs a GPU, step by step; continues after a step that fails, and lists the failures.

    python -m benchmarks.gpu_check
    python -m benchmarks.gpu_check --resume
    python -m benchmarks.gpu_check --steps build tests --python /usr/bin/python3
    python -m benchmarks.gpu_check --steps baseline --baseline torch_ms_deform_attn-0.1.1.tar.gz

The steps, those with the first results in front:

  build         the CUDA library, for the GPUs that are visible
  small_cases   our op of every benchmark on tiny inputs, compared with its baselines
  quick_tests   one GPU test of each op
  first_bench   one case of deformable attention (results/first_bench/<gpu>.json and .md)
  tests         all GPU tests of the ops
  model_tests   the GPU tests of models
  baseline      builds torch-ms-deform-attn, if --baseline names its source archive or its requirement
  bench         all ops (results/<gpu>.json and .md)
  train_step    a distillation step (results/<gpu>_train_step.json)
  memcheck, racecheck, initcheck, synccheck  compute-sanitizer, if it is installed

Nothing is downloaded, unless --baseline names a requirement. The first steps need torch, numpy, setuptools
and pybind11 (and ninja, to compile several files at a time). Where a step needs another package that is not
installed, the step or its families of benchmarks are left out, and the summary says why. The summary is
printed at the end; after every step it is written to results/<gpu>_check.json. --resume leaves out the steps
that passed before, if sources, GPU, torch and command are the same and the files of the step exist. The exit
status is 1 if a step failed.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import slug

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
QUICK_STEPS = ("build", "small_cases", "quick_tests", "first_bench")
STEPS = (*QUICK_STEPS, "tests", "model_tests", "baseline", "bench", "train_step", *SANITIZERS)
# The files that have tests marked gpu; without them pytest would import every test, and what those need.
TESTS = tuple(
    f"tests/ops/test_{name}.py"
    for name in (
        *("ms_deform_attn", "ms_deform_attn_fused", "ms_deform_attn_ragged", "loss_kernels"),
        *("weighted_l2", "pixel_weights", "box3d_kernels"),
    )
)
MODEL_TESTS = ("tests/distill/test_inherit.py",)
QUICK_TESTS = (
    "(test_cuda_matches_the_reference and float32) or test_cuda_matches_the_cpu or "
    "test_cuda_upstream_gradients or test_overlaps_on_cuda or test_suppression_on_cuda"
)
FIRST_CASE = ("bench_ms_deform_attn", "spatial, local")
# Those of bench.py, which cannot be imported in a Python without torch.
FAMILIES = ("bench_ms_deform_attn", "bench_ragged", "bench_distill_loss", "bench_box3d")
SOURCES = ("bevkd2", "benchmarks", "configs", "csrc", "tests", "setup.py", "pyproject.toml")
SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh", ".yaml", ".toml"}
LOOK = (
    "import torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
    "print(torch.cuda.get_device_name() if n else ''); "
    "print(';'.join(sorted({'%d.%d' % torch.cuda.get_device_capability(i) for i in range(n)}))); "
    "print(torch.__version__)"
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """The GPU of a machine, and the torch that sees it."""

    gpu: str
    capabilities: str
    """Compute capabilities of all GPUs, as TORCH_CUDA_ARCH_LIST has them."""
    torch: str


@dataclasses.dataclass(frozen=True)
class Step:
    """A command with additional environment variables."""

    name: str
    command: list[str] = dataclasses.field(default_factory=list)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    skip: str = ""
    """The reason why it does not run."""
    imports: tuple[str, ...] = ()
    """Modules that it imports; it is skipped if a package that they need is not installed."""
    families: tuple[str, ...] = ()
    """Of bench.py, which the command gets; those that need a package that is not installed are left out."""
    makes: tuple[Path, ...] = ()
    """Files that it makes."""
    always: bool = False
    """Whether it runs although it passed before (``--resume``)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a step."""

    step: str
    result: str
    """"passed", "failed: why", or "skipped: why"."""
    seconds: float
    command: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)
    """What the step did not do, and why."""

    def line(self) -> str:
        """Returns the line of the summary."""
        return "; left out: ".join([f"{self.step:11} {self.seconds:6.0f} s  {self.result}", *self.left_out])


class Report:
    """The outcomes of a machine and a state of the sources, in a file that every outcome is written to."""

    def __init__(self, path: Path, machine: Machine, sources: str) -> None:
        self.path = path
        self.state: dict[str, Any] = {"gpu": machine.gpu, "torch": machine.torch, "sources": sources}
        self.outcomes: dict[str, Outcome] = {}

    def resume(self) -> None:
        """Reads the outcomes of an earlier run, if there was one in the same state."""
        if not self.path.is_file():
            return
        content = json.loads(self.path.read_text())
        if all(content.get(key) == value for key, value in self.state.items()):
            self.outcomes = {step["step"]: Outcome(**step) for step in content["steps"]}
        else:
            print(f"{self.path.name} is of other sources, or of another torch: all steps run")

    def has_passed(self, step: Step) -> bool:
        """Returns whether a step has passed by the same command, and its files are still there."""
        before = self.outcomes.get(step.name)
        return (
            before is not None
            and before.result == "passed"
            and before.command == step.command
            and all(path.is_file() for path in step.makes)
            and not step.always
        )

    def add(self, outcome: Outcome) -> None:
        """Adds an outcome, or replaces that of its step, and writes the file."""
        self.outcomes[outcome.step] = outcome
        steps = [dataclasses.asdict(outcome) for outcome in self.outcomes.values()]
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({**self.state, "steps": steps}, indent=1) + "\n")
        partial.replace(self.path)


def main() -> int:
    """Runs the steps; returns the exit status."""
    args = parse_arguments()
    machine = look_for_gpu(args.python)
    args.out.mkdir(parents=True, exist_ok=True)
    report = Report(args.out / f"{slug(machine.gpu)}_check.json", machine, source_digest())
    if args.resume:
        report.resume()
    steps = plan(args, machine)
    for planned in steps:
        step, left_out = without_missing(planned, args.python)
        if report.has_passed(step):
            print(f"\n=== {step.name}: passed before, with the same sources, torch and command", flush=True)
            continue
        report.add(Outcome(step.name, "failed: it was interrupted", 0.0, step.command, left_out))
        report.add(dataclasses.replace(run_step(step, args.timeout), left_out=left_out))
    outcomes = [report.outcomes[step.name] for step in steps]
    print("\n".join([f"\n{machine.gpu}, torch {machine.torch}", *(outcome.line() for outcome in outcomes)]))
    return 1 if any(outcome.result.startswith("failed") for outcome in outcomes) else 0


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--python", default=sys.executable, help="one that has torch")
    parser.add_argument("--baseline", help="what pip installs torch-ms-deform-attn from")
    parser.add_argument("--resume", action="store_true", help="leave out steps that passed before")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="files or folders of the step tests")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="of bench.py")
    parser.add_argument("--timeout", type=float, help="seconds after which a step has failed")
    parser.add_argument("--out", type=Path, default=FOLDER / "results", help="folder of the results")
    return parser.parse_args()


def look_for_gpu(python: str) -> Machine:
    """Returns torch's first GPU and the compute capabilities of all; exits if there is none."""
    done = subprocess.run([python, "-c", LOOK], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"gpu_check: {python} cannot import torch: {done.stderr.strip().splitlines()[-1]}")
    machine = Machine(*done.stdout.split("\n")[:3])
    if not machine.gpu:
        sys.exit(
            f"gpu_check: the torch of {python} sees no GPU here. Run it on a machine with an NVIDIA GPU, its "
            "driver and a torch that is built for CUDA; checks without a GPU are `make cuda` and "
            "`make test`."
        )
    return machine


def source_digest() -> str:
    """Returns a digest of the names and contents of all source files, committed or not."""
    digest = hashlib.sha256()
    for name in SOURCES:
        place = ROOT / name
        found = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
        for path in sorted(path for path in found if path.suffix in SUFFIXES):
            digest.update(
                f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
            )
    return digest.hexdigest()


def plan(args: argparse.Namespace, machine: Machine) -> list[Step]:
    """Returns the requested steps, in order."""
    python, sanitizer, name = args.python, find_sanitizer(), slug(machine.gpu)
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", machine.capabilities)
    cuda = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architectures}
    libraries = tuple(ROOT / "bevkd2" / f"{library}.abi3.so" for library in ("_C", "_C_cuda"))
    families = tuple(args.families)
    once = [python, "-m", "benchmarks.run_once", "--device", "cuda"]
    bench = [python, "-m", "benchmarks.bench", "--device", "cuda", "--out"]
    marked = [python, "-m", "pytest", "-m", "gpu", "--continue-on-collection-errors", "-rs"]
    pytest = ("pytest", "hypothesis")
    pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", str(args.baseline)]
    first, case = args.out / "first_bench", ["--families", FIRST_CASE[0], "--cases", FIRST_CASE[1]]
    train_step, train_step_file = "benchmarks.bench_train_step", args.out / f"{name}_train_step.json"
    train = [
        python,
        "-m",
        train_step,
        "--size",
        "tiny",
        "--out",
        str(train_step_file),
        "MODEL.DEVICE",
        "cuda",
    ]
    steps = [
        Step("build", [python, "setup.py", "build_ext", "--inplace"], cuda, makes=libraries),
        Step("small_cases", [*once, "--compare"], families=families),
        Step("quick_tests", [*marked, "-k", QUICK_TESTS, *TESTS], imports=pytest),
        Step("first_bench", [*bench, str(first), *case], makes=(first / f"{name}.json",)),
        Step("tests", [*marked, *args.tests], imports=pytest),
        Step("model_tests", [*marked, *MODEL_TESTS], imports=(*pytest, "bevkd2.distill")),
        Step("baseline", pip, cuda, skip="" if args.baseline else "--baseline is not given", always=True),
        Step("bench", [*bench, str(args.out)], families=families, makes=(args.out / f"{name}.json",)),
        Step("train_step", train, imports=(train_step,), makes=(train_step_file,)),
        # Without the caching allocator every tensor is a separate allocation, whose bounds are checked.
        *(
            Step(
                tool,
                [sanitizer, "--tool", tool, "--error-exitcode", "1", *once, "--tests"],
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                skip="" if sanitizer else "there is no compute-sanitizer on PATH or in CUDA_HOME",
                imports=pytest,
                families=families,
            )
            for tool in SANITIZERS
        ),
    ]
    return [step for step in steps if step.name in args.steps]


def find_sanitizer() -> str:
    """Returns the path of compute-sanitizer in PATH, CUDA_HOME or the usual folder; "" if there is none."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    beside = [home / "bin" / "compute-sanitizer", home / "compute-sanitizer" / "compute-sanitizer"]
    found = [str(path) for path in beside if path.exists()]
    return shutil.which("compute-sanitizer") or (found[0] if found else "")


def without_missing(step: Step, python: str) -> tuple[Step, list[str]]:
    """Leaves out what needs a package that is not installed: the step, or families of benchmarks.

    Args:
        step: a step of the plan, whose earlier steps have run: what is not built yet cannot be imported.
        python: the Python that runs it.

    Returns:
        The step as it can run, and the families that it leaves out, with the reason.
    """
    if step.skip:
        return step, []
    for module in step.imports:
        if missing := missing_package(module, python):
            return dataclasses.replace(step, skip=f"it needs {missing}, which is not installed"), []
    found = {family: missing_package(f"benchmarks.{family}", python) for family in step.families}
    left_out = [f"{family}, it needs {missing}" for family, missing in found.items() if missing]
    families = [family for family, missing in found.items() if not missing]
    if step.families and not families:
        return dataclasses.replace(step, skip="; ".join(left_out)), []
    options = ["--families", *families] if families else []
    return dataclasses.replace(step, command=[*step.command, *options]), left_out


def run_step(step: Step, timeout: float | None) -> Outcome:
    """Runs a step; its output goes to the output of this script."""
    if step.skip:
        print(f"\n=== {step.name}: skipped: {step.skip}", flush=True)
        return Outcome(step.name, f"skipped: {step.skip}", 0.0, step.command)
    print(f"\n=== {step.name}: {' '.join(step.command)}", flush=True)
    begin = time.monotonic()
    try:
        code = subprocess.run(
            step.command, cwd=ROOT, env=environment_of(step), timeout=timeout, check=False
        ).returncode
        result = "passed" if code == 0 else f"failed: exit code {code}"
    except subprocess.TimeoutExpired:
        result = f"failed: it ran longer than {timeout:g} s"
    return Outcome(step.name, result, time.monotonic() - begin, step.command)


def environment_of(step: Step) -> dict[str, str]:
    """Returns the environment variables of a step; its Python finds this checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **step.environment, "PYTHONPATH": path}


@functools.cache
def missing_package(module: str, python: str) -> str:
    """Returns the package that importing a module needs and that is not installed; "" if there is none.

    Whatever else makes the import fail is for the step itself to show.
    """
    code = f"try: import {module}\nexcept ModuleNotFoundError as error: print(error.name)"
    done = subprocess.run(
        [python, "-c", code],
        cwd=ROOT,
        env=environment_of(Step("")),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    name = done.stdout.strip().rpartition("\n")[2].split(".")[0]
    return "" if (ROOT / name).exists() else name


if __name__ == "__main__":
    sys.exit(main())
