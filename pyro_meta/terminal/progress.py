"""How far a command is: a bar with the time left, on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from pyro_meta.terminal.consoles import breaking_silence, is_live, printable

Tell = Callable[[str], None]
"""Called with what comes next, before it is done."""
Watch = Callable[[dict[str, Any]], None]
"""Told of each step of training: the progress bar, or nobody."""


def bar(console: Console) -> Progress:
    """Steps done, time left and a description; nothing where `console` is no terminal."""
    return Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        disable=not is_live(console),
    )


@contextmanager
def step_by_step(steps: int, console: Console, prints_lines: bool = False) -> Iterator[Tell]:
    """A bar that is told of every step.

    With `prints_lines` each step is a line where there is no terminal to draw on. Without it, and
    of a step that takes long, there is one now and then.
    """
    told, shown = 0, ""

    def line() -> str:
        return f"step {told}/{steps}  {shown}"

    with bar(console) as progress, breaking_silence(console, line) as note:
        task = progress.add_task("", total=steps, completed=-1)  # the first is told, not done

        def tell(what: str) -> None:
            nonlocal told, shown
            told, shown = told + 1, printable(what)
            progress.update(task, advance=1, description=shown)
            if prints_lines and not is_live(console):
                console.print(shown, markup=False)
                note()

        yield tell
        progress.update(task, completed=steps, description="done")


@contextmanager
def over_training(steps: int, done: int, console: Console) -> Iterator[Watch]:
    """A bar with loss, KL, cost, hard share and tokens per second, told of every step's record.

    Where there is no terminal to draw on, one line is printed every tenth of the way, and now and
    then where that takes long.
    """
    last = "training"

    def line() -> str:
        return last

    with bar(console) as progress, breaking_silence(console, line) as note:
        task = progress.add_task("", total=steps, completed=done)

        def watch(record: dict[str, Any]) -> None:
            figures = (
                f"loss {record['loss']:.3f}  kl {record['kl']:.3f}  "
                f"cost {record['cost_macs']:.2f}  hard {record['hard_share']:.0%}  "
                f"{record['tokens_per_second']:,.0f} tok/s"
            )
            progress.update(task, completed=record["step"], description=figures)
            nonlocal last
            last = f"step {record['step']}/{steps}  {figures}"
            if "val_nll_hard" in record:
                console.print(
                    f"step {record['step']}: validation {record['val_nll_soft']:.4f} soft, "
                    f"{record['val_nll_hard']:.4f} hard, macs {record['cost_macs_hard']:.1%}"
                )
                note()
            elif not is_live(console) and record["step"] % max(1, steps // 10) == 0:
                console.print(last)
                note()

        yield watch
