"""The verdict box of a report: questions of which yes is good, each answered yes, no or undecided.

What is asked of layers is answered for each, and never by the best of them for all.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_meta.analysis import one_token
from pyro_meta.analysis.collapse import Check
from pyro_meta.analysis.estimates import Estimate, State, of_texts
from pyro_meta.analysis.one_token import EFFICIENT, MOST_GAP
from pyro_meta.analysis.sensitivity import Sensitivity, verdict

MOST_HARDENING = 0.01
"""By how much of the loss hard routes may be worse than soft ones."""
MOST_NAMED = 6
"""Layers of which a line gives the numbers."""


@dataclass(frozen=True)
class Judgement:
    """One line of the verdict box."""

    question: str
    answer: str
    is_good: bool | None
    """None: undecided, in some layers only, or it does not apply."""
    reason: str
    states_by_layer: Sequence[tuple[str, str]] = ()
    """Layers and groups by name, where each has an answer of its own."""


MARKS = {True: "\u2713", False: "\u2717", None: "\u2013"}
"""Of good, bad, and what cannot be told, on pages and in the terminal."""


def mark(is_good: bool | None) -> str:
    return MARKS[is_good]


IS_GOOD = {State.YES: True, State.NO: False, State.UNDECIDED: None}


def of_state(question: str, state: State, reason: str) -> Judgement:
    return Judgement(question, str(state), IS_GOOD[state], reason)


def of_layers(check: Check, names: Sequence[str]) -> Judgement:
    """A check of L layers and groups, `names` [L].

    It is good where all pass, and bad where at least half do not.
    """
    count, states = Counter(check.states), check.states
    if len(count) == 1:
        answer = str(states[0])
    else:
        undecided = f", undecided in {count[State.UNDECIDED]}" if count[State.UNDECIDED] else ""
        answer = f"in {count[State.YES]} of {len(states)} layers{undecided}"
        if any("heads" in name for name in names):
            answer = answer.replace("layers", "layers and groups")
    is_good = None
    if count[State.YES] == len(states):
        is_good = True
    elif 2 * count[State.NO] >= len(states):
        is_good = False
    side = "at least" if check.is_least else "at most"
    told = _by_layer(check.estimates, names)
    reason = f"{check.why}; {check.measure}: {told} ({side} {check.threshold:g} wanted)"
    of_each = [(name, str(state)) for name, state in zip(names, states, strict=True)]
    return Judgement(check.question, answer, is_good, reason, of_each)


def _by_layer(estimates: Sequence[Estimate], names: Sequence[str]) -> str:
    """The values by layer; of many layers least, middle and most."""
    values = [one.value for one in estimates]
    if len(values) <= MOST_NAMED:
        return ", ".join(f"{v:.3g} in {name}" for v, name in zip(values, names, strict=True))
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:.3g} to {high:.3g}, {middle:.3g} in the median"


def routing_layers(checks: Sequence[Check]) -> int:
    """How many layers and groups pass all checks."""
    return sum(
        set(states) == {State.YES} for states in zip(*(c.states for c in checks), strict=True)
    )


def of_single_tokens(belief: Mapping[str, Any]) -> list[Judgement]:
    """What the exact posteriors of single tokens say: draws, the gap, and uncertainty."""
    questions = (
        "Could draws of the guide stand for the posterior of a token?",
        "Does the guide find the best that its prefix allows?",
        "Is an uncertain token one that does not care?",
    )
    if "one_token" not in belief:
        why = "it needs the checkpoint and the text"
        return [Judgement(question, "not looked at", None, why) for question in questions]
    found = belief["one_token"]
    if found is None:
        why = "it is asked of guides with a density and a KL, whose tokens run one mechanism each"
        return [Judgement(question, "does not apply", None, why) for question in questions]
    return [
        _of_efficiency(questions[0], found),
        _of_gap(questions[1], found),
        _of_indifference(questions[2], found),
    ]


def _of_efficiency(question: str, found: Mapping[str, Any]) -> Judgement:
    median = one_token.estimate(found, "efficiency_median", "efficiency_interval")
    return of_state(
        question,
        median.at_least(EFFICIENT),
        f"effective share of draws for p_w(z | x), the best posterior found that sees what the "
        f"guide sees: {_told(median, '.2f')} in the median of {one_token.judged(found)} "
        f"(at least {EFFICIENT:g} wanted), KL to it {found['kl_mean']:.3f} nats",
    )


def _of_gap(question: str, found: Mapping[str, Any]) -> Judgement:
    gap, further = one_token.gap_of(found), one_token.gap_of(found, "conditioning")
    share = one_token.as_share(gap, found["loss"])
    return of_state(
        question,
        share.at_most(MOST_GAP),
        f"on real targets of other texts than it was learned from, that posterior gains "
        f"{_told(gap, '.4f')} nats per token, {_told(share, '.2%')} of the loss (at most "
        f"{MOST_GAP:.0%} wanted), w = {found['kl_weight']:g}; with the target in sight, which a "
        f"router never has, it would gain {further.value:.4f} more",
    )


def _of_indifference(question: str, found: Mapping[str, Any]) -> Judgement:
    rank = one_token.estimate(found, "indifference", "indifference_interval")
    if np.isnan(rank.value):
        return Judgement(question, "does not apply", None, "the guide is equally sure everywhere")
    state = {State.YES: State.NO, State.NO: State.YES}.get(rank.at_least(0), State.UNDECIDED)
    return of_state(
        question,
        state,
        f"rank correlation of a choice's entropy with how far the losses of its alternatives lie "
        f"apart: {_told(rank, '.2f')} (below 0 wanted)",
    )


def of_sensitivity(found: Sensitivity | None) -> Judgement:
    """What shares of mechanisms react to, by power-scaling."""
    return Judgement(
        "Does the text, not the prior alone, decide the shares of mechanisms?", *verdict(found)
    )


def of_hardening(soft: Sequence[float], hard: Sequence[float]) -> Judgement:
    """From the losses of sequences, nats per token."""
    differences = np.asarray(hard, float) - np.asarray(soft, float)
    mean = max(float(np.mean(soft)), 1e-12)
    found = of_texts(differences)
    share = one_token.as_share(found, mean)
    return of_state(
        "Do hard routes keep the loss of soft ones?",
        share.at_most(MOST_HARDENING),
        f"{mean:.4f} soft, {np.mean(hard):.4f} hard: {_told(found, '+.4f')} nats per token "
        f"({share.value:+.1%}; at most {MOST_HARDENING:+.0%} wanted)",
    )


def _told(found: Estimate, form: str) -> str:
    """A value, with its interval if it has one."""
    low, high = found.interval
    if not np.isfinite([low, high]).all():
        return format(found.value, form)
    return f"{found.value:{form}} ({low:{form}} to {high:{form}})"
