"""`python -m pyro_meta.report RUN [RUN ...]`: what a run's router does, in words and pictures."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pyro_meta.analysis import plots
from pyro_meta.analysis.reading import Reading
from pyro_meta.console import command_parser, parse, run_command
from pyro_meta.display import executed_rows

PICTURES = {
    "load_by_layer.png": plots.load_by_layer,
    "entropy_over_training.png": plots.entropy_over_training,
    "passage.png": plots.passage,
}


def main(argv: list[str]) -> None:
    """Print the routing summary of each run and write its pictures to RUN/report/."""
    parser = command_parser("report", "Read a run's posterior over routes.")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=str, help="Folders of runs.")
    out = Console()
    for folder in parse(parser, argv).runs:
        reading = Reading.of(Path(folder))
        _print_summary(reading, out)
        with out.status("drawing"):
            written = _draw(reading)
        for path in written:
            out.print(f"wrote {escape(str(path))}", soft_wrap=True)


def _print_summary(reading: Reading, out: Console) -> None:
    summary = reading.summary
    out.print(f"[bold]{escape(str(reading.folder))}[/bold]", soft_wrap=True)
    out.print(
        f"validation loss {summary['val_nll_soft']:.4f} soft, {summary['val_nll_hard']:.4f} hard; "
        f"cost {summary['cost_nominal_hard']:.1%} nominal, {summary['cost_macs_hard']:.1%} of full "
        f"attention's MACs; {summary['hard_fraction']:.0%} of tokens hard",
        soft_wrap=True,
    )
    if executed := summary.get("executed"):
        table = Table(
            title=f"hard routes executed, sequences of {executed['length']:,} tokens",
            title_justify="left", box=SIMPLE_HEAD, show_header=False,
        )  # fmt: skip
        table.add_column()
        table.add_column(justify="right")
        for name, value in executed_rows(executed):
            table.add_row(name, value)
        out.print(table)
    table = Table(
        title="diversity and uncertainty", title_justify="left", box=SIMPLE_HEAD, padding=0
    )
    columns = {
        "effective_by_load": "N load",
        "effective_per_token": "N token",
        "information": "inform.",
        "entropy": "H/log K",
        "total": "total",
        "expected": "expected",
        "epistemic": "epistemic",
        "kl": "KL",
    }
    for heading in ("layer", *columns.values()):
        table.add_column(heading, justify="right")
    for layer, figures in enumerate(reading.diversity()):
        table.add_row(str(layer), *(f"{figures[key]:.3f}" for key in columns))
    out.print(table)
    out.print(
        "N: effective number of mechanisms, exp H, of the load and of a token's posterior mean. "
        "Routing information, uncertainty (total = expected + epistemic) and KL(q||p): nats per "
        "token.",
        style="dim",
    )
    out.print("\ncollapse", style="italic")
    for verdict in reading.verdicts():
        answer = "[bold red]YES[/bold red]" if verdict.is_collapsed else "[green]no[/green]"
        out.print(f"  {verdict.question} {answer}: {verdict}", soft_wrap=True, highlight=False)


def _draw(reading: Reading) -> list[Path]:
    folder = reading.folder / "report"
    folder.mkdir(exist_ok=True)
    written = []
    for name, picture in PICTURES.items():
        path = folder / name
        picture(reading).savefig(path, dpi=150)
        written.append(path)
    return written


if __name__ == "__main__":
    run_command(main)
