"""What a study shows while it runs: every run's state, the whole, and the time left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from pyro_meta.study.runner import Job, State

ORDER = (State.RUNNING, State.FAILED, State.WAITING, State.FINISHED)
STYLES = {
    State.WAITING: "dim", State.RUNNING: "bold", State.FINISHED: "green", State.FAILED: "red",
}  # fmt: skip
FRAME_LINES = 7  # of the table and the line below it


class Clock:
    """Time left, from the steps that all workers together have taken so far."""

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs, self._started = jobs, time.monotonic()
        self._before = sum(job.step for job in jobs)

    def left(self) -> float | None:
        """Seconds; None before there is anything to judge by."""
        open_jobs = [job for job in self._jobs if job.state in (State.WAITING, State.RUNNING)]
        taken = sum(job.step for job in self._jobs) - self._before
        if taken <= 0:
            return None
        missing = sum(job.steps - job.step for job in open_jobs)
        return missing * (time.monotonic() - self._started) / taken


@contextmanager
def watching(
    jobs: list[Job], console: Console
) -> Iterator[tuple[Callable[[], None], Callable[[Job], None]]]:
    """What to call now and then, and what to call after each run.

    Where `console` is no terminal, a line is printed for each run.
    """
    clock = Clock(jobs)

    def tell(job: Job) -> None:
        if not console.is_terminal:
            done = sum(other.state in (State.FINISHED, State.FAILED) for other in jobs)
            console.print(
                f"{done}/{len(jobs)} {job.state}: {escape(job.name)}  {escape(_outcome(job))}",
                soft_wrap=True, highlight=False,
            )  # fmt: skip

    if not console.is_terminal:
        yield lambda: None, tell
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda: live.update(picture(jobs, clock.left(), console.height), refresh=True), tell


def picture(jobs: list[Job], seconds_left: float | None, height: int) -> RenderableType:
    """The table of runs, as many as fit, and the progress of the whole."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("run", no_wrap=True, overflow="ellipsis", max_width=56)
    table.add_column("state")
    table.add_column("step", justify="right")
    table.add_column("loss", justify="right")
    table.add_column("", no_wrap=True, overflow="ellipsis")
    rows = sorted(jobs, key=lambda job: ORDER.index(job.state))
    room = max(3, height - FRAME_LINES)
    for job in rows[:room]:
        loss = "" if job.loss is None else f"{job.loss:.3f}"
        step = f"{job.step:,}/{job.steps:,}"
        cells = escape(job.name), str(job.state), step, loss, escape(job.note)
        table.add_row(*cells, style=STYLES[job.state])
    if len(rows) > room:
        table.add_row(f"and {len(rows) - room} more", style="dim")
    counts = ", ".join(
        f"{count} {state}" for state in reversed(ORDER)
        if (count := sum(job.state == state for job in jobs))
    )  # fmt: skip
    left = "" if seconds_left is None else f"; about {duration(seconds_left)} left"
    bar = ProgressBar(total=sum(job.steps for job in jobs), completed=sum(j.step for j in jobs))
    return Group(table, bar, f"{counts}{left}")


def duration(seconds: float) -> str:
    """A time to wait, in two units at most."""
    minutes, hours = round(seconds / 60), seconds / 3600
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if hours < 2 else f"{int(hours)} h {minutes % 60} min"


def _outcome(job: Job) -> str:
    summary = job.summary()
    if summary is None:
        return job.note
    return (
        f"validation {summary['val_nll_hard']:.4f} hard, {summary['val_nll_soft']:.4f} soft, "
        f"cost {summary['cost_macs_hard']:.3f} MACs"
    )
