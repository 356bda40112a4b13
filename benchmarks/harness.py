"""The harness of the benchmarks: several implementations of the same computation run in turns.

A family is a module with ``contests(options) -> list[Contest]``. A contest has our op first and
the baselines after it; each implementation is a function of a watch, which times its parts:

    def run(watch: Watch) -> Tensor:
        out = watch("forward", lambda: form(*leaves))
        watch("backward", lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True))
        return out

Each round runs all of them, in alternating order, so that all share slow phases of the machine. A time is the
median over the rounds, and a ratio is that of two medians of the same run.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Part = str  # "forward", "backward" or "forward + backward"
SHORTEST = 0.005  # seconds: shorter parts are called several times per measurement
SLOW = 1.0  # seconds: a longer first call counts as a measurement, since its warm-up is a small share
MOST_ROUNDS, LEAST_ROUNDS = 25, 3


@dataclasses.dataclass(frozen=True)
class Options:
    """Options with which a family makes its contests."""

    device: str = "cpu"
    quick: bool = False
    """Tiny shapes, and nothing required: tests that the scripts run."""
    threads: int = 1
    cases: tuple[str, ...] = ()
    """Contests whose case begins with one of these; none: all."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Bytes and operations that a part of a case needs at least, by the formula that its family documents."""

    bytes: float
    flops: float


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One implementation in a contest; run is one pass. Inputs are made before, outside of run."""

    name: str
    run: Callable[["Watch"], Tensor]
    """Returns the result, which must be the same for all."""
    threads: int | None = None
    """Threads on the CPU; None: those of the options."""


@dataclasses.dataclass(frozen=True)
class Contest:
    """One case. make returns the contestants, ours first, and makes their inputs."""

    family: str
    case: str
    dtype: str
    make: Callable[[], list[Contestant]]
    required: dict[tuple[str, Part], float] = dataclasses.field(default_factory=dict)
    """The least ratio by baseline and part."""
    tolerance: float = 1e-4
    """The largest difference of results, as a share of ours' largest."""
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    """Baselines that cannot run -> "what: why", such as "not installed: pip install NAME"."""
    work: dict[Part, Work] = dataclasses.field(default_factory=dict)
    memory: bool = True
    """Whether peak memory is measured."""
    memory_limit_mib: float | None = None
    """The most that ours may take above its inputs."""
    less_memory_than: str = ""
    """A baseline that ours must take less memory than."""


