"""The report of one run, as what it says."""

from collections.abc import Iterator, Sequence

import numpy as np

from pyro_meta.analysis import about
from pyro_meta.analysis.document import (
    Answer,
    Document,
    Drawn,
    Figure,
    Paragraph,
    Part,
    Passage,
    Section,
    Table,
    Token,
    Verdicts,
)
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.one_token import judged
from pyro_meta.analysis.plots.routes import strength
from pyro_meta.analysis.plots.style import PALETTE
from pyro_meta.analysis.verdicts import of_state
from pyro_meta.analysis.visible import SIGNS, visible
from pyro_meta.terminal.tables import executed_rows

PASSAGE_TOKENS = 420
OPEN_LAYERS, MOST_LAYERS = 2, 8
"""Of the passage: shown at once, and not folded away."""
LINE_END = SIGNS["\n"]
SECTIONS = {
    "results": "Results",
    "passage": "What each token chose",
    "routes": "Where tokens go",
    "uncertainty": "How sure the router is",
    "depth": "Depth: which layers tokens skip",
    "training": "How it came about",
    "collapse": "Does every layer route?",
    "belief": "Is it the posterior?",
    "use": "What is the uncertainty good for?",
    "appendix": "Appendix: importance weights of blocks",
}


def document(findings: Findings, drawn: Sequence[Drawn], picture: Drawn) -> Document:
    """What the report of a run says.

    Parameters
    ----------
    findings
        Its diagnostics.
    drawn
        Its pictures.
    picture
        That of the passage.
    """
    run = findings.reading
    own = {
        "results": results, "passage": lambda of: [passage(of, picture)], "collapse": _collapse,
        "uncertainty": _uncertainty, "belief": _belief, "use": _use, "appendix": _appendix,
    }  # fmt: skip
    sections = []
    for name, title in SECTIONS.items():
        pictures = [one for one in drawn if one.section == name]
        if name in ("depth", "appendix") and not pictures:
            continue
        parts: list[Part] = [*(own[name](findings) if name in own else ()), *pictures]
        if parts:
            sections.append(Section(name, title, parts))
    return Document(
        title=run.name,
        about=f"The posterior of a router: {run.facts['guide']} under {run.facts['prior']}, "
        f"{len(run.means)} layers choosing from {', '.join(run.mechanisms)}.",
        facts=about.facts(run),
        verdicts=Verdicts(findings.headline(), findings.judgements()),
        sections=sections,
        palette=[PALETTE[k % len(PALETTE)] for k in range(len(run.mechanisms))],
    )


def results(findings: Findings) -> Iterator[Part]:
    summary = findings.reading.summary
    executed = summary.get("executed")
    yield Table(
        "results", "", ("figure", "value"),
        [
            ["loss of soft routes, nats per token", Figure(summary["val_nll_soft"], ".4f")],
            ["loss of hard routes, nats per token", Figure(summary["val_nll_hard"], ".4f")],
            ["nominal cost of hard routes, full attention = 1",
             Figure(summary["cost_nominal_hard"], ".3f")],
            ["MACs of hard routes, full attention = 1", Figure(summary["cost_macs_hard"], ".3f")],
            ["tokens that run hard", Figure(summary["hard_fraction"], ".1%")],
            *([*row] for row in (executed_rows(executed) if executed else ())),
        ],
    )  # fmt: skip


def passage(findings: Findings, picture: Drawn) -> Passage:
    """The first tokens of the validation text, for every layer (and group), with its name."""
    run = findings.reading
    shown = slice(min(PASSAGE_TOKENS, len(run.text)))
    texts = [visible(piece).replace(LINE_END, f"{LINE_END}\n") for piece in run.text[shown]]
    begins = starts_of(run.sequence[shown])
    strong, choice = strength(run, shown), run.choice[:, shown]
    choice = np.where(choice < 0, run.means[:, shown].argmax(-1), choice)
    layers = []
    for layer in run.rows:
        means = (100 * run.means[layer, shown]).round().astype(int)
        tokens = [
            Token(
                text, int(choice[layer, t]), round(100 * float(strong[layer, t])),
                _details(means[t], float(run.concentration[layer, t])),
                bool(run.runs[layer, t]), begins[t],
            )
            for t, text in enumerate(texts)
        ]  # fmt: skip
        layers.append((run.layer_names[layer], tokens))
    return Passage(
        run.mechanisms, layers, OPEN_LAYERS,
        MOST_LAYERS if run.has_many_rows else len(layers), picture,
    )  # fmt: skip


