"""`python -m pyro_meta.report RUN [RUN ...]`: what a router does, and whether to believe it."""

from pyro_meta.terminal.commands import answer, command_parser, parse, run_command


def main(argv: list[str]) -> None:
    """Print the routing summary of each run and write its report to RUN/report/."""
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
    answer(parser, argv)
    asked = parse(parser, argv)
    from pyro_meta.posterior.report import report  # what needs pictures

    report(asked.runs, asked.belief, asked.reread)


if __name__ == "__main__":
    run_command(main)
