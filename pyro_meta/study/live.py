"""What a study shows while it runs: every run's state, the whole, and the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from pyro_meta.study.job import Job, State
from pyro_meta.terminal.consoles import is_live
from pyro_meta.terminal.progress import bar

ORDER = (State.RUNNING, State.FAILED, State.WAITING, State.FINISHED)
STYLES = {
    State.WAITING: "dim", State.RUNNING: "bold", State.FINISHED: "green", State.FAILED: "red",
}  # fmt: skip
FRAME_LINES = 6  # of the table, and the bar below it


@dataclass(frozen=True)
class Watch:
    """What a study calls, so that people see it run."""

    show: Callable[[], None]
    """Now and then."""
    tell: Callable[[Job], None]
    """After each run."""
    say: Callable[[str], None]
    """With a line that is to stay."""


@contextmanager
def watching(jobs: list[Job], console: Console) -> Iterator[Watch]:
    """Show the runs of a study; where `console` is no terminal, a line is printed for each."""

    def say(line: str) -> None:
        console.print(escape(line), soft_wrap=True, highlight=False)

    def tell(job: Job) -> None:
        if not is_live(console):
            done = sum(other.state in (State.FINISHED, State.FAILED) for other in jobs)
            say(f"{done}/{len(jobs)} {job.state}: {job.name}  {_outcome(job)}")

    if not is_live(console):
        yield Watch(lambda: None, tell, say)
        return
    whole = bar(console)
    task = whole.add_task("", total=None, completed=steps_of(jobs)[0])
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show() -> None:
            done, total = steps_of(jobs)
            whole.update(task, completed=done, total=total, description=counts(jobs))
            live.update(Group(table(jobs, console.height), whole), refresh=True)

        yield Watch(show, tell, say)


def steps_of(jobs: list[Job]) -> tuple[int, int]:
    """Steps that were taken, and steps in all; a run that failed takes no more."""
    done = sum(job.step for job in jobs)
    open_jobs = [job for job in jobs if job.state in (State.WAITING, State.RUNNING)]
    missing = (max(0, job.steps - job.step) for job in open_jobs)
    return done, done + sum(missing)


def table(jobs: list[Job], height: int) -> Table:
    """The runs, as many as fit into `height` lines with what stands below."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1))
    shown.add_column("run", no_wrap=True, overflow="ellipsis", max_width=56)
    shown.add_column("state")
    shown.add_column("step", justify="right")
    shown.add_column("loss", justify="right")
    shown.add_column("", no_wrap=True, overflow="ellipsis")
    rows = sorted(jobs, key=lambda job: ORDER.index(job.state))
    room = max(3, height - FRAME_LINES)
    for job in rows[:room]:
        loss = "" if job.loss is None else f"{job.loss:.3f}"
        step = f"{job.step:,}/{job.steps:,}"
        cells = escape(job.name), str(job.state), step, loss, escape(job.note)
        shown.add_row(*cells, style=STYLES[job.state])
    if len(rows) > room:
        shown.add_row(f"and {len(rows) - room} more", style="dim")
    return shown


def counts(jobs: list[Job]) -> str:
    """How many runs are in each state."""
    found = ((state, sum(job.state == state for job in jobs)) for state in reversed(ORDER))
    return ", ".join(f"{count} {state}" for state, count in found if count)


def _outcome(job: Job) -> str:
    summary = job.summary()
    if summary is None:
        return job.note
    return (
        f"validation {summary['val_nll_hard']:.4f} hard, {summary['val_nll_soft']:.4f} soft, "
        f"cost {summary['cost_macs_hard']:.3f} MACs"
    )
