"""What the report prints: the figures of a run, and its verdicts with the marks of the page."""

from rich.console import Console
from rich.text import Text

from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.verdicts import mark
from pyro_meta.terminal.consoles import printable
from pyro_meta.terminal.tables import executed_rows, table_of_figures, table_of_pairs


def print_summary(findings: Findings, out: Console) -> None:
    """Loss and cost, what hard routes cost, diversity by layer, and the verdicts."""
    reading = findings.reading
    summary = reading.summary
    out.print(Text(printable(str(reading.folder)), "bold"), soft_wrap=True)
    out.print(
        f"validation loss {summary['val_nll_soft']:.4f} soft, {summary['val_nll_hard']:.4f} hard; "
        f"cost {summary['cost_nominal_hard']:.1%} nominal, {summary['cost_macs_hard']:.1%} of full "
        f"attention's MACs; {summary['hard_fraction']:.0%} of tokens hard",
        soft_wrap=True,
    )
    if executed := summary.get("executed"):
        title = f"hard routes executed, sequences of {executed['length']:,} tokens"
        out.print(table_of_pairs(title, executed_rows(executed)))
    columns = {
        "effective_by_load": "N layer",
        "effective_per_token": "N token",
        "information": "inform.",
        "entropy": "H/log K",
        "total": "total",
        "expected": "expected",
        "epistemic": "epistemic",
        "kl": "KL",
    }
    table = table_of_figures("diversity and uncertainty", "layer", columns.values())
    for name, figures in zip(reading.layer_names, reading.diversity(), strict=True):
        row = name.removeprefix("layer ").replace(", heads ", ".")  # short, for 80 columns
        table.add_row(row, *(f"{figures[key]:.3f}" for key in columns))
    out.print(table)
    out.print(
        f"{'' if int(reading.facts['groups']) == 1 else '0.1: layer 0, heads 1. '}"
        "N: effective number of mechanisms, exp H, of a layer's shares and of a token's posterior "
        "mean. "
        "Routing information, uncertainty (total = expected + epistemic) and KL(q||p): nats per "
        "token.",
        style="dim",
    )
    out.print("\nverdicts: collapse, belief, use", style="italic")
    out.print(Text(findings.headline(), "bold"), soft_wrap=True)
    for line in findings.judgements():
        colour = "dim" if line.is_good is None else "green" if line.is_good else "bold red"
        marked = (f"{mark(line.is_good)} ", colour)
        parts = (marked, f"{line.question} ", (line.answer, colour), f": {printable(line.reason)}")
        out.print(Text.assemble(*parts), soft_wrap=True)