class Watch:
    """Times the parts of passes, with one list of seconds per round."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.calls: dict[Part, int] = {}
        self.rounds: dict[Part, list[list[float]]] = {}

    def __call__(self, part: Part, function: Callable[[], T]) -> T:
        """Runs and times a part, and returns its result."""
        calls = self.calls.get(part, 1)
        seconds, result = (self._cuda_seconds if self.cuda else self._seconds)(function, calls)
        self.rounds.setdefault(part, [[]])[-1].append(seconds)
        return result

    def next_round(self) -> None:
        """Starts the next round."""
        for seconds in self.rounds.values():
            if seconds[-1]:
                seconds.append([])

    @property
    def counted(self) -> int:
        """Returns the number of rounds with times."""
        return max((sum(bool(turn) for turn in turns) for turns in self.rounds.values()), default=0)

    def settle(self) -> float:
        """Ends the warm-up: sets the calls of each part by its last time; returns the seconds of a pass."""
        last = {part: seconds[-1][-1] for part, seconds in self.rounds.items()}
        self.calls = {part: min(200, math.ceil(SHORTEST / max(s, 1e-7))) for part, s in last.items()}
        total = sum(last.values())
        if total < SLOW:
            self.rounds = {}
        return sum(last[part] * calls for part, calls in self.calls.items())

    @staticmethod
    def _seconds(function: Callable[[], T], calls: int) -> tuple[float, T]:
        begin = time.perf_counter()
        for _ in range(calls - 1):
            function()
        result = function()
        return (time.perf_counter() - begin) / calls, result

    @staticmethod
    def _cuda_seconds(function: Callable[[], T], calls: int) -> tuple[float, T]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls - 1):
            function()
        result = function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / calls, result


class Untimed(Watch):
    """Runs every part once: for peak memory."""

    def __call__(self, part: Part, function: Callable[[], T]) -> T:
        """Runs a part and returns its result."""
        return function()


@dataclasses.dataclass(frozen=True)
class Times:
    """The seconds of one part of one contestant, by round."""

    rounds: list[list[float]]

    @property
    def median(self) -> float:
        """Returns the median over all passes."""
        return statistics.median(seconds for turn in self.rounds for seconds in turn)

    @property
    def spread(self) -> float:
        """Returns the interquartile range divided by the median."""
        low, high = quartiles([seconds for turn in self.rounds for seconds in turn])
        return (high - low) / self.median

    def ratios(self, ours: "Times") -> tuple[float, float, float]:
        """Returns the time divided by that of ``ours``: ratio of medians, and quartiles over the rounds."""
        turns = zip(self.rounds, ours.rounds, strict=False)
        low, high = quartiles([statistics.median(theirs) / statistics.median(own) for theirs, own in turns])
        return self.median / ours.median, low, high


def quartiles(values: list[float]) -> tuple[float, float]:
    """Returns the first and third quartile; for one value, twice the value."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def compare(contest: Contest, options: Options, budget: float) -> dict[str, dict[Part, Times]]:
    """Times the contestants of a contest in turns.

    Args:
        contest: the contest.
        options: the device, and the number of threads of contestants that do not set it.
        budget: seconds for the rounds; there are at least 3 rounds and at most 25.

    Returns:
        Times by contestant and part.

    Raises:
        RuntimeError: the results of two contestants differ.
    """
    contestants = contest.make()
    watches = {contestant.name: Watch(options.device) for contestant in contestants}
    results = {c.name: _warm_up(c, watches[c.name], options) for c in contestants}
    check_equal(contest, results)
    seconds = {name: watch.settle() for name, watch in watches.items()}
    passes = {name: min(5, max(1, int(max(seconds.values()) / (5 * own)))) for name, own in seconds.items()}
    one_round = sum(passes[name] * own for name, own in seconds.items())
    rounds = 2 if options.quick else min(MOST_ROUNDS, max(LEAST_ROUNDS, int(budget / one_round)))
    for turn in range(rounds):
        for contestant in contestants if turn % 2 == 0 else contestants[::-1]:
            watch = watches[contestant.name]
            if watch.counted > turn:
                continue  # its slow first call counts as this round
            watch.next_round()
            for _ in range(passes[contestant.name]):
                _run(contestant, watch, options)
    return {
        name: {part: Times([turn for turn in times if turn]) for part, times in watch.rounds.items()}
        for name, watch in watches.items()
    }


def _warm_up(contestant: Contestant, watch: Watch, options: Options) -> Tensor:
    result = _run(contestant, watch, options)
    # On a GPU a slow first call is due to the loading of kernels and does not count.
    if watch.cuda or sum(seconds[-1][-1] for seconds in watch.rounds.values()) < SLOW:
        result = _run(contestant, watch, options)
    return result.detach()


def check_equal(contest: Contest, results: dict[str, Tensor]) -> None:
    """Compares the results of the contestants, ours first, within the tolerance of the contest.

    Raises:
        RuntimeError: the results of two contestants differ.
    """
    (ours, first), *others = results.items()
    largest = first.abs().max().item()
    for name, result in others:
        difference = (result.double() - first.double()).abs().max().item()
        if not difference <= contest.tolerance * largest:
            raise RuntimeError(
                f"{contest.case} ({contest.dtype}): {name} differs from {ours} by {difference:.2e}, results "
                f"reach {largest:.2e}, and a share of {contest.tolerance:g} is allowed; they do not do the "
                "same work"
            )


def _run(contestant: Contestant, watch: Watch, options: Options) -> Tensor:
    threads = contestant.threads or options.threads
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
        contestant.run(Watch(options.device))  # not timed: threads need time to wake up for the first call
    return contestant.run(watch)


def chosen(contests: list[Contest], options: Options) -> list[Contest]:
    """Returns the contests that ``options.cases`` names."""
    return [c for c in contests if not options.cases or c.case.startswith(options.cases)]
