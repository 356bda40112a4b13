"""Rows of the benchmarks: measurements and requirements, as JSON and as a Markdown table."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from benchmarks.harness import Contest, Part, Times
from benchmarks.limits import Limits

MIB = 2**20
HEADER = (
    "| case | type | part | ours (ms) | baseline | (ms) | ratio (of rounds) | required | share of limit "
    "| memory (MiB) | baseline's |"
)

STEP_PARTS = {
    "student_step": "student step",
    "teacher_forward": "teacher forward",
    "teacher_needed": "teacher forward, what the methods read",
    "distillation_step_plain": "distillation step, plain torch",
    "distillation_step": "distillation step, with the ops",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Our op compared with one baseline in one part of a case."""

    family: str
    case: str
    dtype: str
    part: Part
    baseline: str
    ours_ms: float
    ours_spread: float
    """Distance of the quartiles as a share of the median."""
    rounds: int
    baseline_ms: float | None = None
    """None: the baseline cannot run."""
    baseline_spread: float | None = None
    ratio: float | None = None
    """The baseline's median over ours."""
    ratio_quartiles: tuple[float, float] | None = None
    """Quartiles of the ratios of the rounds."""
    required: float | None = None
    limit: str | None = None
    """The limit of the machine that determines the time: "copy" or "FLOP"."""
    share_of_limit: float | None = None
    """The least time that the machine's limits allow over ours."""
    memory_mib: float | None = None
    """Peak above the inputs, of all parts of the case together."""
    baseline_memory_mib: float | None = None
    memory_limit_mib: float | None = None
    reason: str = ""
    """Why there are no numbers of the baseline: "what: why"."""

    @property
    def missed(self) -> list[str]:
        """Returns the missed requirements."""
        found = []
        if self.required is not None and self.ratio is not None and self.ratio < self.required:
            found.append(
                f"{self.case} ({self.dtype}), {self.part}: {self.ratio:.2f} times {self.baseline}, required "
                f"{self.required:g}"
            )
        limit = self.memory_limit_mib
        if limit is not None and self.memory_mib is not None and self.memory_mib > limit:
            found.append(
                f"{self.case} ({self.dtype}): {self.memory_mib:.1f} MiB, at most {limit:.1f} allowed"
            )
        return found


def make_rows(
    contest: Contest, times: dict[str, dict[Part, Times]], memory: dict[str, float], limits: Limits | None
) -> list[Row]:
    """Returns one row per part and baseline; rows of baselines that cannot run have a reason."""
    ours, *baselines = times
    rows = []
    for part, own in times[ours].items():
        common = _common(contest, part, own, memory.get(ours), limits)
        for name in baselines:
            if part in times[name]:
                rows.append(_against(contest, common, name, own, times[name][part], memory.get(name)))
        for name, reason in contest.missing.items():
            required = contest.required.get((name, part))
            rows.append(Row(**common, baseline=name, required=required, reason=reason))
    return rows


def _common(
    contest: Contest, part: Part, own: Times, memory: float | None, limits: Limits | None
) -> dict[str, Any]:
    common: dict[str, Any] = {
        "family": contest.family,
        "case": contest.case,
        "dtype": contest.dtype,
        "part": part,
        "ours_ms": 1000 * own.median,
        "ours_spread": own.spread,
        "rounds": len(own.rounds),
        "memory_mib": memory,
    }
    if limits is not None and part in contest.work:
        least, common["limit"] = limits.seconds(contest.work[part])
        common["share_of_limit"] = least / own.median
    return common


def _against(
    contest: Contest, common: dict[str, Any], name: str, own: Times, theirs: Times, memory: float | None
) -> Row:
    ratio, low, high = theirs.ratios(own)
    limit = contest.memory_limit_mib
    if name == contest.less_memory_than and memory is not None:
        limit = memory if limit is None else min(limit, memory)
    return Row(
        **common,
        baseline=name,
        baseline_ms=1000 * theirs.median,
        baseline_spread=theirs.spread,
        ratio=ratio,
        ratio_quartiles=(low, high),
        required=contest.required.get((name, common["part"])),
        baseline_memory_mib=memory,
        memory_limit_mib=limit,
    )


def table(rows: Iterable[Row]) -> str:
    """Returns the rows as Markdown tables, one per family; missed requirements are bold."""
    by_family: dict[str, list[Row]] = {}
    for row in rows:
        by_family.setdefault(row.family, []).append(row)
    parts = []
    for family, members in by_family.items():
        lines = [f"## {family}", "", HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
        parts.append("\n".join(lines + [_line(row) for row in members]))
    return "\n\n".join(parts) + "\n"


def steps_table(steps: dict[str, dict[str, Any]]) -> str:
    """Returns the results of bench_train_step.py as a table, by size."""
    lines = [
        "## A distillation step",
        "",
        "| size | | seconds | ops' share | peak memory (MiB) |",
        "|---|---|---|---|---|",
    ]
    for size, found in steps.items():
        shares = {
            "distillation_step": found["share_of_ops"],
            "distillation_step_plain": found["share_of_plain_forms"],
        }
        for part, label in STEP_PARTS.items():
            share = f"{100 * shares[part]:.0f} %" if part in shares else ""
            memory = _number(found[part]["peak_memory_mib"])
            lines.append(f"| {size} | {label} | {found[part]['seconds']:.3g} | {share} | {memory} |")
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    over = row.memory_limit_mib is not None and (row.memory_mib or 0) > row.memory_limit_mib
    share = "" if row.share_of_limit is None else f"{100 * row.share_of_limit:.0f} % ({row.limit})"
    memory = _number(row.memory_mib)
    cells = [
        row.case,
        row.dtype,
        row.part,
        f"{_number(row.ours_ms)} ± {50 * row.ours_spread:.0f} %",
        row.baseline,
        *_measured(row),
        "" if row.required is None else f"{row.required:g}",
        share,
        f"**{memory}, missed**" if over else memory,
        _number(row.baseline_memory_mib),
    ]
    return "| " + " | ".join(cells) + " |"


def _measured(row: Row) -> list[str]:
    if row.ratio is None or row.ratio_quartiles is None:
        return [row.reason.partition(":")[0], ""]
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(row.ratio, *row.ratio_quartiles)
    below = row.required is not None and row.ratio < row.required
    seconds = f"{_number(row.baseline_ms)} ± {50 * (row.baseline_spread or 0):.0f} %"
    return [seconds, f"**{ratio}, missed**" if below else ratio]


def _number(value: float | None) -> str:
    """Formats a number with three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"
