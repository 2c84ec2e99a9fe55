"""`python -m pyro_meta`, or `pyro-meta`: which commands there are, and each of them by its name."""

import importlib
import os
import sys

from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import VERSION, run_command
from pyro_meta.terminal.mistakes import near

DOORS = {
    "train": ("pyro_meta.train", "Train a model whose every token chooses how it attends."),
    "generate": ("pyro_meta.generate", "Continue a text with a trained model."),
    "report": ("pyro_meta.report", "Read a run: what its router does, and whether to believe it."),
    "evaluate": ("pyro_meta.evaluate", "Losses and retrieval of trained runs, side by side."),
    "ablate": ("pyro_meta.ablate", "Train a grid of options with its baselines, and compare."),
    "bench": ("pyro_meta.bench", "Measure what the parts cost on this machine."),
    "contracts": ("pyro_meta.contracts.__main__", "Put a class or a pretrained model to the test."),
}
"""Commands: the module of each, and what it is for."""


def main(argv: list[str]) -> int | None:
    """Run the command that the first word names, or list all of them."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(VERSION)
        return 0
    if name not in DOORS:
        raise UsageError(
            f"unknown command {name}; allowed are {', '.join(DOORS)}{near(name, DOORS)}"
        )
    door = importlib.import_module(DOORS[name][0])
    code: int | None = door.main(argv[1:])
    return code


def usage() -> str:
    width = max(map(len, DOORS)) + 2
    lines = (f"  {name:{width}}{line}" for name, (_, line) in DOORS.items())
    return "\n".join(
        [
            "usage: pyro-meta COMMAND [options]    or: python -m pyro_meta.COMMAND [options]",
            "",
            *lines,
            "",
            "pyro-meta COMMAND --help lists the options of a command.",
        ]
    )


def run() -> None:
    """The console script `pyro-meta`: like `python -m`, it finds modules where one is."""
    here = os.getcwd()
    if not sys.flags.safe_path and not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    run_command(main)


if __name__ == "__main__":
    run()