def passage_caption(findings: Findings) -> str:
    """How to read a passage."""
    run = findings.reading
    return (
        "The colour is the mechanism that a token runs, its strength how sure the guide is of it. "
        "Sequences do not see each other: each begins anew where it is divided from the one "
        "before."
        + ("" if run.depth is None else " Tokens without a colour skip the layer.")
        + (" Layers whose tokens are routed the most unlike come first." * run.has_many_rows)
    )


def starts_of(sequence: np.ndarray) -> list[int]:
    """At each token the number of the sequence that begins with it, from 1 on, else 0; [n]."""
    is_first = np.diff(sequence, prepend=-1) != 0
    return np.where(is_first, is_first.cumsum(), 0).tolist()


def _details(percent: Sequence[int], concentration: float) -> str:
    total = "" if np.isnan(concentration) else f"{concentration:.3g}"
    return f"{','.join(map(str, percent))};{total}"


def _uncertainty(findings: Findings) -> Iterator[Part]:
    run = findings.reading
    yield Paragraph(
        "Total entropy of the mean route has two parts. Expected entropy stays however well the "
        "route is known. Epistemic entropy is what knowing the route would settle. Both are in "
        "nats per token."
    )
    forms = {
        "effective_by_load": ("N layer", ".2f"), "effective_per_token": ("N token", ".2f"),
        "information": ("information", ".3f"), "total": ("total", ".3f"),
        "expected": ("expected", ".3f"), "epistemic": ("epistemic", ".3f"), "kl": ("KL", ".3f"),
        "marginal_kl": ("marginal", ".3f"),
    }  # fmt: skip
    yield Table(
        "by_layer", "By layer", ("layer", *(title for title, _ in forms.values())),
        [
            [name.removeprefix("layer "), *(Figure(row[key], f) for key, (_, f) in forms.items())]
            for name, row in zip(run.layer_names, run.diversity(), strict=True)
        ],
        note="N is the effective number of mechanisms, exp H, of the shares in a layer and of a "
        "token's posterior mean. Information is H of the mean minus the mean of H: 0 for a router "
        "that treats all tokens alike. Marginal is the KL without the information: all tokens pay "
        "it alike, for leaving the prior.",
    )  # fmt: skip
    yield Table(
        "groups", "By kind of token",
        ("tokens", "share", *run.mechanisms, "u", "loss, hard"),
        [
            [row["group"], Figure(row["share"], ".1%"),
             *(Figure(row["load"][name], ".1%") for name in run.mechanisms),
             Figure(row["uncertainty"], ".3f"), Figure(row["loss_hard"], ".3f")]
            for row in findings.by_group()
        ],
        how="Rows whose shares differ are tokens that the router tells apart. u says how unsure "
        "their route is, as a share of log K.",
    )  # fmt: skip
    for which, listed in findings.uncertain_tokens().items():
        yield Table(
            f"{which}_uncertain", f"The {which} uncertain tokens", ("token", "u", "times"),
            [
                [visible(one["text"], spaces=True), Figure(one["uncertainty"], ".2f"),
                 Figure(one["count"], "d")]
                for one in listed
            ],
        )  # fmt: skip


def _collapse(findings: Findings) -> Iterator[Part]:
    run = findings.reading
    for number, check in enumerate(run.checks, start=1):
        side = "at least" if check.is_least else "at most"
        yield Table(
            f"check_{number}", check.question, ("layer", "value", "low", "high", "answer"),
            [
                [name, Figure(one.value, ".3g"), Figure(one.interval[0], ".3g"),
                 Figure(one.interval[1], ".3g"), Answer(of_state("", state, ""))]
                for name, one, state in zip(
                    run.layer_names, check.estimates, check.states, strict=True
                )
            ],
            how=f"The value is the {check.measure}; {side} {check.threshold:g} is wanted. Low and "
            "high are its 95% interval for other texts: one that holds the threshold decides "
            "nothing.",
        )  # fmt: skip


