"""Damaged and missing checkpoints, full and read-only disks, folders of another run."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bevkd2.checkpoint import load_file
from tests.reliability.families import FAMILIES, Family
from tests.reliability.jobs import Job, differences, finished, run, several
from tests.reliability.moments import Moments
from tests.reliability.report import Row
from tests.reliability.rows import rows


def prove(
    place: Path, torn: int = 10, disks: bool = True, names: Sequence[str] = tuple(FAMILIES)
) -> list[Row]:
    """Damages the last checkpoint of an interrupted run in every way, and fills and locks its disk."""
    damaged = Row(
        "last checkpoint torn, empty, deleted; last_checkpoint empty, deleted, wrong: the one before"
    )
    full = Row(
        "disk full while saving: one message, the checkpoint before is kept, resumed where there is space"
    )
    read_only = Row("OUTPUT_DIR read-only, new and to be resumed: one message, nothing changed")
    other = Row("OUTPUT_DIR of another run, without --resume: said, and nothing of that run is lost")
    for name in names:
        family = FAMILIES[name]
        family.prepare(place)
        straight, stopped = finished(family, place), interrupted(family, place)
        _damage(damaged, family, place, straight, stopped, torn)
        if disks:
            _fill(full, family, place, straight)
            _lock(read_only, family, place, stopped)
        _take(other, family, place, straight)
    return [damaged, *((full, read_only) if disks else ()), other]


def interrupted(family: Family, place: Path, processes: int = 1) -> Path:
    """The folder of a run that was killed when it had two periodic checkpoints."""
    output = place / family.name / f"interrupted_{processes}"
    job = Job(family.words(place, output, flags=several(processes)), output)
    while job.running() and len(list(output.glob("model_0*.pth"))) < 2:
        Moments({"step": 0.01}).wait("step", job, random.Random(0))
    # A rank whose launcher alone is killed would save one more checkpoint.
    (job.kill if processes == 1 else job.kill_all)()
    job.wait()
    assert job.alone_after(10.0)
    return output


def _damage(row: Row, family: Family, place: Path, straight: Path, stopped: Path, torn: int) -> None:
    rng = random.Random("damaged")
    name = (stopped / "last_checkpoint").read_text()
    size = (stopped / name).stat().st_size

    def cut(at: int) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:at])

    cases: dict[str, Callable[[Path], object]] = {
        **{f"torn at byte {at}": cut(at) for at in (rng.randrange(1, size) for _ in range(torn))},
        "of zero length": cut(0),
        "deleted": lambda folder: (folder / name).unlink(),
        "last_checkpoint empty": lambda folder: (folder / "last_checkpoint").write_text(""),
        "last_checkpoint deleted": lambda folder: (folder / "last_checkpoint").unlink(),
        "last_checkpoint names no file": lambda folder: (folder / "last_checkpoint").write_text("gone.pth"),
    }
    for case, damage in cases.items():
        output = _copy(stopped, f"damaged_{row.cases}")
        damage(output)
        job = run(family.words(place, output, flags=("--resume",)), output)
        problems = differences(straight, output) if job.status == 0 else [job.text()[-500:]]
        said = [line for line in job.text().splitlines() if "Resuming from" in line and name in line]
        problems += [] if len(said) == 1 or "last_checkpoint" in case else ["not said in one line"]
        row.check(f"{family.name}, {case}", problems + tracebacks(job))
    output = _copy(stopped, "all_torn")
    for path in output.glob("model_*.pth"):
        path.write_bytes(path.read_bytes()[:100])
    before = _contents(output)
    job = run(family.words(place, output, flags=("--resume",)), output)
    problems = refused(job, name)
    problems += [] if _contents(output) == before else ["the files changed"]
    row.check(f"{family.name}, all checkpoints torn: refused", problems)


def _fill(row: Row, family: Family, place: Path, straight: Path) -> None:
    size = (straight / "model_final.pth").stat().st_size
    for share in (1.5, 2.5, 3.5):  # of checkpoints; at most four are there at once
        with _tmpfs(place / family.name / f"full_{share}", f"size={int(share * size) + 300_000}") as mount:
            output = mount / "out"
            job = run(family.words(place, output), output)
            problems = refused(job, "")
            problems += [] if "o space left" in job.text() else ["the message does not say it"]
            last = output / "last_checkpoint"
            if last.is_file():
                load_file(output / last.read_text())
            problems += [f"{path.name} is left" for path in output.glob(".*.tmp")]
            subprocess.run(["mount", "-o", "remount,size=1g", str(mount)], check=True)
            job = run(family.words(place, output, flags=("--resume",)), output)
            problems += differences(straight, output) if job.status == 0 else [job.text()[-500:]]
            row.check(f"{family.name}, space for {share} checkpoints", problems + tracebacks(job))


def _lock(row: Row, family: Family, place: Path, stopped: Path) -> None:
    for resume in (False, True):
        with _tmpfs(place / family.name / f"locked_{resume}", "size=100m") as mount:
            output = mount / "out"
            if resume:
                shutil.copytree(stopped, output)
            before = _contents(mount)
            subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
            job = Job(
                family.words(place, output, flags=("--resume",) if resume else ()),
                place / family.name / f"locked_{resume}_out",
            )
            job.wait()
            problems = refused(job, str(mount))
            problems += [] if _contents(mount) == before else ["the files changed"]
            row.check(f"{family.name}, {'--resume' if resume else 'new run'}", problems)


def _take(row: Row, family: Family, place: Path, straight: Path) -> None:
    """Starts a run in the folder of another one."""
    parent = place / family.name / "others"
    output = parent / "out"
    shutil.copytree(straight, output)
    before = [content for path, content in _contents(output).items() if path.endswith(".pth")]
    old_rows = rows(output)
    job = run(family.words(place, output, "SEED", 8), output)
    after = list(_contents(parent).values())
    problems = tracebacks(job) + [
        f"{len(content)} bytes are lost" for content in before if content not in after
    ]
    kept = [path.parent for path in parent.rglob("metrics.json") if rows(path.parent) == old_rows]
    problems += [] if kept else ["the rows of metrics.json are mixed or lost"]
    problems += [] if str(output) in job.text() else ["not said"]
    row.check(f"{family.name}, exit status {job.status}", problems)


def _copy(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder, folder.with_name(name)))


def _contents(folder: Path) -> dict[str, bytes]:
    """Checkpoints and metrics by path; the log may grow."""
    paths = [*folder.rglob("*.pth"), *folder.rglob("metrics.json"), *folder.rglob("last_checkpoint")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def tracebacks(job: Job) -> list[str]:
    """What is wrong with what a job printed."""
    return [f"prints a traceback: {job.text()[-800:]}"] if "Traceback" in job.text() else []


def refused(job: Job, name: str) -> list[str]:
    """Says what is wrong with a refusal: it is one message that names a file, and the exit status 1."""
    problems = tracebacks(job)
    errors = [line for line in job.text().splitlines() if line.startswith("error: ")]
    if job.status != 1 or len(errors) != 1 or name not in errors[0]:
        problems.append(f"exit status {job.status}, errors {errors}")
    return problems


@contextmanager
def _tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own; only root may mount one."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
