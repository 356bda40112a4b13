"""Measures the peak memory of every contestant; prints JSON: {case and type: {contestant: MiB}}.

    python -m benchmarks.peak_memory bench_ms_deform_attn bench_ragged --threads 2

On the CPU each contestant runs in its own process, which is forked when the inputs exist; the result is the
peak of its resident set minus its size at the fork. The parent process runs on one thread, since a child
cannot use a thread pool that its parent has started. On a GPU the result is torch's peak of allocated memory
minus the memory allocated before. Gradients, the output and tensors that the graph saves are included.
"""

import argparse
import dataclasses
import importlib
import json
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.harness import Contest, Contestant, Options, Untimed, chosen

MIB = 2**20


def main() -> None:
    """Prints the peak memory of some families."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="+", help="modules of this folder with a function contests")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="*", default=[])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = Options(args.device, args.quick, args.threads, tuple(args.cases))
    figures: dict[str, dict[str, float]] = {}
    for family in args.families:
        figures |= measure_family(family, options)
    print(json.dumps(figures))


def measure_family(family: str, options: Options) -> dict[str, dict[str, float]]:
    """Returns the peak memory of one family."""
    contests = importlib.import_module(f"benchmarks.{family}").contests
    small = dataclasses.replace(options, quick=True)
    warm_up = {
        (_key(contest), c.name): c for contest in contests(small) if contest.memory for c in contest.make()
    }
    return {
        _key(contest): {
            contestant.name: _peak_mib(contestant, warm_up.get((_key(contest), contestant.name)), options)
            for contestant in contest.make()
        }
        for contest in chosen(contests(options), options)
        if contest.memory
    }


def _key(contest: Contest) -> str:
    return f"{contest.case} {contest.dtype}"


def resident_peak_mib(*, forget: bool = False) -> float:
    """Returns the peak of the resident set since the start or the last ``forget`` (Linux)."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak to the current size
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def _peak_mib(contestant: Contestant, warm_up: Contestant | None, options: Options) -> float:
    if options.device.startswith("cuda"):
        return _cuda_peak_mib(contestant, options)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(contestant, warm_up, options, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"peak memory of {contestant.name}: its process ended without a result") from error
    finally:
        child.join()


def _measure(
    contestant: Contestant, warm_up: Contestant | None, options: Options, sender: Connection
) -> None:
    torch.set_num_threads(contestant.threads or options.threads)
    if warm_up is not None:  # memory that the first call loads does not belong to the case
        warm_up.run(Untimed(options.device))
    before = resident_peak_mib(forget=True)
    contestant.run(Untimed(options.device))
    sender.send(resident_peak_mib() - before)


def _cuda_peak_mib(contestant: Contestant, options: Options) -> float:
    contestant.run(Untimed(options.device))  # workspaces of libraries are not freed
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contestant.run(Untimed(options.device))
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


if __name__ == "__main__":
    main()
