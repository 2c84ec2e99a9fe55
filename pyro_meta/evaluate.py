"""`python -m pyro_meta.evaluate RUN ...`: losses and retrieval of trained runs, side by side.

    losses       by length, by position, by document; paired against full attention
    retrieval    a passkey or pairs of key and value, planted in long text, by depth and length

Of a model whose weights stay as they are, each mechanism alone and random tokens with the routes'
own loads stand beside.
"""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from pyro_meta.terminal.commands import TRUST_HELP, answer, command_parser, parse, run_command


def main(argv: list[str]) -> None:
    """Print the tables, and write them as JSON if asked to."""
    parser = _parser()
    answer(parser, argv)
    options = parse(parser, argv)
    from pyro_meta.study.held_out import compare  # what needs PyTorch

    compare(options, argv)


def _parser() -> ArgumentParser:
    parser = command_parser("evaluate", "Losses and retrieval of trained runs, side by side.")
    add = parser.add_argument
    add("runs", metavar="RUN", type=str, nargs="+", help="Folders of runs.")
    add(
        "--documents", type=str | None,
        help="A file, a folder or a glob of UTF-8 text: each file is a document, and its first "
        "tokens are read (default: the text that each run has held out).",
    )  # fmt: skip
    add(
        "--lengths", type=list[int] | None,
        help="Tokens of a text, such as [1024,4096] (default: the context of the first run).",
    )  # fmt: skip
    add(
        "--budgets", type=list[float] | None,
        help="Shares of key visits at which hard routes are compared, such as [0.33,0.43]; the "
        "price of each run is moved until it makes so many (default: as each was trained).",
    )  # fmt: skip
    add("--alone", type=bool, default=True, help="Whether each mechanism alone is evaluated, too.")
    add("--tokens", type=int, default=16384, help="Tokens to read at each length, at most.")
    add(
        "--retrieval", type=list[Literal["passkey", "pairs"]] | None,
        help="What is planted, such as [passkey,pairs] (default: nothing).",
    )  # fmt: skip
    add("--depths", type=list[float], default=[0.1, 0.3, 0.5, 0.7, 0.9],
        help="Where, as shares of the text.")  # fmt: skip
    add("--questions", type=int, default=4, help="Questions of each length and depth.")
    add("--digits", type=int, default=5, help="Digits of an answer.")
    add("--seed", type=int, default=0, help="Seed of questions and of random tokens.")
    add("--json", type=Path | None, help="File to write all figures to, as they come.")
    add("--trust", type=bool, default=False, help=TRUST_HELP)
    return parser


if __name__ == "__main__":
    run_command(main)