def _belief(findings: Findings) -> Iterator[Part]:
    w = findings.reading.kl_weight
    tempered = (
        f", so that the guide is held against the tempered posterior, prior times likelihood to "
        f"the power {1 / w:g}, and not against the posterior of the model"
    )
    yield Paragraph(f"At its end training weighs the KL by w = {w:g}{tempered * (w != 1)}.")
    yield Paragraph(
        "The guide sees a token's past and never its target. So it is held against p_w(z | x), the "
        "best posterior that such a guide can have. That is learned from the choices of single "
        "tokens in other texts, and judged on the real targets of each."
    )
    if single := findings.belief.get("one_token"):
        guess = (single["choices"] + 1) / 2
        yield Table(
            "one_token", "Single tokens", ("figure", "value"),
            [
                [f"effective share of draws for p_w(z | x), median of {judged(single)}",
                 Figure(single["efficiency_median"], ".2f")],
                ["KL to it, nats", Figure(single["kl_mean"], ".3f")],
                ["gap: what it gains, nats per token", Figure(single["gap"]["value"], ".4f")],
                ["gap as a share of the loss", Figure(single["gap"]["share_of_loss"], ".2%")],
                ["conditioning gap: what the target would add, nats per token",
                 Figure(single["conditioning"]["value"], ".4f")],
                [f"rank of the guide's likeliest choice once the target is known, of "
                 f"{single['choices']} (a guess: {guess:.1f})", Figure(single["rank_mean"], ".2f")],
            ],
            note=f"Read on {single['tokens']} tokens of {single['texts']} texts. The gap is at "
            "least what is found. It is at most that and the conditioning gap together.",
        )  # fmt: skip
    if objective := findings.belief.get("objective"):
        yield Table(
            "objective", "Untempered, nats per token", ("figure", "value"),
            [
                ["evidence lower bound", Figure(objective["elbo"], ".3f")],
                ["of the text", Figure(-objective["nll"], ".3f")],
                ["of routes and their price", Figure(-objective["kl"], ".3f")],
                ["a uniform guess of the next token", Figure(objective["uniform"], ".3f")],
            ],
        )  # fmt: skip
    yield Paragraph(
        "R-hat and effective sample sizes say nothing about independent draws of a guide. "
        "Simulation-based calibration fails by design for a guide that does not see y. Neither is "
        "shown.",
        is_note=True,
    )


def _use(findings: Findings) -> Iterator[Part]:
    found = findings.averaging()
    low, high = found["interval"] or (None, None)
    yield Table(
        "averaging", "Averaging predictions over draws of the routes", ("figure", "value"),
        [
            ["loss beside the deployed route, nats a token", Figure(found["difference"], "+.4f")],
            ["95% interval, low", Figure(low, "+.4f")],
            ["95% interval, high", Figure(high, "+.4f")],
            ["loss of one draw", Figure(found["single_draw"], ".4f")],
            ["loss of the average", Figure(found["averaged"], ".4f")],
            ["draws, each a forward pass", Figure(found["draws"], "d")],
            ["sequences", Figure(found["sequences"], "d")],
        ],
        how="Below 0 the average is better than the deployed route.",
    )  # fmt: skip


def _appendix(findings: Findings) -> Iterator[Part]:
    yield Paragraph(
        "A guide that does not see y cannot pass k-hat against the posterior given y. The target "
        "of a token says which choice was right for it, and even p_w(z | x) misses that. Rows "
        "\u201cy unknown\u201d put the prediction of the deployed route in place of y. k-hat grows "
        "with the number of tokens at equal error of each."
    )
    if single := findings.belief.get("one_token"):
        yield Table(
            "given_targets", "Effective share of draws for p_w(z | x, y), median of single tokens",
            ("draws", "share"),
            [
                ["of p_w(z | x)", Figure(single["best_efficiency_median_given_targets"], ".2g")],
                ["of the guide", Figure(single["efficiency_median_given_targets"], ".2g")],
            ],
        )  # fmt: skip
