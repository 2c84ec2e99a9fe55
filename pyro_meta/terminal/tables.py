"""Tables of what a run found out and of what its hard routes cost."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyro_meta.terminal.consoles import printable

NOISY = 0.3
"""Of a ratio of times, by how much of itself it may vary between rounds to be told."""


def filled(
    headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows without the columns that no row fills; the first, of names, stays."""
    columns = list(zip(headings, *rows, strict=True))
    kept = [column for index, column in enumerate(columns) if index == 0 or any(column[1:])]
    first, *others = map(list, zip(*kept, strict=True))
    return first, others


def table_of_rows(
    title: str, first: str, headings: Sequence[str], rows: Iterable[Sequence[str]]
) -> Table:
    """Names and their figures, without the columns that no row fills."""
    (first, *kept), cells = filled([first, *headings], list(rows))
    table = table_of_figures(title, first, kept)
    for row in cells:
        table.add_row(*row)
    return table


def table_of_figures(title: str, first: str, headings: Iterable[str]) -> Table:
    """A table without rows; all columns but the first are figures."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(Text(printable(heading)), justify="right")
    return table


def table_of_pairs(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Names and their figures."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def closing_table(
    summary: dict[str, Any], ngrams: tuple[float, float], gap: float, console: Console
) -> None:
    """What the router learned, beside what a unigram and a bigram model know."""
    unigram, bigram = ngrams
    rows = [
        ("loss, soft routes (nats per token)", f"{summary['val_nll_soft']:.4f}"),
        ("loss, hard routes", f"{summary['val_nll_hard']:.4f}"),
        ("unigram model, bigram model", f"{unigram:.4f}, {bigram:.4f}"),
        ("cost, nominal, soft routes (full attention = 1)", f"{summary['cost_nominal_soft']:.3f}"),
        ("cost, nominal, hard routes", f"{summary['cost_nominal_hard']:.3f}"),
        ("cost, MACs of attention, hard routes", f"{summary['cost_macs_hard']:.3f}"),
        ("KL (nats per token)", f"{summary['kl_per_token']:.3f}"),
        ("routing entropy (share of log K)", f"{summary['routing_entropy']:.3f}"),
        ("routing information (nats)", f"{summary['routing_information']:.3f}"),
        ("hard tokens", f"{summary['hard_fraction']:.1%}"),
        *_depth_rows(summary.get("depth", {})),
        ("read as prefixes, log-probabilities move by", f"{gap:.1e}"),
    ]
    rows += [*_truth_rows(summary.get("truth", {})), *executed_rows(summary["executed"])]
    console.print(table_of_pairs("validation", rows))
    shares = table_of_figures("share of tokens", "layer", summary["load"])
    for layer, row in enumerate(summary["load_by_layer"]):
        shares.add_row(str(layer), *(f"{share:.1%}" for share in row.values()))
    shares.add_row("all", *(f"{share:.1%}" for share in summary["load"].values()), style="bold")
    console.print(shares)
    if "beside" in summary:
        console.print(table_beside(summary["beside"]))


def table_beside(rows: dict[str, dict[str, Any]]) -> Table:
    """Routes of a network that stays as it is, beside what needs no router."""
    best = rows["full"]["loss_past"] if "full" in rows else None
    cells = []
    for name, row in sorted(rows.items(), key=lambda pair: pair[1]["loss_past"]):
        behind = "" if best is None else f"{row['loss_past'] - best:+.4f}"
        losses = f"{row['loss']:.4f}", f"{row['loss_past']:.4f}"
        cells.append((name, *losses, behind, f"{row['visits']:.3f}"))
    table = table_of_rows(
        "loss (nats per token) and key visits (share of full attention's)",
        "tokens",
        ("loss", _past(rows), "behind full", "key visits"),
        cells,
    )
    explain_visits(table, rows)
    return table


def _past(rows: dict[str, dict[str, Any]]) -> str:
    """Which tokens the losses are of that are compared; an earlier run has it at 256."""
    return f"past token {max((row.get('past', 256) for row in rows.values()), default=256)}"


def explain_visits(table: Table, rows: dict[str, dict[str, Any]]) -> None:
    """A caption below rows of which some make more key visits than full attention."""
    if any(row["visits"] > 1 for row in rows.values()):
        table.caption = "key visits above 1: a soft mixture runs every mechanism in it"
        table.caption_justify = "left"


def executed_rows(executed: dict[str, Any], hides_noise: bool = True) -> Iterator[tuple[str, str]]:
    """Hard routes as they are executed, against the same weights with full attention.

    With `hides_noise` times that vary too much are one line, which names the benchmark.
    """
    share, macs = executed["macs_ratio_attention"], executed["macs_per_token_attention"]
    yield "MACs of attention per token (share of full)", f"{macs:.3g} ({share:.1%})"
    share, macs = executed["macs_ratio_model"], executed["macs_per_token_model"]
    yield "MACs of the model per token, router included", f"{macs:.3g} ({share:.1%})"
    if "passed_by" in executed:
        yield "pairs of token and layer skipped", f"{executed['passed_by']:.1%}"
    routed, full = executed["tokens_per_second_routed"], executed["tokens_per_second_full"]
    noise = executed.get("clock_noise") or 0.0  # an earlier run says nothing of it
    if hides_noise and noise > NOISY:
        yield (
            "time, unsure here (python -m pyro_meta.bench --run RUN)",
            f"\u00b1 {noise / 2:.0%}",
        )
        return
    if full is None:
        yield "tokens per second, hard routes", f"{routed:,.0f}"
    else:
        yield "tokens per second, hard routes and all full", f"{routed:,.0f}, {full:,.0f}"
        yield "times as fast as full, the whole model", f"{executed['speed_up_model']:.2f}"
    if "passed_by" in executed:
        yield "times as fast as with all gates open", f"{executed['speed_up_depth']:.2f}"
    if executed["speed_up_attention"] is not None:
        yield "times as fast as full, attention alone", f"{executed['speed_up_attention']:.2f}"


def trained_rows(trained: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What `executed_rows` gives of a trained run, of a training step and of decoding."""
    for part, name in (("training", "a training step"), ("decoding", "decoding")):
        figures = trained[part]
        routed, full = figures["tokens_per_second_routed"], figures["tokens_per_second_full"]
        if full is None:
            yield f"tokens per second, {name}, hard routes", f"{routed:,.0f}"
        else:
            yield (
                f"tokens per second, {name}, hard routes and all full",
                f"{routed:,.0f}, {full:,.0f}",
            )
            yield f"times as fast as full, {name}", f"{figures['speed_up']:.2f}"


def _depth_rows(depth: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What depth gates do, where there are any."""
    if depth:
        soft, hard = depth["skipped_soft"], depth["skipped_hard"]
        yield "layers that tokens skip, soft and hard gates", f"{soft:.1%}, {hard:.1%}"
        yield "KL of the gates (nats per token)", f"{depth['kl_per_token']:.4f}"


def _truth_rows(truth: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The router against the truth, where the data knows it."""
    if not truth:
        return
    soft, hard = truth["answer_accuracy_soft"], truth["answer_accuracy_hard"]
    yield "queries answered, soft and hard routes", f"{soft:.1%}, {hard:.1%}"
    yield "loss of all other tokens, hard routes", f"{truth['filler_nll_hard']:.4f}"
    if truth["text_nll_hard"] is not None:
        yield (
            "loss of the text among them, given that text follows",
            f"{truth['text_nll_hard']:.4f}",
        )
    if truth["full_used"] is not None:
        yield "full attention used per look-up needed", f"{truth['full_used']:.2f}"
    if truth["auroc"] is not None:
        yield "AUROC of full attention for look-ups", f"{truth['auroc']:.3f}"
