"""`python -m pyro_meta.report RUN [RUN ...]`: what a router does, and whether to believe it."""

from typing import Literal

from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import TRUST_HELP, answer, command_parser, parse, run_command


def main(argv: list[str]) -> None:
    """Print the routing summary of each run and write its report, by default to RUN/report/."""
    parser = command_parser("report", "Read a run's posterior over routes.")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=str, help="Folders of runs.")
    parser.add_argument(
        "--belief", type=bool, default=True,
        help="Hold the guide against exact posteriors, with the checkpoint (default: true).",
    )  # fmt: skip
    parser.add_argument(
        "--reread", type=bool, default=False,
        help="Write posterior.nc anew from the checkpoint (default: false).",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FOLDER", type=str,
        help="Where to write the report; of several runs the page side by side, and each run's "
        "own below it, in FOLDER/NAME. The folder is made (default: RUN/report; side by side in "
        "that of the first run).",
    )  # fmt: skip
    parser.add_argument(
        "--format", type=Literal["html", "md", "json"], default="html",
        help="A page, Markdown with its pictures, or numbers alone (default: html). report.json "
        "is written with each of them.",
    )  # fmt: skip
    parser.add_argument("--trust", type=bool, default=False, help=TRUST_HELP)
    answer(parser, argv)
    asked = parse(parser, argv)
    if "" in asked.runs:
        raise UsageError("RUN: the folder of a run is needed, and its path is empty")
    if asked.out == "":
        raise UsageError("option --out: a folder is needed, and its path is empty")
    from pyro_meta.posterior.report import report  # what needs pictures

    report(asked.runs, asked.belief, asked.reread, asked.out, asked.trust, asked.format)


if __name__ == "__main__":
    run_command(main)
