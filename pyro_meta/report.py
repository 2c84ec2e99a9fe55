"""`python -m pyro_meta.report RUN [RUN ...]`: what a run's router does, in words and pictures."""

from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pyro_meta.analysis import plots
from pyro_meta.analysis.reading import Reading
from pyro_meta.console import parse, run_command

PICTURES = {
    "load_by_layer.png": plots.load_by_layer,
    "entropy_over_training.png": plots.entropy_over_training,
    "passage.png": plots.passage,
}


def main(argv: list[str]) -> None:
    """Print the routing summary of each run and write its pictures to RUN/report/."""
    parser = ArgumentParser(
        prog="python -m pyro_meta.report",
        description="Read a run's posterior over routes.",
        exit_on_error=False,
    )
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
    table = Table(title="diversity and entropy", title_justify="left")
    headings = {
        "layer": "layer",
        "effective_by_load": "mechanisms\nby load",
        "effective_per_token": "per\ntoken",
        "information": "routing\ninformation",
        "entropy": "entropy\n/ log K",
        "total": "total\nuncertainty",
        "expected": "of which\nexpected",
        "epistemic": "of which\nepistemic",
        "kl": "KL from\nprior",
    }
    for heading in headings.values():
        table.add_column(heading, justify="right")
    for layer, figures in enumerate(reading.diversity()):
        table.add_row(str(layer), *(f"{figures[key]:.3f}" for key in list(headings)[1:]))
    out.print(table)
    out.print(
        "Mechanisms are effective numbers exp H; information, uncertainty and KL are nats per "
        "token.",
        style="dim",
    )
    verdicts = Table(title="collapse", title_justify="left")
    for heading in ("kind", "verdict", "value", "threshold", "what is measured"):
        verdicts.add_column(heading)
    for verdict in reading.verdicts():
        verdicts.add_row(
            verdict.question,
            "[bold red]collapsed[/bold red]" if verdict.is_collapsed else "[green]no[/green]",
            f"{verdict.value:.4g}",
            f"{verdict.threshold:g}",
            verdict.meaning,
        )
    out.print(verdicts)


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
